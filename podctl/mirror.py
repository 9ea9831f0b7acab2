"""What a run has written so far, kept here as well while somebody is attached: a machine can be gone tomorrow.

The log is written as it is streamed. Everything else that is small, and the adapters, come every `EVERY_S` in one
round trip, only what is new of them (`remote/delta.py`). Nothing that goes wrong here disturbs the following.
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from podctl.errors import PodctlError
from podctl.fetch import ignore_results
from podctl.host import Host
from podctl.pods import Run
from podctl.runs import results_dir, run_dir, tool_argv

EVERY_S = 20.0
PENDING_MAX = 4 << 20  # of log that waits here until what lies before it has come
BLOCK_MAX = 1 << 24
END_S = 5.0  # that leaving waits for what is under way
FOLDERS = ("tb", "reports", "blackbox", "guard")  # of the run directory; besides its own files


class Garbled(Exception):
    """What came is not what was asked for."""


@dataclass(frozen=True)
class Frame:
    """A piece of a file, to stand at byte `at`; or, as the last word, which checkpoints' adapters are worth keeping."""

    path: str = ""
    at: int = 0
    is_last: bool = False
    mtime_ns: int = 0
    block: bytes = b""
    adapters: frozenset[str] | None = None


class Mirror:
    """One run's mirror. `log` is for the thread that follows, `cycle` for the other."""

    def __init__(self, run: Run, host: Host, *, every_s: float = EVERY_S) -> None:
        self.root = results_dir(run)
        self._run = run
        self._host = host
        self._every_s = every_s
        self._is_over = threading.Event()
        self._log_lock = threading.Lock()
        self._pending: list[tuple[int, bytes]] = []
        self._thread: threading.Thread | None = None
        self._stale: frozenset[str] = frozenset()  # growing files that were written anew
        self._trouble = ""
        self._log_trouble = ""

    @property
    def trouble(self) -> str:
        """Why the mirror is not whole, "" where it is."""
        return self._log_trouble or self._trouble

    @contextlib.contextmanager
    def going_on(self) -> Iterator["Mirror"]:
        """Mirror in a thread while the block lasts; leaving it waits for `END_S` at most."""
        with contextlib.suppress(OSError):  # the first cycle says so
            ignore_results(self.root)
        self._thread = threading.Thread(target=self._cycle_on, name="mirror", daemon=True)
        self._thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._thread.join(END_S)

    def finish(self) -> None:
        """All there is, once the run is over. What is missing then is in `trouble`."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(END_S)
        self._try_cycle(threading.Event())

    def log(self, chunk: bytes, offset: int) -> None:
        """A piece of the log as it came. What lies behind a hole waits until a cycle has filled it."""
        with self._log_lock, self._noting_log():
            if self._put_log(chunk, offset):
                self._log_trouble = ""
            else:
                self._pending.append((offset, chunk))
                while sum(len(c) for _, c in self._pending) > PENDING_MAX:
                    self._pending.pop(0)

    def log_began_anew(self) -> None:
        """Over there the log is another file by now; what we have of the old one stays beside it."""
        with self._log_lock, self._noting_log():
            self._pending.clear()
            if self._log_path.exists():
                os.replace(self._log_path, self._log_path.with_name("log.before"))

    def cycle(self, stop: threading.Event) -> None:
        """Bring what is new, in one round trip; `stop` ends it early. Raises PodctlError, Garbled, OSError."""
        ignore_results(self.root)
        taker = Taker(self.root, self._stale)
        ask = json.dumps({"files": taker.have(), "log": bool(self._pending)})
        argv = [*tool_argv(self._run, "delta.py"), str(run_dir(self._run))]
        with contextlib.closing(taker), self._host.stream(argv, stdin=[ask.encode("ascii")]) as stream:
            for frame in frames(stream):
                if stop.is_set():
                    return
                if frame is None:
                    continue
                if frame.path == "log":
                    with self._log_lock:
                        self._put_log(frame.block, frame.at)
                else:
                    taker.take(frame)
            if stream.exit_code not in (0, None):
                said = stream.stderr.strip().splitlines()[-1:] or [f"exit code {stream.exit_code}"]
                raise Garbled(f"the pod can't say what is new: {said[0]}")
        self._stale = taker.stale
        if not taker.is_complete:
            raise Garbled("the pod's answer ended too early")

    def _cycle_on(self) -> None:
        while not self._is_over.is_set():
            self._try_cycle(self._is_over)
            self._is_over.wait(self._every_s)

    def _try_cycle(self, stop: threading.Event) -> None:
        try:
            self.cycle(stop)
            if self._stale:  # they come whole at once
                self.cycle(stop)
            self._trouble = ""
        except PodctlError as e:
            self._trouble = e.message
        except Garbled as e:
            self._trouble = str(e)
        except OSError as e:
            self._trouble = f"{e.filename or self.root}: {e.strerror or e}"

    @property
    def _log_path(self) -> Path:
        return self.root / "log"

    def _put_log(self, chunk: bytes, offset: int) -> bool:
        """Write it unless that left a hole, then what waited for it."""
        if not _put(self._log_path, chunk, offset):
            return False
        self._pending = [(at, waiting) for at, waiting in self._pending if not _put(self._log_path, waiting, at)]
        return True

    @contextlib.contextmanager
    def _noting_log(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self._log_trouble = f"{e.filename or self._log_path}: {e.strerror or e}"


class Taker:
    """Puts what comes where it belongs below one folder, and nowhere else."""

    def __init__(self, root: Path, stale: frozenset[str] = frozenset()) -> None:
        self.root = root
        self.is_complete = False
        self.stale: frozenset[str] = frozenset()  # growing files that turned out to be other ones than ours
        self._was_stale = stale
        # not the file's own name, which may be 255 bytes long; two that are attached stand in nobody's way
        self._beside = f".{os.getpid()}-{threading.get_ident()}.tmp"
        self._parts: dict[str, Path] = {}

    def have(self) -> dict[str, list[int]]:
        """Size and time of everything here that could have come from there."""
        found = {}
        for path in _files(self.root):
            stat = path.stat()
            found[path.relative_to(self.root).as_posix()] = [stat.st_size, stat.st_mtime_ns]
        return {name: facts for name, facts in found.items() if name not in self._was_stale}

    def take(self, frame: Frame) -> None:
        """Raises Garbled where it leads out of our folder."""
        if frame.adapters is not None:
            self._keep_adapters(frame.adapters)
            self.is_complete = True
            return
        path = self._path(frame.path)
        if frame.at == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parts[frame.path] = path.with_name(self._beside)
            self._parts[frame.path].write_bytes(frame.block)
        elif frame.path in self._parts:
            with self._parts[frame.path].open("ab") as f:
                f.write(frame.block)
        elif not self._append(path, frame):
            return
        if frame.is_last:
            target = self._parts.pop(frame.path, path)
            os.utime(target, ns=(frame.mtime_ns, frame.mtime_ns))
            if target != path:
                os.replace(target, path)

    def close(self) -> None:
        """Nothing half-written is left."""
        for part in self._parts.values():
            part.unlink(missing_ok=True)

    def _append(self, path: Path, frame: Frame) -> bool:
        """More of a file that grows, from a little before our end; False where it is another file by now."""
        if frame.path in self.stale:
            return False
        with path.open("r+b") as f:
            f.seek(frame.at)
            ours = f.read(len(frame.block))
            if ours != frame.block[: len(ours)]:
                self.stale |= {frame.path}  # what we have stays until it comes anew
                return False
            f.write(frame.block[len(ours) :])
        return True

    def _keep_adapters(self, wanted: frozenset[str]) -> None:
        """Adapters that are neither the newest nor the best any more go; what `pull --checkpoints` brought stays."""
        for mark in self.root.glob("checkpoints/step-*/COMPLETE"):
            folder = mark.parent
            if folder.relative_to(self.root).as_posix() not in wanted and not (folder / "state").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        """Where a file of that name belongs. The machine is not ours to trust: it may name what it likes."""
        parts = PurePosixPath(name).parts
        known = len(parts) == 1 or (len(parts) > 1 and parts[0] in (*FOLDERS, "checkpoints"))
        path = self.root.joinpath(*parts)
        if not known or name.startswith("/") or ".." in parts or "\0" in name or path.is_dir():
            raise Garbled(f"the pod named a file that is none of a run: {name!r}")
        if any(p.is_symlink() for p in (path, *path.parents) if p.is_relative_to(self.root) and p != self.root):
            raise Garbled(f"{path} is a link, and is not written through")
        return path


def frames(pieces: Iterable[bytes]) -> Iterator[Frame | None]:
    """Frames of `remote/delta.py` out of a stream's pieces; None where it had nothing to say for a while."""
    buffer = bytearray()
    head: Frame | None = None
    n_bytes = 0
    for piece in pieces:
        if not piece:
            yield None
        buffer += piece
        while True:
            if head is None:
                end = buffer.find(b"\n")
                if end < 0:
                    break
                head, n_bytes = _head(bytes(buffer[:end]))
                del buffer[: end + 1]
            if len(buffer) < n_bytes:
                break
            yield replace(head, block=bytes(buffer[:n_bytes]))
            del buffer[:n_bytes]
            head = None


