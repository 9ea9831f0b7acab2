"""This machine as a host: the same verbs as over SSH, without the wire."""

import contextlib
import filecmp
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath

from podctl import shell
from podctl.errors import MissingHere, PodctlError
from podctl.host import IDLE_S, Stream
from podctl.pods import Result
from remote.holdings import walk

LOOK_S = 0.05
CHUNK = 1 << 20


class LocalHost:
    """Runs, copies and follows here. Account keys are in no child's environment."""

    name = "this machine"

    def run(self, argv: Sequence[str], *, stdin: str | bytes = "", timeout_s: float = 60) -> Result:
        return shell.run(argv, stdin=stdin, timeout_s=timeout_s, own_session=True)

    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> AbstractContextManager[Stream]:
        return shell.stream(argv, stdin=stdin)

    def terminal(self, argv: Sequence[str] = ()) -> int:
        return shell.hand_over(argv or [os.environ.get("SHELL") or "sh", "-l"])

    def push(self, source: Path, target: PurePath, *, files_from: Sequence[str] = ()) -> None:
        """Copies what differs by size or time, file by file and each at once; links stay links, modes stay."""
        source, root = Path(source), Path(target)
        wanted = [Path(f) for f in files_from] if files_from else sorted(_files_under(source))
        keep = {*wanted, *(parent for f in wanted for parent in f.parents)}
        with _copying():
            root.mkdir(parents=True, exist_ok=True)
            _prune(root, keep, set(wanted))
            for name in wanted:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(source / name, root / name)

    def pull(self, source: PurePath, target: Path, *, names: Sequence[str] = ()) -> None:
        origin = Path(source)
        if not origin.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(origin, target)
            return
        for name in walk(str(origin), names):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a running job may have removed it meanwhile
                _copy(origin / name, target / name)

    def read(self, path: PurePath) -> bytes | None:
        """Raises PodctlError where there is something that can't be read."""
        try:
            return Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise PodctlError(f"{path} can't be read: {e.strerror}", "may you read it?") from e

    def follow(self, path: PurePath, *, offset: int = 0) -> Iterator[bytes]:
        """Reopens by path at each look, so an absent, replaced or shortened file does no harm."""
        idle_since = time.monotonic()
        while True:
            chunk = b""
            with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as f:
                f.seek(offset)
                chunk = f.read(CHUNK)
            if chunk:
                offset += len(chunk)
                yield chunk
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= IDLE_S:
                yield b""
                idle_since = time.monotonic()
            else:
                time.sleep(LOOK_S)

    @contextlib.contextmanager
    def forward(self, remote_port: int, local_port: int) -> Iterator[None]:
        """A port of this machine is here already, under its own number. Raises MissingHere for another number."""
        if remote_port != local_port:
            raise MissingHere(f"port {remote_port} is on this machine already", f"open http://127.0.0.1:{remote_port}")
        yield


@contextlib.contextmanager
def _copying() -> Iterator[None]:
    """A copy's failure as a sentence. Raises PodctlError."""
    try:
        yield
    except FileNotFoundError as e:
        raise PodctlError(f"{e.filename} went away while it was copied", "try again") from e
    except OSError as e:
        raise PodctlError(
            f"{e.filename} can't be copied: {e.strerror or e}", "is there room, and may you write there?"
        ) from e


def _files_under(root: Path) -> Iterator[Path]:
    """All files and links below, relative; a link to a directory is a link."""
    for directory, folders, files in os.walk(root):
        here = Path(directory)
        links = [f for f in folders if (here / f).is_symlink()]
        for name in [*files, *links]:
            yield (here / name).relative_to(root)


def _prune(root: Path, keep: set[Path], files: set[Path]) -> None:
    """Remove what is not wanted, and what stands as a folder where a file is wanted or the other way round."""
    for directory, folders, names in os.walk(root, topdown=False):
        here = Path(directory)
        for name in [*names, *folders]:
            path = here / name
            relative = path.relative_to(root)
            is_folder = path.is_dir() and not path.is_symlink()
            if relative in keep and is_folder == (relative not in files):
                continue
            if is_folder:
                shutil.rmtree(path)
            else:
                path.unlink()


def _copy(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    if source.is_symlink():
        if not (target.is_symlink() and target.readlink() == source.readlink()):
            target.unlink(missing_ok=True)
            target.symlink_to(source.readlink())
        return
    if not target.is_symlink() and target.exists() and _same(source, target):
        return
    beside = target.with_name(f".podctl-{os.getpid()}.tmp")  # not the target's name: that may be 255 bytes long
    try:
        shutil.copy2(source, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _same(source: Path, target: Path) -> bool:
    a, b = source.stat(), target.stat()
    if (a.st_size, a.st_mode) != (b.st_size, b.st_mode) or a.st_mtime_ns != b.st_mtime_ns:
        return False
    # a file changed twice within one tick of the clock keeps its time: look inside where that can be
    return time.time() - a.st_mtime > 2 or filecmp.cmp(source, target, shallow=False)
