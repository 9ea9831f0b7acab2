"""Numbers, written down once: metrics.jsonl and TensorBoard under the same keys, and how far the training is."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remote.files import write_atomic
from remote.rundir import Progress, RunDir


class Logbook:
    """The numbers of a run, by step. A resumed run forgets what was written beyond the step it resumes from."""

    def __init__(self, run: RunDir, step: int, tensorboard: bool) -> None:
        run.root.mkdir(parents=True, exist_ok=True)
        _forget_beyond(run.metrics, step)
        self._file = run.metrics.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One line a step and set of numbers."""
        self._file.write(json.dumps({"step": step, "t": round(time.time(), 3), **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def text(self, step: int, name: str, text: str) -> None:
        if self._board is not None:
            self._board.add_text(name, text, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class ProgressFile:
    """`progress.json`, replaced at most once a second; a change of phase is written at once."""

    def __init__(self, path: Path, max_steps: int) -> None:
        self._path = path
        self._last_write = 0.0
        self._now = Progress(0, max_steps, 0.0, "load", time.time(), time.time())

    def update(self, **changed: Any) -> None:
        t = time.time()
        if "phase" in changed and changed["phase"] != self._now.phase:
            changed["phase_since"] = t
            self._last_write = 0.0
        if changed.get("step", self._now.step) != self._now.step:
            changed["last_step_at"] = t
        self._now = Progress(**{**vars(self._now), **changed})
        if t - self._last_write >= 1.0:
            self._last_write = t
            text = json.dumps(dataclasses.asdict(self._now)) + "\n"
            write_atomic(self._path, text.encode(), durable=False)  # the loop does not wait for a network disk


def _forget_beyond(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # torn by a kill
    write_atomic(path, "".join(line + "\n" for line in kept).encode())
