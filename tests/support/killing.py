"""Trainings that are killed at a chosen boundary of a save: run as a program, it forks one child a training.

usage: killing.py EXPERIMENT RUN_DIR count SAVE          → prints how many boundaries the SAVE-th save has
       killing.py EXPERIMENT RUN_DIR kill SAVE AT [AT …] → for each AT: a fresh run killed there, then resumed

A boundary lies before and after every open-for-writing, fsync, rename, mkdir, remove and rmdir of a save, and in the
middle of the two big writes. The parent has loaded torch and never used it, so that forking is safe.
"""

import functools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers.modeling_utils

import trainer.train as training
from remote.rundir import RunDir
from trainer import desk


class Killer:
    """Counts boundaries inside one save, and ends this process at one of them."""

    def __init__(self, save: int, at: int | None) -> None:
        self.save, self.at = save, at
        self.saves = self.seen = 0
        self.inside = False

    def boundary(self) -> None:
        if not self.inside:
            return
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1

    def around(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.boundary()
            result = real(*args, **kwargs)
            self.boundary()
            return result

        setattr(owner, name, wrapped)

    def torn(self, owner: Any, name: str, path_at: int) -> None:
        """A write that can be cut in its middle."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.boundary()
            result = real(*args, **kwargs)
            path = args[path_at] if len(args) > path_at else kwargs["filename"]
            if self.inside and self.seen == self.at:
                os.truncate(path, Path(path).stat().st_size // 2)
            self.boundary()
            self.boundary()
            return result

        setattr(owner, name, wrapped)

    def arm(self) -> None:
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            self.around(os, name)
        self.torn(torch, "save", 1)
        for owner in (safetensors.torch, transformers.modeling_utils):
            if hasattr(owner, "save_file"):
                self.torn(owner, "save_file", 1)
            if hasattr(owner, "safe_save_file"):
                self.torn(owner, "safe_save_file", 1)
        sys.addaudithook(self._on_open)
        real = desk.Desk.save

        def save(its_desk: Any) -> Any:
            self.inside = self.saves == self.save
            self.saves += 1
            try:
                return real(its_desk)
            finally:
                self.inside = False

        desk.Desk.save = save  # type: ignore[method-assign]

    def _on_open(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[1], str) and any(c in args[1] for c in "wax+"):
            self.boundary()


def child(work: Callable[[], None]) -> int:
    """The wait status of a fork that did the work."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def main(argv: list[str]) -> None:
    experiment, run_dir, what, save, *points = argv

    def run(to: Path, at: int | None, armed: bool) -> int:
        def work() -> None:
            killer = Killer(int(save), at)
            if armed:
                killer.arm()
            training.train(Path(experiment), RunDir(to))
            if what == "count":
                Path(f"{run_dir}.count").write_text(str(killer.seen))

        return child(work)

    if what == "count":
        assert run(Path(run_dir), None, True) == 0
        print(Path(f"{run_dir}.count").read_text())
        return
    for at in points:
        to = Path(f"{run_dir}-{save}-{at}")
        status = run(to, int(at), True)
        assert os.WIFSIGNALED(status), f"boundary {at} was never reached"
        left = sorted(p.relative_to(to).as_posix() for p in (to / "checkpoints").rglob("*"))
        assert run(to, None, False) == 0, f"no resume after a kill at {at}: {left}"
        print(json.dumps({"at": int(at), "dir": str(to)}), flush=True)
        if len(points) > 4:
            compare = Path(f"{run_dir}.keep-{save}-{at}")
            shutil.copytree(to / "checkpoints", compare)
            shutil.rmtree(to)


if __name__ == "__main__":
    main(sys.argv[1:])
