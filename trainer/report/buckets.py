"""Error rates by bucket as tables and charts want them: a field at a time, in an order that people expect. Pure."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 40  # values of one field on a page
FEW = 12
REST = "the rest"


@dataclass(frozen=True)
class Score:
    """One line of a report's table; what an older run did not measure is None."""

    wer: float
    low: float | None
    high: float | None
    cer: float | None
    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None and self.high > self.low


@dataclass(frozen=True)
class Bucket:
    """A value of a field, after training and, where that was measured, before."""

    value: str
    after: Score
    before: Score | None


def whole_of(table: Sequence[Mapping[str, Any]]) -> Score | None:
    """The line for all."""
    return next((score_of(line) for line in table if line.get("set") == "all"), None)


def fields_of(
    table: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] = (), most: int = MOST
) -> dict[str, list[Bucket]]:
    """The buckets of each field, at most so many: of more, those with most words, and one that sums up the others."""
    was = {line.get("set"): score_of(line) for line in before}
    found: dict[str, list[Bucket]] = {}
    for line in table:
        field, is_bucket, value = str(line.get("set", "")).partition("=")
        if is_bucket:
            found.setdefault(field, []).append(Bucket(value, score_of(line), was.get(line["set"])))
    return {field: _few(buckets, most) for field, buckets in found.items()}


def score_of(line: Mapping[str, Any]) -> Score:
    """A line of a table, however much of it there is."""
    return Score(
        wer=_number(line.get("wer")) or 0.0,
        low=_number(line.get("low")),
        high=_number(line.get("high")),
        cer=_number(line.get("cer")),
        substitutions=int(_number(line.get("S")) or 0),
        deletions=int(_number(line.get("D")) or 0),
        insertions=int(_number(line.get("I")) or 0),
        words=int(_number(line.get("N")) or 0),
        utterances=int(_number(line.get("utterances")) or 0),
    )


def in_order(items: Iterable[T], value_of: Callable[[T], str]) -> list[T]:
    """Values with numbers by these (3-4, 5-7, 12+), then those without by the alphabet, then what is unknown."""
    return sorted(items, key=lambda item: _place(value_of(item)))


def _number(value: Any) -> float | None:
    is_one = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_one else None


def _place(value: str) -> tuple[int, list[float], str]:
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", value)]
    if value.lower() in ("", "unknown", "none", REST):
        return (3, [], value)
    if value == "longer":  # than the last edge of durations
        return (1, [], value)
    return (0, numbers, value) if numbers else (2, [], value)


def _few(buckets: Sequence[Bucket], most: int) -> list[Bucket]:
    kept = sorted(buckets, key=lambda b: -b.after.words)
    kept, others = kept[:most], kept[most:]
    # few values are read in their own order, many are looked through for the worst
    ordered = in_order(kept, lambda b: b.value) if len(kept) <= FEW else sorted(kept, key=lambda b: -b.after.wer)
    if not others:
        return ordered
    was = [b.before for b in others if b.before]
    before = _sum(was) if len(was) == len(others) else None
    return [*ordered, Bucket(f"{REST} ({len(others)})", _sum([b.after for b in others]), before)]


def _sum(scores: Sequence[Score]) -> Score:
    """Pooled: all errors by all words. What only the rows could say (interval, characters) is not known."""
    s, d, i, n, utterances = (
        sum(getattr(x, name) for x in scores)
        for name in ("substitutions", "deletions", "insertions", "words", "utterances")
    )
    return Score((s + d + i) / max(1, n), None, None, None, s, d, i, n, utterances)
