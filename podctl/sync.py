"""Directory trees over any wire: only what differs travels, and what is gone here goes there.

Round trips: one command says what is there. Nothing differs: that was all. Else one more sends the difference, or,
where it is large and both ends have rsync, rsync does. A machine without Python gets the whole tree by tar.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from podctl import courier, rsync
from podctl.asking import PYTHONS
from podctl.errors import MissingHere, PodctlError
from podctl.pods import Result
from podctl.swap import swap
from podctl.wire.base import Wire
from remote.frames import Pieces, frames, packed, unpacked
from remote.holdings import holdings, same_time, walk
from remote.taking import Taker

RSYNC_FROM = 1 << 20  # bytes: below, its own round trips cost more than it saves
OLD_S = 2.0  # rsync of old keeps whole seconds: a file this young could change again and look the same
TRIES = 2  # of a file that changes while it is sent
LOOK_TIMEOUT_S = 300.0

# Says what there is: rsync's banner, Python, the folder as GNU find sees it; the last field tells that it is all.
LOOK = r"""
python=$(for p in PYTHONS; do command -v "$p" && break; done)
printf 'podctl\0%s\0%s\0' "$(rsync --version 2>/dev/null | head -n 2)" "$python"
if [ ! -e "$1" ]; then printf 'all\0'
elif ! find /dev/null -printf '' 2>/dev/null; then printf 'no find\0'
else cd -- "$1" && find . -mindepth 1 -printf '%y\0%s\0%T@\0%m\0%l\0%P\0' && printf 'all\0'
fi
""".replace("PYTHONS", " ".join(PYTHONS))


@dataclass(frozen=True)
class Entry:
    """A file, a link, a folder or anything else (f, l, d, o) of a tree."""

    kind: str
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    link: str = ""


@dataclass(frozen=True)
class There:
    """What one command found: `entries` is None where nothing over there can list them."""

    rsync: str
    has_python: bool
    entries: Mapping[str, Entry] | None


@dataclass(frozen=True)
class Changes:
    """What makes a tree like another: these gone first, a folder with all in it, then these sent."""

    remove: tuple[str, ...]
    send: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.remove or self.send)


def push(
    wire: Wire,
    source: Path,
    target: PurePath,
    *,
    files_from: Sequence[str] = (),
    rsync_from: int = RSYNC_FROM,
    now: Callable[[], float] = time.time,
) -> None:
    """As Host.push. Each file is there at once or not at all. Raises PodctlError, Unreachable."""
    unstable: list[str] = []
    for _ in range(TRIES):
        there = look(wire, target)
        here = read_here(source, files_from)
        changes = compare(here, there.entries) if there.entries is not None else None
        if changes is not None and not changes:
            return
        if changes is None or not there.has_python:
            code, said = swap(wire, source, target, sorted(here))
            if code:
                raise failed_there(Result(code, "", said), f"{target} can't be written")
            return
        options = rsync_for(wire, there) if sum(here[n].size for n in changes.send) >= rsync_from else None
        old = [n for n in changes.send if here[n].mtime_ns / 1e9 < now() - OLD_S]
        unstable = send(wire, source, target, changes, old if options is not None else [], options or [])
        if not unstable:
            return
    raise PodctlError(f"{unstable[0]} keeps changing while it is sent", "wait until it is written, then try again")


def pull(wire: courier.Carrier, source: PurePath, target: Path, *, names: Sequence[str] = ()) -> None:
    """As Host.pull, in one command; names that are not there are passed over. Raises FileNotFoundError, PodctlError."""
    with _writing_here(target):
        have = holdings(str(target), names)
    order = {"names": list(names), "have": have, "packed": True}

    def receive(stream: Iterator[bytes]) -> None:
        with _writing_here(target):
            Taker(str(target), lambda said: None, strict=False).take(Pieces(unpacked(stream)))

    courier.give(wire, source, order, receive)


def read_here(source: Path, files_from: Sequence[str]) -> dict[str, Entry]:
    """The files and links that should travel. Raises PodctlError for one that went away."""
    entries = {}
    for name in files_from or walk(str(source)):
        path = source / name
        try:
            about = path.lstat()
        except OSError as e:
            raise PodctlError(f"{path} went away while it was copied", "try again") from e
        if stat.S_ISLNK(about.st_mode):
            entries[os.path.normpath(name)] = Entry("l", link=os.readlink(path))  # noqa: PTH115 – as text, as it is
        elif stat.S_ISREG(about.st_mode):
            mode = stat.S_IMODE(about.st_mode) & 0o777
            entries[os.path.normpath(name)] = Entry("f", about.st_size, about.st_mtime_ns, mode)
    return entries


def look(wire: Wire, target: PurePath) -> There:
    """One command; a second where there is Python and no find that knows -printf. Raises PodctlError, Unreachable."""
    result = wire.run(["sh", "-c", LOOK, "sh", str(target)], timeout_s=LOOK_TIMEOUT_S)
    said = result.stdout.partition("podctl\0")[2]
    banner, python, *_ = [*said.split("\0"), "", ""]
    if said.endswith("all\0"):
        listed = said.split("\0", 2)[2].removesuffix("all\0")
        return There(banner, bool(python), parse_records(listed))
    if not said.endswith("no find\0"):
        raise failed_there(result, f"{target} can't be looked at")
    if not python:
        return There(banner, False, None)
    listing = wire.run(courier.argv("list", target), timeout_s=LOOK_TIMEOUT_S)
    if not listing.ok:
        raise failed_there(listing, f"{target} can't be looked at")
    return There(banner, True, parse_records(listing.stdout))


def parse_records(text: str) -> dict[str, Entry]:
    """What `find -printf` and `carry.py list` say: six fields an entry, each ended by NUL. Pure."""
    fields = text.split("\0")[:-1]
    entries = {}
    for at in range(0, len(fields), 6):
        kind, size, mtime, mode, link, name = fields[at : at + 6]
        seconds, _, fraction = mtime.partition(".")
        mtime_ns = int(seconds) * 10**9 + int(fraction[:9].ljust(9, "0"))
        kind = kind if kind in "fld" else "o"
        entries[name] = Entry(kind, int(size), mtime_ns, int(mode, 8) & 0o777, link)
    return entries


def compare(here: Mapping[str, Entry], there: Mapping[str, Entry]) -> Changes:
    """Pure. Folders matter as the way to files alone; their own times and modes do not travel."""
    folders = {"/".join(parts[:n]) for parts in (name.split("/") for name in here) for n in range(1, len(parts))}
    remove: list[str] = []
    gone: set[str] = set()
    for name in sorted(there, key=lambda n: n.split("/")):
        if any(parent in gone for parent in _parents(name)):
            continue
        kind = there[name].kind
        if not (name in folders if kind == "d" else name in here and kind in "fl"):
            remove.append(name)
            gone.add(name)
    send = [n for n, e in here.items() if n in gone or not _is_same(e, there.get(n))]
    return Changes(tuple(remove), tuple(sorted(send)))


def rsync_for(wire: Wire, there: There) -> list[str] | None:
    """The options under which rsync can bring files there; None where it can't."""
    return rsync.options_with(there.rsync) if wire.rsync_shell() is not None else None


