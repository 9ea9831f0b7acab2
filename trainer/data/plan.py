"""Which utterances a step holds, and how it is cut: pure functions of seed, epoch and step.

The step is drawn at random, then sorted and cut; memory only decides the cut. So another GPU or another number of ranks
trains the same thing, and a resume needs no more than the step's number.
"""

import bisect
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.recipe.loop import Loop
from trainer.task import Size


@dataclass(frozen=True)
class Place:
    """Where a step lies: its epoch, and which positions of the manifest it holds."""

    step: int
    epoch: int
    positions: np.ndarray  # int64


class Plan:
    """All steps of a training over utterances of these lengths (seconds, shape (N,))."""

    def __init__(self, durations_s: np.ndarray, loop: Loop) -> None:
        self._durations_s = durations_s
        self._loop = loop
        self._starts = [0]  # the first step of each epoch seen so far
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def max_steps(self) -> int:
        if self._loop.steps is not None:
            return self._loop.steps
        assert self._loop.epochs is not None
        return max(1, self.step_at(self._loop.epochs))

    def step_at(self, epochs: float) -> int:
        """The first step (from 0) before which so many epochs are done."""
        whole = math.floor(epochs)
        part = epochs - whole
        # 0.7 of ten steps are seven, whatever a float says
        return self._first_step(whole) + (math.ceil(part * self._steps_in(whole) - 1e-9) if part > 0 else 0)

    def at(self, step: int) -> Place:
        """What the step (from 0) holds."""
        while self._starts[-1] <= step:
            self._first_step(len(self._starts))
        epoch = bisect.bisect_right(self._starts, step) - 1
        order, cuts = self._epoch(epoch)
        k = step - self._starts[epoch]
        return Place(step, epoch, order[cuts[k] : cuts[k + 1]])

    def epoch_at(self, step: int) -> float:
        """How many epochs are done after so many steps."""
        if step <= 0:
            return 0.0
        place = self.at(step - 1)
        return place.epoch + (step - self._starts[place.epoch]) / self._steps_in(place.epoch)

    def _first_step(self, epoch: int) -> int:
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self._steps_in(len(self._starts) - 1))
        return self._starts[epoch]

    def _steps_in(self, epoch: int) -> int:
        if self._loop.step_utts is not None:
            return math.ceil(len(self._durations_s) / self._loop.step_utts)
        return len(self._epoch(epoch)[1]) - 1

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order, and where its steps begin and end in it."""
        if self._last is None or self._last[0] != epoch:
            n = len(self._durations_s)
            order = np.random.Generator(np.random.Philox(key=[self._loop.seed, epoch])).permutation(n)
            if self._loop.step_utts is not None:
                cuts = np.append(np.arange(0, n, self._loop.step_utts), n)
            else:
                before = np.concatenate([[0.0], np.cumsum(self._durations_s[order])[:-1]])
                step_of = (before / self._loop.step_s).astype(np.int64)
                cuts = np.append(np.flatnonzero(np.diff(step_of, prepend=-1)), n)
            self._last = (epoch, order, cuts)
        return self._last[1], self._last[2]


def cut(sizes: Sequence[Size], micro_s: float) -> list[list[int]]:
    """A step's utterances in micro-batches: each homogeneous in padded length and at most `micro_s` padded seconds.

    The costliest come first, so what does not fit into memory fails at once. Indices are into `sizes`.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i].padded_s, i))
    micros: list[list[int]] = []
    for i in order:
        padded_s = sizes[i].padded_s
        last = micros[-1] if micros else None
        if last and sizes[last[0]].padded_s == padded_s and (len(last) + 1) * padded_s <= micro_s:
            last.append(i)
        else:
            micros.append([i])
    return micros


def seed_of(*parts: object) -> int:
    """A 63-bit seed out of anything printable: the same everywhere, for ever."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
