"""Sides of a comparison in processes of their own, asked in turn, and what their answers are worth.

A side is the same program called with `--side NAME`: it reads a word a line on stdin and answers one line of JSON.
"""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Side:
    """One side, in a process that stays: what it loaded once is not loaded again."""

    def __init__(self, program: str, name: str, place: Path, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log.open("w")
        bare = {k: v for k, v in os.environ.items() if not k.startswith("PODCTL_")}
        env = {**bare, **own_place(place), "PYTHONPATH": str(ROOT)}
        self._child = subprocess.Popen(
            [sys.executable, program, "--side", name, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )

    def ask(self, word: str) -> dict[str, Any]:
        """Raises RuntimeError with the end of what it said where it ended instead."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(word + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            raise RuntimeError(f"{self.name} ended: " + Path(self._log.name).read_text()[-2000:])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()


def own_place(place: Path) -> dict[str, str]:
    """The environment of a side: its caches lie in this folder, and it asks nobody for anything."""
    return {
        "PODCTL_DISK": str(place / "disk"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "HF_HOME": str(place / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def sides(program: str, names: Sequence[str], place: Path, argv: Sequence[str]) -> Iterator[list[Side]]:
    """All of them, started; ended again whatever happens."""
    started: list[Side] = []
    try:
        for name in names:
            started.append(Side(program, name, place, argv, place / f"{name}.log"))
        yield started
    finally:
        for side in started:
            side.close()


def answer(do: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
    """What a side does: for each word it is sent, the function of that name. What libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps({**do[line.strip()](), "peak_mb": peak_mb()}) + "\n")
        out.flush()


@dataclass(frozen=True)
class Timed:
    """What a piece of work took: by the wall, and of all processors' time."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], Any]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Timed(time.perf_counter() - wall, time.process_time() - cpu)


def peak_mb() -> float:
    """The most memory that this process held so far, resident; since it began, whoever started it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """95 % of the median, over resampled rounds (Efron's percentiles), always the same for the same values."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, least and most."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def ratio(name: str, over: Sequence[float], under: Sequence[float]) -> str:
    """A line: round by round `over` / `under`, with its interval."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, high = interval(ratios)
    return f"{name}: {spread(ratios, 2)}, 95 % of the median {low:.2f}–{high:.2f}"


def where(threads: int, **more: str) -> str:
    """Machine and versions, as a line: a figure names them."""
    from importlib.metadata import version

    names = ("torch", "transformers", "accelerate", "datasets", "numpy")
    versions = ", ".join(f"{n} {version(n)}" for n in names)
    rest = "".join(f", {k} {v}" for k, v in more.items())
    return (
        f"{_processor()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {threads} threads; "
        f"Python {platform.python_version()}, {versions}{rest}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
