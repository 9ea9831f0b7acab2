"""Where a long recording is cut: at the longest pauses between words whose times are known.

Pure. Every word of a recording is in exactly one of its pieces, usable or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.aligned import Alignment, Spoken

MARGIN_S = 0.3  # of quiet that a piece keeps around its words: CTC says a token late in its sound, never much before
EDGE_SCORE = -2.0  # mean log-probability a frame, e^-2 = 0.14: what lies below was not heard there, but put there
SHORTEST_GAP_S = 0.05  # added to every pause: between words that touch, one cut is as bad as another


@dataclass(frozen=True)
class Piece:
    """A part of a recording, in seconds from its beginning, and why it can't be used; empty where it can."""

    start_s: float
    end_s: float
    words: Sequence[str]
    score: float  # mean log-probability a frame
    reason: str = ""

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def text(self) -> str:
        return " ".join(self.words)


def split(alignment: Alignment, duration_s: float, longest_s: float, min_score: float | None = None) -> list[Piece]:
    """Pieces of at most `longest_s`, with as few and as long pauses cut as can be.

    A piece whose first or last word was hardly heard where it is said to be, whose score lies below `min_score`, or
    which is one word and still too long, has a reason.
    """
    words = alignment.words
    starts = [0, *_cuts(words, duration_s, longest_s)]
    pieces = []
    for first, end in zip(starts, [*starts[1:], len(words)], strict=True):
        start_s, end_s = _span(words, first, end, duration_s)
        score = alignment.score_between(start_s, end_s)
        reason = _why_not(words[first:end], end_s - start_s, longest_s, score, min_score)
        pieces.append(Piece(start_s, end_s, [w.word for w in words[first:end]], score, reason))
    return pieces


def _cuts(words: Sequence[Spoken], duration_s: float, longest_s: float) -> list[int]:
    """Which words begin a piece, the first one apart: the sum over cuts of 1 / pause is least."""
    best = [0.0]  # of the first n words
    came = [0]
    for end in range(1, len(words) + 1):
        choices = []
        for first in range(end - 1, -1, -1):
            start_s, end_s = _span(words, first, end, duration_s)
            if end_s - start_s > longest_s and first < end - 1:
                break  # a word by itself is a piece, however long
            choices.append((best[first] + _cost(words, first), first))
        cost, first = min(choices)
        best.append(cost)
        came.append(first)
    cuts, at = [], len(words)
    while at:
        at = came[at]
        cuts.append(at)
    return [c for c in reversed(cuts) if c]


def _cost(words: Sequence[Spoken], first: int) -> float:
    """Of a piece that begins with this word."""
    if not first:
        return 0.0
    return 1.0 / (max(0.0, words[first].start_s - words[first - 1].end_s) + SHORTEST_GAP_S)


def _span(words: Sequence[Spoken], first: int, end: int, duration_s: float) -> tuple[float, float]:
    """The words with their margins, never beyond the middle of the pause beside them."""
    start_s, end_s = words[first].start_s, words[end - 1].end_s
    before = (words[first - 1].end_s + start_s) / 2 if first else 0.0
    behind = (words[end].start_s + end_s) / 2 if end < len(words) else duration_s
    return max(before, start_s - MARGIN_S, 0.0), min(behind, end_s + MARGIN_S, duration_s)


def _why_not(
    words: Sequence[Spoken], duration_s: float, longest_s: float, score: float, min_score: float | None
) -> str:
    if duration_s > longest_s:
        return f"the word {words[0].word!r} is said to last {duration_s:.1f} s, longer than {longest_s:g} s"
    sounding = [w for w in words if w.end_s > w.start_s]  # a dash at the edge says nothing of where it is
    if not sounding:
        return f"none of its words is heard: {' '.join(w.word for w in words)}"
    for edge in (sounding[0], sounding[-1]):
        if edge.score < EDGE_SCORE:
            return (
                f"its edge {edge.word!r} is hardly heard at {edge.start_s:.2f} s: "
                f"{edge.score:.2f} a frame, below {EDGE_SCORE:g}"
            )
    if min_score is not None and score < min_score:
        return f"its transcript fits its sound with {score:.2f} a frame, below --min-align {min_score:g}"
    return ""
