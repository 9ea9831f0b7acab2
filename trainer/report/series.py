"""Curves out of metrics.jsonl: cleaned, thinned for a page, smoothed, and what their times say. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

Line = Mapping[str, Any]  # of metrics.jsonl: step, t (Unix seconds), and numbers by name
BREAK = 10.0  # an interval this many times the median one holds a stop and a resume, or a machine that slept


@dataclass(frozen=True)
class Curve:
    """A number by step, both finite, in the order of steps."""

    steps: Sequence[int]
    values: Sequence[float]

    def __bool__(self) -> bool:
        return bool(self.steps)


def read_lines(text: str) -> list[Line]:
    """What is whole of a metrics.jsonl; a line that was torn by a kill is no line."""
    found: list[Line] = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


def curve(lines: Sequence[Line], key: str) -> Curve:
    """Every finite value of a name."""
    points = [(line["step"], line[key]) for line in lines if _is_number(line.get(key))]
    points.sort(key=lambda p: p[0])
    return Curve([p[0] for p in points], [float(p[1]) for p in points])


def keys(lines: Sequence[Line], prefix: str) -> list[str]:
    """The names that begin so, in the order in which they were first written."""
    return list(dict.fromkeys(k for line in lines for k in line if k.startswith(prefix)))


def thin(whole: Curve, most: int = 800) -> Curve:
    """At most so many points: the ends, and of each stretch of the curve its lowest and its highest."""
    n = len(whole.steps)
    if n <= most:
        return whole
    n_stretches = max(1, (most - 2) // 2)
    kept = {0, n - 1}
    for i in range(n_stretches):
        stretch = range(i * n // n_stretches, (i + 1) * n // n_stretches)
        kept |= {min(stretch, key=whole.values.__getitem__), max(stretch, key=whole.values.__getitem__)}
    at = sorted(kept)
    return Curve([whole.steps[i] for i in at], [whole.values[i] for i in at])


def smooth(whole: Curve, over: int = 0) -> Curve:
    """A mean over about so many points (a thirtieth of them by default) that lags neither way.

    An exponential mean (without a slow start) from the left and one from the right, and the middle of both.
    """
    over = over or max(1, len(whole.steps) // 30)
    from_left = _exponential(whole.values, over)
    from_right = _exponential(whole.values[::-1], over)[::-1]
    return Curve(whole.steps, [(a + b) / 2 for a, b in zip(from_left, from_right, strict=True)])


@dataclass(frozen=True)
class Pace:
    """Wall time of a step between two log lines, its saves included, evaluations not."""

    step: int
    seconds: float  # a step
    phase: int


def paces(lines: Sequence[Line]) -> list[Pace]:
    """A pace each log line; breaks are left out."""
    found: list[tuple[Pace, float]] = []
    before: Line | None = None  # the line after which steps alone followed
    for line in lines:
        if not _is_number(line.get("t")):
            continue
        if "lr" not in line:
            # an evaluation within the interval: no time of steps alone is known
            before = line if before is None or line["step"] == before["step"] else None
            continue
        n = line["step"] - before["step"] if before else 0
        if before and n > 0:
            took = line["t"] - before["t"]
            found.append((Pace(line["step"], took / n, int(line.get("phase", 1))), took))
        before = line
    usual = median([took for _, took in found]) if found else 0.0
    return [pace for pace, took in found if 0 < took <= BREAK * usual]


def evaluations(lines: Sequence[Line]) -> Curve:
    """Seconds that each evaluation of dev took, where a log line of the same step says when it began."""
    steps, values = [], []
    for a, b in pairwise(lines):
        is_one = "lr" in a and "dev/wer" in b and a["step"] == b["step"]
        if is_one and _is_number(a.get("t")) and _is_number(b.get("t")) and b["t"] >= a["t"]:
            steps.append(b["step"])
            values.append(b["t"] - a["t"])
    return Curve(steps, values)


def phases(lines: Sequence[Line]) -> list[tuple[int, int]]:
    """(phase, first step that was logged in it), from the second phase on."""
    found: dict[int, int] = {}
    for line in lines:
        if _is_number(line.get("phase")):
            found.setdefault(int(line["phase"]), line["step"])
    return sorted(found.items())[1:]


def _exponential(values: Sequence[float], over: int) -> list[float]:
    decay = 1 - 1 / over
    mean = weight = 0.0
    found = []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        found.append(mean / weight)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
