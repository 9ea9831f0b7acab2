"""Checkpoints: written beside, flushed, renamed, marked complete with checksums; kept by rule.

    checkpoints/step-00000400/
        model/      loadable alone
        state/      optimizer.pt, state.json: what a resume needs beyond the model
        COMPLETE    {"schema", "step", "sha256": {file: digest}}: without it, the rest was never finished

Killed at any moment, what is complete stays complete, and what isn't is swept away by the next save.
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.fence import Fence
from remote.files import fsync_path, read_json, write_json
from trainer.errors import BadCheckpoint, NoSpace

log = logging.getLogger(__name__)

SCHEMA = 1
COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class Checkpoint:
    """A complete one. `metrics` are dev's at that step, empty where none was measured."""

    path: Path
    step: int
    metrics: dict[str, float]

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def state(self) -> Path:
        return self.path / "state"


def save_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    fence: Fence,
    metrics: dict[str, float] | None = None,
) -> Checkpoint:
    """Publish what `write` puts into the directory it is given (which has `model/` and `state/`).

    Raises NoSpace with all earlier checkpoints whole, Superseded where a newer attempt writes this run.
    """
    final = root / f"step-{step:08d}"
    beside = root / f".step-{step:08d}.{fence.epoch}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, fence)
        for part in ("model", "state"):
            (beside / part).mkdir(parents=True)
        write(beside)
        digests = _flush(beside)
        fence.check()
        if final.exists():  # the same step again: an earlier attempt got this far and was not asked to stop there
            _discard(final, fence)
        os.rename(beside, final)
        fsync_path(root)
        fence.check()
        write_json(final / COMPLETE, {"schema": SCHEMA, "step": step, "metrics": metrics or {}, "sha256": digests})
    except Exception as e:
        if _is_full(e, root):
            raise NoSpace(
                f"the disk is full: step {step} could not be saved under {root}; earlier checkpoints are whole",
                "free space there (or lower loop.keep_last), then run the same command again: it resumes",
            ) from e
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # nothing there once it is renamed
    return Checkpoint(final, step, metrics or {})


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """All complete ones, oldest first. Nothing is hashed: see `verify`."""
    found = []
    for path in sorted(root.glob("step-*")) if root.is_dir() else []:
        mark = read_json(path / COMPLETE)
        if isinstance(mark, dict) and mark.get("schema") == SCHEMA:
            found.append(Checkpoint(path, int(mark["step"]), dict(mark["metrics"])))
    return found


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest complete one whose every byte is as it was written; a damaged one is named and passed over."""
    for checkpoint in reversed(complete_checkpoints(root)):
        try:
            verify(checkpoint)
            return checkpoint
        except BadCheckpoint as e:
            log.warning("%s; an older one is used", e.message)
    return None


def verify(checkpoint: Checkpoint) -> None:
    """Raises BadCheckpoint where a file is missing or differs from its checksum."""
    for name, digest in read_json(checkpoint.path / COMPLETE)["sha256"].items():
        path = checkpoint.path / name
        if not path.is_file() or sha256_of(path) != digest:
            raise BadCheckpoint(f"{path} is damaged: it differs from its checksum")


def prune(
    root: Path, keep_last: int, keep_best: int, better: Callable[[dict[str, float]], float], fence: Fence
) -> None:
    """Delete what is neither among the newest nor among the best; `better` gives a number, lower is better."""
    fence.check()
    found = complete_checkpoints(root)
    keep = {c.step for c in found[-keep_last:]} | {c.step for c in best_first(found, better)[:keep_best]}
    for checkpoint in found:
        if checkpoint.step not in keep:
            _discard(checkpoint.path, fence)


def best_first(found: Sequence[Checkpoint], better: Callable[[dict[str, float]], float]) -> list[Checkpoint]:
    """Those with metrics, the best first; of equals the earlier one."""
    return sorted((c for c in found if c.metrics), key=lambda c: (better(c.metrics), c.step))


def sweep(root: Path, fence: Fence) -> None:
    """Remove what earlier, killed saves and deletions left. Only the run's one writer may."""
    fence.check()
    for path in root.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob("step-*"):
        if not (path / COMPLETE).exists():
            _discard(path, fence)


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _is_full(e: Exception, root: Path) -> bool:
    """Whether a write failed for lack of room: Python says so by errno, safetensors in words, torch not at all."""
    if isinstance(e, OSError):
        return e.errno in (errno.ENOSPC, errno.EDQUOT)
    said = str(e)
    if "No space left" in said or "quota" in said.lower():
        return True
    return isinstance(e, RuntimeError) and shutil.disk_usage(root).free < 1 << 20


def _discard(path: Path, fence: Fence) -> None:
    """Renamed out of sight first: a half deleted checkpoint must not look like one."""
    fence.check()
    trash = path.with_name(f".trash-{path.name}.{fence.epoch}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _flush(directory: Path) -> dict[str, Any]:
    digests = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        fsync_path(path)
        digests[path.relative_to(directory).as_posix()] = sha256_of(path)
    for folder in sorted(p for p in directory.rglob("*") if p.is_dir()):
        fsync_path(folder)
    fsync_path(directory)
    return digests