def send(
    wire: Wire, source: Path, target: PurePath, changes: Changes, by_rsync: Sequence[str], options: Sequence[str]
) -> list[str]:
    """What is gone and what is not for rsync over stdin, then the rest. The names of files that changed meanwhile."""
    unstable: list[str] = []

    def tell(said: Mapping[str, object]) -> None:
        fate, name = said.get("fate"), str(said.get("name"))
        if fate == "gone":
            raise PodctlError(f"{source / name} can't be sent: {said.get('why')}", "try again")
        if fate in ("wrong", "changed"):
            unstable.append(name)

    streamed = sorted(set(changes.send) - set(by_rsync))
    if streamed or changes.remove:
        order = {"remove": list(changes.remove), "packed": True}
        courier.take(wire, target, order, packed(frames(str(source), streamed)), tell)
    shell = wire.rsync_shell()
    if by_rsync and shell is not None:  # its connection knows one host, under any name
        rsync.send(shell, "pod", options, source, target, by_rsync)
    return unstable


def failed_there(result: Result, what: str) -> PodctlError:
    """A command's failure as a sentence."""
    said = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.exit_code}"]
    if "No space left" in result.stderr or "Disk quota" in result.stderr:
        return courier.DiskFull(f"the disk over there is full: {said[0]}", "free some space there, then the same again")
    return PodctlError(f"{what}: {said[0]}", "may you read and write there?")


def _is_same(here: Entry, there: Entry | None) -> bool:
    if there is None or here.kind != there.kind:
        return False
    if here.kind == "l":
        return here.link == there.link
    return (here.size, here.mode) == (there.size, there.mode) and _as_old(here.mtime_ns, there.mtime_ns)


def _as_old(here_ns: int, there_ns: int) -> bool:
    """Equal; or cut to whole seconds on its way by an rsync of old, which only gets files that are old enough."""
    return same_time(here_ns, there_ns) or (there_ns % 10**9 == 0 and there_ns // 10**9 == here_ns // 10**9)


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:n]) for n in range(1, len(parts)))


@contextmanager
def _writing_here(target: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as e:
        raise MissingHere(
            f"{e.filename or target} can't be written: {e.strerror}", "another folder, or free some space"
        ) from e
