"""Which utterances a step holds, and how it is cut: pure functions of seed, epoch and step.

The step is drawn at random, then sorted and cut; memory only decides the cut. So another GPU or another number of ranks
trains the same thing, and a resume needs no more than the step's number.
"""

import bisect
import hashlib
import math
from collections.abc import Mapping, Sequence
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
    passes: np.ndarray  # int64: how often each utterance was heard before


@dataclass(frozen=True)
class Part:
    """One source: its positions, how often an epoch holds it, and which group each lies in where sound is read so."""

    positions: np.ndarray
    weight: float = 1.0
    groups: np.ndarray | None = None


class Plan:
    """All steps of a training over utterances of these lengths (seconds, shape (N,)).

    An epoch holds each source as often as its weight says; without `parts` there is one, heard once. A source of N
    utterances and weight w gives each epoch the next round(w · N) of an endless row of permutations of itself, so every
    utterance of it is heard equally often, whatever the weight.
    """

    def __init__(self, durations_s: np.ndarray, loop: Loop, parts: Sequence[Part] = (), window: int = 16) -> None:
        self._durations_s = durations_s
        self._window = window  # groups that are shuffled among each other
        self._parts = [p for p in parts if len(p.positions)]
        self._is_plain = all(p.weight == 1 and p.groups is None for p in self._parts)
        self._sizes = [max(1, round(p.weight * len(p.positions))) for p in self._parts]
        self._n = len(durations_s) if self._is_plain else sum(self._sizes)
        self._loop = loop
        self._starts = [0]  # the first step of each epoch seen so far
        self._last: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

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
        order, cuts, passes = self._epoch(epoch)
        k = step - self._starts[epoch]
        return Place(step, epoch, order[cuts[k] : cuts[k + 1]].astype(np.int64), passes[cuts[k] : cuts[k + 1]])

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
            return math.ceil(self._n / self._loop.step_utts)
        return len(self._epoch(epoch)[1]) - 1

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The epoch's order, where its steps begin and end in it, and the pass that each utterance is in."""
        if self._last is None or self._last[0] != epoch:
            n = self._n
            # half the memory of int64, the same order
            everyone = np.arange(n, dtype=np.int32 if n < 1 << 31 else np.int64)
            order = np.random.Generator(np.random.Philox(key=[self._loop.seed, epoch])).permutation(everyone)
            del everyone
            passes = np.broadcast_to(np.int64(epoch), (n,))
            if not self._is_plain:
                drawn = [self._drawn(i, epoch) for i in range(len(self._parts))]
                # sources in a random row, each in its own order: what lies together is still read together
                label = np.repeat(np.arange(len(drawn)), self._sizes)[order]
                order, passes = np.empty(n, np.int64), np.empty(n, np.int64)
                for i, (chosen, counted) in enumerate(drawn):
                    order[label == i], passes[label == i] = chosen, counted
            if self._loop.step_utts is not None:
                cuts = np.append(np.arange(0, n, self._loop.step_utts), n)
            else:
                assert self._loop.step_s is not None
                cuts = _cuts_of_seconds(self._durations_s, order, self._loop.step_s)
            self._last = (epoch, order, cuts, passes)
        return self._last[1:]

    def _drawn(self, part: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What an epoch takes of a source, and the pass over the source that each is in."""
        positions = self._parts[part].positions
        first, end = epoch * self._sizes[part], (epoch + 1) * self._sizes[part]
        chosen, passes = [], []
        for n in range(first // len(positions), -(-end // len(positions))):
            rng = np.random.Generator(np.random.Philox(key=[self._loop.seed, (part + 1) << 32 | n]))
            at = n * len(positions)
            taken = positions[_shuffled(self._parts[part], rng, self._window)[max(0, first - at) : end - at]]
            chosen.append(taken)
            passes.append(np.full(len(taken), n, np.int64))
        return np.concatenate(chosen), np.concatenate(passes)


def _cuts_of_seconds(durations_s: np.ndarray, order: np.ndarray, step_s: float) -> np.ndarray:
    """Where steps begin in an order, each with the first utterance at or behind a multiple of `step_s`; and its end.

    A million at a time: the sums of ten million would cost more memory than all else.
    """
    cuts, before, last = [], 0.0, -1
    for at in range(0, len(order), 1 << 20):
        ends = np.concatenate([[before], durations_s[order[at : at + (1 << 20)]]]).cumsum()
        step_of = (ends[:-1] / step_s).astype(np.int64)
        cuts.append(at + np.flatnonzero(np.diff(step_of, prepend=last)))
        before, last = float(ends[-1]), int(step_of[-1])
    return np.append(np.concatenate(cuts), len(order))


def _shuffled(part: Part, rng: np.random.Generator, window: int) -> np.ndarray:
    """An order of a source: any, or where sound is read in groups, groups in any order and so many mixed at a time."""
    n = len(part.positions)
    if part.groups is None:
        return rng.permutation(n)
    _, group = np.unique(part.groups, return_inverse=True)
    place = rng.permutation(int(group.max()) + 1)  # of each group, in the row of groups
    return np.lexsort((rng.random(n), place[group] // window))


class Cut:
    """How many utterances fit into memory at once: padded seconds, and what was learnt of some padded lengths.

    It changes no result, only how a step is cut; all ranks have the same.
    """

    def __init__(self, micro_s: float, most: Mapping[float, int] | None = None) -> None:
        self.micro_s = micro_s
        self.most = dict(most or {})  # padded seconds → utterances at most

    def n_at(self, padded_s: float) -> int:
        """How many utterances of that length: never more than fit of a shorter one, and at least one."""
        fits = [n for seconds, n in self.most.items() if seconds <= padded_s]
        return max(1, min([int(self.micro_s / padded_s + 1e-9), *fits]))

    def learn(self, padded_s: float, n: int) -> None:
        """From here on at most `n` of that length, or longer."""
        self.most[padded_s] = min(n, self.most.get(padded_s, n))


def cut(sizes: Sequence[Size], how: Cut) -> list[list[int]]:
    """A step's utterances in micro-batches, each homogeneous in padded length. Indices are into `sizes`.

    The costliest come first, so what does not fit into memory fails at once.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i].padded_s, i))
    micros: list[list[int]] = []
    for i in order:
        padded_s = sizes[i].padded_s
        last = micros[-1] if micros else None
        if last and sizes[last[0]].padded_s == padded_s and len(last) < how.n_at(padded_s):
            last.append(i)
        else:
            micros.append([i])
    return micros


def seed_of(*parts: object) -> int:
    """A 63-bit seed out of anything printable: the same everywhere, for ever."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
