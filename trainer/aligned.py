"""A transcript in its sound: when each word is said, and how well it fits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Spoken:
    """A word as it stands in the transcript, when it was said, and its mean log-probability a frame.

    Times are seconds from the utterance's own beginning.
    """

    word: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Alignment:
    """`score` is the mean log-probability a frame of the best path: 0 is certainty."""

    id: str
    score: float
    words: Sequence[Spoken]
    frame_s: float = 0.02
    frame_scores_P: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def score_between(self, start_s: float, end_s: float) -> float:
        """The same over a part of the sound."""
        first = min(int(start_s / self.frame_s), max(0, len(self.frame_scores_P) - 1))
        end = max(first + 1, round(end_s / self.frame_s))
        part = self.frame_scores_P[first:end]
        return float(part.mean()) if len(part) else self.score
