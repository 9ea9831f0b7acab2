"""Which frames say which token: the best path of a CTC model through a transcript that is known.

The states of a transcript are its tokens with a blank before, between and behind them (Graves et al., 2006); the path
with the highest product of probabilities is found by dynamic programming over frames (Viterbi), vectorised over
states. That a long recording is cut by such times, and how a word is trusted, follows Kürzinger et al. (2020).

P frames · V vocabulary · L tokens · S states, 2 L + 1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

POINTERS_BYTES = 64 << 20  # of the way back that are held at once: beyond, parts of it are computed a second time


@dataclass(frozen=True)
class Path:
    """The best way of saying these tokens in these frames."""

    frame_scores_P: np.ndarray  # float64: log-probability of what the path says in each frame
    first_L: np.ndarray  # int64: a token's first frame
    last_L: np.ndarray  # and its last

    @property
    def score(self) -> float:
        """Mean log-probability a frame: 0 is certainty. Frames of silence count, and are cheap where it is silent."""
        return float(self.frame_scores_P.mean())

    def score_of(self, first: int, last: int) -> float:
        """The same over the frames `first` … `last`."""
        return float(self.frame_scores_P[first : last + 1].mean())


@dataclass(frozen=True)
class Word:
    """A word with its frames, both inclusive, and its mean log-probability a frame."""

    first: int
    last: int
    score: float


def best_path(
    log_probs_PV: np.ndarray, tokens: Sequence[int], blank: int, held_bytes: int = POINTERS_BYTES
) -> Path | None:
    """The path, or None where the frames can't hold the tokens: one a token, and one between two that are equal.

    Memory is that of the log-probabilities and, for the way back, the larger of `held_bytes` and 2 √P rows of states:
    an hour's alignment (45,000 frames, 100,000 states) takes 0.2 GB, not 5.
    """
    n_frames = len(log_probs_PV)
    states_S = np.full(2 * len(tokens) + 1, blank, np.int64)
    states_S[1::2] = tokens
    may_skip_S = np.zeros(len(states_S), bool)
    may_skip_S[3::2] = states_S[3::2] != states_S[1:-2:2]
    if not n_frames:
        return None
    block = max(isqrt(n_frames), min(n_frames, held_bytes // len(states_S)), 1)
    best_S = np.full(len(states_S), -np.inf)
    best_S[:2] = log_probs_PV[0, states_S[:2]]
    saved = [best_S]  # as a block begins
    for first in range(0, n_frames - block, block):
        best_S = _advanced(log_probs_PV, states_S, may_skip_S, best_S, first, first + block, None)
        saved.append(best_S)
    path_P = np.empty(n_frames, np.int64)
    state = -1
    for number in range(len(saved) - 1, -1, -1):
        first, end = number * block, min((number + 1) * block, n_frames - 1)
        steps = np.zeros((end - first, len(states_S)), np.int8)
        best_S = _advanced(log_probs_PV, states_S, may_skip_S, saved[number], first, end, steps)
        if state < 0:
            last_two = best_S[-2:]
            if not np.isfinite(last_two.max()):
                return None
            state = len(states_S) - len(last_two) + int(last_two.argmax())
            path_P[end] = state
        for frame in range(end, first, -1):
            state -= int(steps[frame - first - 1, state])
            path_P[frame - 1] = state
    return _path(log_probs_PV, states_S, path_P, len(tokens))


def words_of(path: Path, groups: Sequence[Sequence[int]]) -> list[Word]:
    """Frames and score of each word, given the positions of its tokens."""
    found = []
    for positions in groups:
        first, last = int(path.first_L[positions[0]]), int(path.last_L[positions[-1]])
        found.append(Word(first, last, path.score_of(first, last)))
    return found


def _advanced(
    log_probs_PV: np.ndarray,
    states_S: np.ndarray,
    may_skip_S: np.ndarray,
    best_S: np.ndarray,
    first: int,
    end: int,
    steps: np.ndarray | None,
) -> np.ndarray:
    """Of each state the best score at frame `end`, from those at `first`; into `steps` how many states it came up."""
    for frame in range(first + 1, end + 1):
        by_one_S, by_two_S = np.full_like(best_S, -np.inf), np.full_like(best_S, -np.inf)
        by_one_S[1:] = best_S[:-1]
        by_two_S[2:] = np.where(may_skip_S[2:], best_S[:-2], -np.inf)
        came_S = np.maximum(np.maximum(best_S, by_one_S), by_two_S)
        if steps is not None:
            steps[frame - first - 1] = np.where(best_S >= came_S, 0, np.where(by_one_S >= came_S, 1, 2))
        best_S = came_S + log_probs_PV[frame, states_S]
    return best_S


def _path(log_probs_PV: np.ndarray, states_S: np.ndarray, path_P: np.ndarray, n_tokens: int) -> Path:
    frames = np.arange(len(path_P))
    scores_P = log_probs_PV[frames, states_S[path_P]].astype(np.float64)
    of_token = path_P % 2 == 1
    token_P, at = path_P[of_token] // 2, frames[of_token]
    first_L, last_L = np.full(n_tokens, len(path_P)), np.full(n_tokens, -1)
    np.minimum.at(first_L, token_P, at)
    np.maximum.at(last_L, token_P, at)
    return Path(scores_P, first_L, last_L)
