"""What of a run's directory is new to whoever has some of it already, over stdout; on the pod, launched by path.

    python delta.py RUN_DIR <HAVE.json

HAVE is `{"files": {path: [size, mtime_ns]}, "log": bool}`, paths relative to the run directory; the log only where it
is asked for. What comes is frames: a line of JSON, then as many bytes as its `bytes` says.

    {"path", "at", "bytes", "is_last", "size", "mtime_ns"}     a piece of a file, to stand at byte `at`
    {"adapters": ["checkpoints/step-00000400", …]}             the last frame: these are worth keeping

A file that grows (log, metrics, events) comes from a little before the size that is had, so that the reader sees from
the overlap whether it is still the same file. Others come whole. Of checkpoints, the adapters of the newest and of the
best complete one come, since those are small. `python -I -S delta.py …` starts quickest.
"""

import os
import sys

if __name__ == "__main__":  # take our own package, not a folder of the same name beside the user's code
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

import json
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List

import remote
from remote.files import read_json
from remote.rundir import RunDir

OVERLAP = 1024
BLOCK = 1 << 18


def grows(run: RunDir, path: Path) -> bool:
    """Is this file only ever written at its end?"""
    return path in (run.log, run.metrics, run.quarantine) or run.tensorboard in path.parents


def worth_having(run: RunDir, with_log: bool) -> Iterator[Path]:
    """The files that are small, in the order of their use to somebody whose link may break at any moment."""
    yield from (run.status, run.progress, run.best, run.experiment, run.source, run.patch, run.env, run.metrics)
    if with_log:
        yield run.log
    yield run.quarantine
    for folder in (run.tensorboard, run.reports, run.blackbox, run.guard):
        yield from _files_under(folder)


def adapters(run: RunDir) -> List[Path]:
    """The newest complete checkpoint and the best one, where what they hold is adapters and not whole models."""
    try:
        found = sorted(p for p in run.checkpoints.iterdir() if p.name.startswith("step-"))
    except OSError:
        return []
    found = [p for p in found if (p / "COMPLETE").is_file()]
    best = read_json(run.best)
    step = best.get("step") if isinstance(best, dict) else None
    wanted = [p for p in found if p == found[-1] or (isinstance(step, int) and p == run.checkpoint(step))]
    return [p for p in wanted if any(f.name.startswith("adapter_") for f in _files_under(p / "model"))]


def send(run: RunDir, have: Dict[str, Any], out: IO[bytes]) -> None:
    """All frames. A file that goes away meanwhile is left out; one that shrinks ends early."""
    files = have.get("files", {})
    for path in worth_having(run, bool(have.get("log"))):
        _send_file(run, path, files, out)
    kept = adapters(run)
    for checkpoint in kept:
        for path in [
            *_files_under(checkpoint / "model"),
            checkpoint / "COMPLETE",
        ]:  # the mark comes last, as it was made
            _send_file(run, path, files, out)
    _frame(out, {"adapters": [_name(run, p) for p in kept]}, b"")


def _send_file(run: RunDir, path: Path, files: Dict[str, Any], out: IO[bytes]) -> None:
    try:
        with open(path, "rb") as f:
            stat = os.fstat(f.fileno())
            had_size, had_mtime_ns = files.get(_name(run, path), (-1, 0))
            if (had_size, had_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                return
            at = max(0, had_size - OVERLAP) if grows(run, path) and had_size <= stat.st_size else 0
            f.seek(at)
            facts = {"path": _name(run, path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            while True:
                block = f.read(min(BLOCK, stat.st_size - at))
                is_last = not block or at + len(block) >= stat.st_size
                _frame(out, dict(facts, at=at, bytes=len(block), is_last=is_last), block)
                at += len(block)
                if is_last:
                    return
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return


def _frame(out: IO[bytes], head: Dict[str, Any], block: bytes) -> None:
    out.write(json.dumps(head).encode("ascii") + b"\n" + block)
    out.flush()


def _name(run: RunDir, path: Path) -> str:
    return path.relative_to(run.root).as_posix()


def _files_under(root: Path) -> Iterator[Path]:
    """Plain files, in order; what is half written, and links, which may lead anywhere, are none."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if not name.endswith(".tmp") and path.is_file() and not path.is_symlink():
                yield path


def main(argv: List[str]) -> int:
    """0 once all is sent; 2 for a command that is none."""
    try:
        have = json.loads(sys.stdin.buffer.read() or b"{}")
    except ValueError:
        have = None
    if len(argv) != 2 or not isinstance(have, dict):
        print("usage: python delta.py RUN_DIR <HAVE.json", file=sys.stderr)
        return 2
    try:
        send(RunDir(os.path.abspath(argv[1])), have, sys.stdout.buffer)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody listens any more; nothing is left to be flushed
        return 1
    return 0


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(remote.__file__ or "")) != _HERE:
        sys.exit("{} is not this tool's remote package".format(remote.__file__))
    sys.exit(main(sys.argv))
