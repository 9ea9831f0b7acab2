"""Prep stages: what must be on the volume before the training starts, made once and not again on a paid GPU.

A stage is skipped when its stamp says that the same command has left these outputs from the same inputs. Inputs are
told apart by size and modification time, not by content: hashing 100 GB of audio costs more GPU time than it can save,
and a copy with new times only makes a stage run once more.

There is a stamp an output, so two stages that write the same file never believe in each other's work. The stamps go
before a stage begins: one that is killed half-way has none.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from remote.clock import Clock, duration
from remote.files import read_json, write_json
from remote.rundir import Stage, Volume


class PrepFailed(Exception):
    """A stage cannot run, failed, or left out an output; says which stage, and what to do."""


def prepare(
    stages: Sequence[Stage], volume: Volume, clock: Clock, say: Callable[[str], None], run: Callable[[str], int]
) -> None:
    """Bring every stage up to date, in order. `run` gives a shell command's exit code. Raises PrepFailed."""
    for i, stage in enumerate(stages, 1):
        _Step(stage, "prep {}/{}".format(i, len(stages)), volume).bring_up_to_date(clock, say, run)


class _Step:
    def __init__(self, stage: Stage, name: str, volume: Volume) -> None:
        self._stage = stage
        self._name = "{}: {}".format(name, _one_line(stage.run))
        self._short = name
        self._data = volume.data
        marks = [str(self._data / o) for o in stage.outputs] or ["{}\0{}".format(stage.run, stage.inputs)]
        self._stamps = [volume.cache / "prep" / (_digest(m) + ".json") for m in marks]

    def bring_up_to_date(self, clock: Clock, say: Callable[[str], None], run: Callable[[str], int]) -> None:
        record = self._record()
        if not self._missing() and all(read_json(stamp) == record for stamp in self._stamps):
            say("✓ {} unchanged".format(self._name))
            return
        say(self._name)
        for stamp in self._stamps:
            if stamp.exists():
                stamp.unlink()
        for output in self._stage.outputs:
            (self._data / output).parent.mkdir(parents=True, exist_ok=True)
        began = clock.now()
        code = run(self._stage.run)
        if code:
            raise PrepFailed("{} failed with exit code {}: {}".format(self._short, code, _one_line(self._stage.run)))
        missing = self._missing()
        if missing:
            raise PrepFailed(
                "{} ended well but did not leave {}: its `outputs` are relative to {}".format(
                    self._short, ", ".join(missing), self._data
                )
            )
        for stamp in self._stamps:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            write_json(stamp, record)
        say("✓ {} {}".format(self._name, duration(clock.now() - began)))

    def _record(self) -> Dict[str, Any]:
        """What a stamp says; taken before the stage runs, so that an input that changes meanwhile counts as changed."""
        return {
            "run": self._stage.run,
            "inputs": {i: self._fingerprint(i) for i in self._stage.inputs},
            "outputs": list(self._stage.outputs),
        }

    def _fingerprint(self, name: str) -> str:
        path = self._data / name
        if not path.exists():
            raise PrepFailed(
                "{} reads {}, which is not there: put it on the volume, or have an earlier stage make it".format(
                    self._short, path
                )
            )
        return _digest(json.dumps(_listing(path)))

    def _missing(self) -> List[str]:
        return [o for o in self._stage.outputs if not (self._data / o).exists()]


def _listing(path: Path) -> List[Any]:
    """Name, size and modification time of a file, or of every file below a folder."""
    if not path.is_dir():
        stat = path.stat()
        return [["", stat.st_size, stat.st_mtime_ns]]
    found = []
    for folder, folders, files in os.walk(str(path)):
        folders.sort()
        for name in sorted(files):
            full = os.path.join(folder, name)
            try:
                stat = os.stat(full)
                found.append([os.path.relpath(full, str(path)), stat.st_size, stat.st_mtime_ns])
            except OSError:
                found.append([os.path.relpath(full, str(path)), -1, 0])  # a link to nowhere
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _one_line(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= 100 else line[:97] + "..."
