"""A run for tests of what watches it: a runner of that name, alive, whose status is whatever the test says."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.pod import wait_until

from remote import machine
from remote.rundir import RUNNING, RunDir, Status, write_dataclass

RUNNER = """import signal, sys, time
def save(*_):
    open(sys.argv[2], "a").write("asked\\n")
signal.signal(signal.SIGTERM, save)
open(sys.argv[2], "a").write("up\\n")
while True:
    time.sleep(0.05)
"""


class FakeRun:
    """Asked to stop it notes that in `told`, and does nothing."""

    def __init__(self, run: RunDir, folder: Path, env: dict[str, str]) -> None:
        self.run = run
        self.told = folder / f"told-{run.root.name}"
        program = folder / "runner.py"
        program.write_text(RUNNER)
        self._process = subprocess.Popen([sys.executable, str(program), str(run.root), str(self.told)], env=env)
        wait_until(self.told.exists, "the runner")
        self.say(RUNNING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.die()

    def say(self, state: str, **more: Any) -> None:
        now = time.time()
        status = Status(self.run.root.name, 1, machine.boot_id(), state, "train", self._process.pid, now, now)
        write_dataclass(self.run.status, dataclasses.replace(status, **more))

    def die(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def was_asked(self) -> bool:
        return "asked" in self.told.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid
