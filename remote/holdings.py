"""What is in a folder: names, sizes, times, and hashes that are worked out once."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from remote.frames import CHUNK

PARTS = ".podctl-partial"  # what came of files that were cut off
HASHES = ".podctl-hashes"  # so that 100 GB are read once
OURS = (PARTS, HASHES)
TELL_S = 0.25
RACY_NS = 2 * 10**9  # a file this young may change again without its time telling

Tell = Callable[[Dict[str, Any]], None]


class Hashes:
    """sha256 of files by name, size and time, remembered in a file of lines; a lost or torn one costs time only."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: Dict[str, Tuple[int, int, str]] = {}
        with contextlib.suppress(OSError), open(path, "rb") as f:
            for line in f:
                with contextlib.suppress(ValueError, TypeError):
                    name, size, mtime_ns, sha256 = json.loads(line.decode("ascii"))
                    self._known[name] = (size, mtime_ns, sha256)

    def known(self, name: str, about: os.stat_result) -> str:
        size, mtime_ns, sha256 = self._known.get(name, (-1, -1, ""))
        return sha256 if (size, mtime_ns) == (about.st_size, about.st_mtime_ns) else ""

    def of(self, path: str, name: str, hashed: Callable[[int], None] = lambda n: None) -> str:
        """Read it where it is not known. Raises OSError."""
        with open(path, "rb") as f:
            about = os.fstat(f.fileno())
            sha256 = self.known(name, about)
            if sha256:
                hashed(about.st_size)
                return sha256
            digest = hashlib.sha256()
            for chunk in iter(lambda: f.read(CHUNK), b""):
                digest.update(chunk)
                hashed(len(chunk))
        self.note(name, about, digest.hexdigest())
        return digest.hexdigest()

    def note(self, name: str, about: os.stat_result, sha256: str) -> None:
        if int(time.time() * 1e9) - about.st_mtime_ns < RACY_NS:  # time_ns is Python 3.7's
            return
        self._known[name] = (about.st_size, about.st_mtime_ns, sha256)
        with contextlib.suppress(OSError):  # a volume that is read-only is hashed each time
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(self._path, "ab") as f:
                f.write((json.dumps([name, about.st_size, about.st_mtime_ns, sha256]) + "\n").encode("ascii"))


def walk(root: str, names: Sequence[str] = (), leave: Sequence[str] = ()) -> Iterator[str]:
    """All files and links below, or those named and what is below them; a link to a folder is a link."""
    left = set(leave)
    for name in names or [""]:
        if name in left:
            continue
        top = os.path.join(root, name) if name else root
        if not os.path.isdir(top) or (name and os.path.islink(top)):
            if os.path.lexists(top):
                yield name
            continue
        for directory, folders, files in os.walk(top):
            below = os.path.relpath(directory, root)
            below = "" if below == "." else below + "/"
            linked = [f for f in folders if os.path.islink(os.path.join(directory, f))]
            folders[:] = sorted(f for f in folders if f not in linked and below + f not in left)
            for file in sorted(files + linked):
                if below + file not in left:
                    yield below + file


def records(root: str) -> Iterator[bytes]:
    """As `find -mindepth 1 -printf '%y\\0%s\\0%T@\\0%m\\0%l\\0%P\\0'` says it."""
    for directory, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(directory, name)
            about = os.lstat(path)
            kinds = ((stat.S_ISLNK, "l"), (stat.S_ISREG, "f"), (stat.S_ISDIR, "d"))
            kind = next((k for is_it, k in kinds if is_it(about.st_mode)), "o")
            seconds = "{}.{:09d}".format(*divmod(about.st_mtime_ns, 10**9))
            fields = [kind, str(about.st_size), seconds, "{:o}".format(stat.S_IMODE(about.st_mode))]
            fields += [os.readlink(path) if kind == "l" else "", os.path.relpath(path, root)]
            yield b"".join(os.fsencode(field) + b"\0" for field in fields)


def part_name(name: str, size: int, mtime_ns: int) -> str:
    """The cut file's own name: another content, by size or time, never goes on from it."""
    return hashlib.sha256(json.dumps([name, size, mtime_ns]).encode("ascii")).hexdigest()[:32]


def same_time(a_ns: int, b_ns: int) -> bool:
    """Equal, or as equal as a file system can say that keeps whole seconds."""
    whole = not (a_ns % 10**9 and b_ns % 10**9)
    return a_ns == b_ns or (whole and a_ns // 10**9 == b_ns // 10**9)


def holdings(root: str, names: Sequence[str] = ()) -> Dict[str, List[int]]:
    """Size and time of each regular file, for a `give` that leaves out what one has."""
    found = {}
    for name in walk(root, names):
        with contextlib.suppress(OSError):
            about = os.lstat(os.path.join(root, name) if name else root)
            if stat.S_ISREG(about.st_mode):
                found[name] = [about.st_size, about.st_mtime_ns, about.st_mode & 0o777]
    return found


def lacking(root: str, order: Mapping[str, Any]) -> Iterator[str]:
    """The names that a `give` sends."""
    have = order.get("have") or {}
    for name in walk(root, order.get("names") or (), order.get("leave") or ()):
        if not _is_held(os.path.join(root, name) if name else root, have.get(name)):
            yield name


def _is_held(path: str, held: Optional[Sequence[int]]) -> bool:
    try:
        about = os.lstat(path)
    except OSError:
        return False  # its frame says so
    if not held or not stat.S_ISREG(about.st_mode):
        return False
    size, mtime_ns, mode = held
    same = size == about.st_size and mode == about.st_mode & 0o777
    return same and same_time(mtime_ns, about.st_mtime_ns)


def survey(root: str, order: Mapping[str, Any], tell: Tell) -> Dict[str, Any]:
    """order: names ([] for all), leave, hash {name: size} (where it is of that size), parts {name: [size, time]}."""
    hashes = Hashes(os.path.join(root, HASHES))
    wanted: Mapping[str, int] = order.get("hash") or {}
    files: Dict[str, List[Any]] = {}
    links: Dict[str, str] = {}
    for name in walk(root, order.get("names") or (), order.get("leave") or ()):
        with contextlib.suppress(OSError):
            path = os.path.join(root, name) if name else root
            about = os.lstat(path)
            if stat.S_ISREG(about.st_mode):
                files[name] = [about.st_size, about.st_mtime_ns, ""]
            elif stat.S_ISLNK(about.st_mode):
                links[name] = os.readlink(path)
    total = sum(size for name, size in wanted.items() if name in files and files[name][0] == size)
    done, told_at = 0, 0.0

    def hashed(n: int) -> None:
        nonlocal done, told_at
        done += n
        if time.monotonic() - told_at >= TELL_S:
            told_at = time.monotonic()
            tell({"hashed": done, "of": total})

    for name, size in wanted.items():
        if name in files and files[name][0] == size:
            with contextlib.suppress(OSError):
                files[name][2] = hashes.of(os.path.join(root, name) if name else root, name, hashed)
    parts = {}
    for name, (size, mtime_ns) in (order.get("parts") or {}).items():
        with contextlib.suppress(OSError):
            parts[name] = os.stat(os.path.join(root, PARTS, part_name(name, size, mtime_ns))).st_size
    return {"files": files, "links": links, "parts": parts, "free": free_bytes(root)}


def free_bytes(path: str) -> Optional[int]:
    """What df says of the disk that a path is or will be on; None where it says nothing."""
    while not os.path.isdir(path) and path not in ("", "/"):
        path = os.path.dirname(path)
    try:
        return shutil.disk_usage(path or ".").free
    except OSError:
        return None
