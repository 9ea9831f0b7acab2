"""Files as a stream that can be cut anywhere: what was whole is taken, what was not is no file.

A frame is a line of JSON that says what comes; a regular file's is followed by chunks (four bytes of length, then as
many bytes), a chunk of none, and a line with the hash of the whole file. Only the frame `end` ends a stream.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, Mapping, Optional, Tuple

if TYPE_CHECKING:
    from remote.holdings import Hashes

CHUNK = 1 << 18
TELL_S = 0.25
FSYNC_FROM = 1 << 20  # bytes: waiting for the disk at each small file would take longer than the way here

Tell = Callable[[Dict[str, Any]], None]


class Broken(Exception):
    """The stream ended before its end, or is none of ours."""


class Pieces:
    """A stream that comes in pieces, read by lines and lengths."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = b""

    def read(self, n: int) -> bytes:
        """Exactly n bytes. Raises Broken."""
        held = [self._held]
        length = len(self._held)
        while length < n:
            piece = next(self._pieces, None)
            if piece is None:
                raise Broken("it broke off")
            held.append(piece)
            length += len(piece)
        data = b"".join(held)
        self._held = data[n:]
        return data[:n]

    def line(self) -> Dict[str, Any]:
        """One line of JSON. Raises Broken."""
        while b"\n" not in self._held:
            piece = next(self._pieces, None)
            if piece is None:
                raise Broken("it broke off")
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        try:
            value = json.loads(line.decode("ascii"))
        except ValueError:
            raise Broken("it does not speak as we do") from None
        if not isinstance(value, dict):
            raise Broken("it does not speak as we do")
        return value

    def rest(self) -> Iterator[bytes]:
        """All that was not read yet."""
        held, self._held = self._held, b""
        if held:
            yield held
        for piece in self._pieces:
            yield piece


def line_of(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=True) + "\n").encode("ascii")


def packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same, compressed."""
    press = zlib.compressobj(1)
    for piece in pieces:
        out = press.compress(piece)
        if out:
            yield out
    yield press.flush()


def unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same, as it was."""
    press = zlib.decompressobj()
    for piece in pieces:
        try:
            out = press.decompress(piece)
        except zlib.error:
            raise Broken("it does not speak as we do") from None
        if out:
            yield out


# sending


def frames(root: str, names: Iterable[str], offsets: Optional[Mapping[str, int]] = None) -> Iterator[bytes]:
    """The named files below a root, "" being the root itself; each from an offset that the other side holds already.

    Nothing raises in here: what can't be read is said in its frame.
    """
    return frames_of(((name, os.path.join(root, name) if name else root) for name in names), offsets)


def frames_of(named: Iterable[Tuple[str, str]], offsets: Optional[Mapping[str, int]] = None) -> Iterator[bytes]:
    """The same for names and paths."""
    for name, path in named:
        for piece in _frame(path, name, (offsets or {}).get(name, 0)):
            yield piece
    yield line_of({"kind": "end"})


def _frame(path: str, name: str, offset: int) -> Iterator[bytes]:
    try:
        about = os.lstat(path)
        if stat.S_ISLNK(about.st_mode):
            yield line_of({"kind": "link", "name": name, "to": os.readlink(path)})
            return
        if not stat.S_ISREG(about.st_mode):
            return
        with open(path, "rb") as f:
            for piece in _file_frame(f, name, offset):
                yield piece
    except OSError as e:
        yield line_of({"kind": "gone", "name": name, "why": e.strerror or str(e)})


def _file_frame(f: Any, name: str, offset: int) -> Iterator[bytes]:
    before = os.fstat(f.fileno())
    offset = offset if offset <= before.st_size else 0
    head = {"kind": "file", "name": name, "mode": before.st_mode & 0o777, "offset": offset}
    yield line_of(dict(head, size=before.st_size, mtime_ns=before.st_mtime_ns))
    digest, why, at = hashlib.sha256(), "", 0
    try:
        while at < before.st_size:
            # up to the offset only to be hashed: the other side has it, and checks the whole
            chunk = f.read(min(CHUNK, (offset if at < offset else before.st_size) - at))
            if not chunk:
                break
            digest.update(chunk)
            if at >= offset:
                yield struct.pack(">I", len(chunk)) + chunk
            at += len(chunk)
    except OSError as e:
        why = e.strerror or str(e)
    after = os.fstat(f.fileno())
    same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    yield struct.pack(">I", 0)
    yield line_of({"sha256": digest.hexdigest(), "short": at < before.st_size, "changed": not same, "why": why})


# receiving