def _head(line: bytes) -> tuple[Frame, int]:
    """A frame without its bytes, and how many these are."""
    try:
        told: Mapping[str, Any] = json.loads(line)
        if "adapters" in told:
            return Frame(adapters=frozenset(map(str, told["adapters"]))), 0
        n_bytes = int(told["bytes"])
        frame = Frame(str(told["path"]), int(told["at"]), bool(told["is_last"]), int(told["mtime_ns"]))
    except (ValueError, TypeError, KeyError):
        raise Garbled("the pod's answer is not understood") from None
    if frame.at < 0 or not 0 <= n_bytes <= BLOCK_MAX:
        raise Garbled("the pod's answer is not understood")
    return frame, n_bytes


def _put(path: Path, chunk: bytes, offset: int) -> bool:
    """Write at an offset; False, and nothing is written, where that would leave a hole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        size = os.fstat(fd).st_size
        if offset > size:
            return False
        view = memoryview(chunk)[max(0, size - offset) :]  # what is here already is the same
        while view:
            written = os.pwrite(fd, view, offset + len(chunk) - len(view))
            view = view[written:]
        return True
    finally:
        os.close(fd)


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if here == root:
            folders[:] = [f for f in folders if f in (*FOLDERS, "checkpoints")]
        for name in names:
            path = here / name
            if path.is_file() and not path.is_symlink():
                yield path