class Taker:
    """Puts what comes into a folder, each file at once: beside, checked, renamed.

    `parts`: a folder in which a cut file waits for its rest; without it, it is dropped. `strict`: a file that changed
    while it was read is not taken. Tells {"at": bytes so far} now and then, and {"name": …, "fate": …} for each:
    whole, wrong (its hash differs), changed, gone.
    """

    def __init__(
        self, root: str, tell: Tell, parts: str = "", strict: bool = True, hashes: "Optional[Hashes]" = None
    ) -> None:
        self.root, self.parts, self.strict, self.hashes = root, parts, strict, hashes
        self._tell, self._told_at = tell, 0.0
        self.at = 0  # bytes of files that came

    def take(self, pieces: Pieces) -> None:
        """All frames. Raises Broken, OSError."""
        while True:
            head = pieces.line()
            if head.get("kind") == "end":
                break
            self._one(head, pieces)
        self._tell({"at": self.at})

    def _one(self, head: Mapping[str, Any], pieces: Pieces) -> None:
        kind, name = head.get("kind"), str(head.get("name", ""))
        if kind == "gone":
            self._tell({"name": name, "fate": "gone", "why": str(head.get("why", ""))})
            return
        path = self._place(name)
        if kind == "link":
            beside = self._beside(path)
            os.symlink(str(head["to"]), beside)
            _replace(beside, path)
        elif kind == "file":
            self._file(head, path, name, pieces)
            return
        else:
            raise Broken("it does not speak as we do")
        self._tell({"name": name, "fate": "whole"})

    def _file(self, head: Mapping[str, Any], path: str, name: str, pieces: Pieces) -> None:
        beside = os.path.join(self.parts, part_name(name, head["size"], head["mtime_ns"])) if self.parts else ""
        if beside:
            os.makedirs(self.parts, exist_ok=True)
        beside = beside or self._beside(path)
        offset, digest = int(head["offset"]), hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | (0 if offset else os.O_TRUNC)
        try:
            with os.fdopen(os.open(beside, flags, 0o600), "r+b") as f:
                _digest(f, digest, offset)
                f.truncate(offset)
                f.seek(offset)
                while True:
                    (length,) = struct.unpack(">I", pieces.read(4))
                    if not length:
                        break
                    if length > 1 << 24:
                        raise Broken("it does not speak as we do")
                    chunk = pieces.read(length)
                    f.write(chunk)
                    digest.update(chunk)
                    self._count(length)
                tail = pieces.line()
                os.fchmod(f.fileno(), int(head["mode"]) & 0o777)
                f.flush()
                if self.parts and head["size"] >= FSYNC_FROM:
                    os.fsync(f.fileno())
            fate = self._fate(tail, digest.hexdigest())
            if fate == "whole":
                os.utime(beside, ns=(int(head["mtime_ns"]), int(head["mtime_ns"])))
                _replace(beside, path)
                if self.hashes is not None:
                    self.hashes.note(name, os.lstat(path), digest.hexdigest())
            else:
                os.unlink(beside)
        except BaseException:
            if not self.parts:
                with contextlib.suppress(OSError):
                    os.unlink(beside)
            raise
        self._tell({"name": name, "fate": fate, "why": str(tail.get("why", ""))})

    def _fate(self, tail: Mapping[str, Any], sha256: str) -> str:
        if tail.get("sha256") != sha256:
            return "wrong"
        return "changed" if tail.get("short") or (self.strict and tail.get("changed")) else "whole"

    def _place(self, name: str) -> str:
        """Where it goes, its folders made. A name that leads out of the root is refused, through a link too."""
        if not name:
            os.makedirs(os.path.dirname(self.root) or ".", exist_ok=True)
            return self.root
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise Broken("it names {!r}".format(name))
        os.makedirs(self.root, exist_ok=True)
        place = self.root
        for part in parts[:-1]:
            place = os.path.join(place, part)
            try:
                os.mkdir(place)
            except FileExistsError:
                if os.path.islink(place) or not os.path.isdir(place):
                    os.unlink(place)
                    os.mkdir(place)
        return os.path.join(place, parts[-1])

    def _beside(self, path: str) -> str:
        # not the target's name: that may be 255 bytes long
        return os.path.join(os.path.dirname(path), ".podctl-{}.tmp".format(os.getpid()))

    def _count(self, n: int) -> None:
        self.at += n
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell({"at": self.at})


def remove(root: str, names: Iterable[str]) -> None:
    """Files, links and whole folders below a root; what is gone already is no error."""
    for name in names:
        _clear(os.path.join(root, name))


def part_name(name: str, size: int, mtime_ns: int) -> str:
    """The cut file's own name: another content, by size or time, never goes on from it."""
    return hashlib.sha256(json.dumps([name, size, mtime_ns]).encode("ascii")).hexdigest()[:32]


def _replace(beside: str, path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    os.replace(beside, path)


def _clear(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _digest(f: Any, digest: Any, n: int) -> None:
    while n:
        chunk = f.read(min(CHUNK, n))
        if not chunk:
            raise Broken("what was here of a cut file is gone")
        digest.update(chunk)
        n -= len(chunk)
