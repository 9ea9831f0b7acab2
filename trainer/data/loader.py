"""Steps and evaluations as batches on the CPU, made by threads a little ahead of the loop.

Everything a batch holds is a function of its place in the plan, so threads and their timing change nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.data.manifest import Manifest
from trainer.data.parquet import keep_groups
from trainer.data.plan import Cut, Plan, cut, seed_of
from trainer.data.pool import decoders
from trainer.recipe.augment import Augment
from trainer.recipe.base import Recipe
from trainer.task import Bad, Batch, Draw, Example, Task

AHEAD = 3  # steps that are decoded while the device works


@dataclass(frozen=True)
class Micro:
    """A micro-batch, and what it was made of: so that it can be made again, smaller."""

    batch: Batch
    padded_s: float
    examples: Sequence[Example]  # the unusable ones too
    draws: Sequence[Draw | None]


@dataclass(frozen=True)
class Loaded:
    """One micro-batch, or None where none of its utterances could be used."""

    micro: Micro | None
    bad: Sequence[Bad]
    audio_s: float


@dataclass(frozen=True)
class Step:
    """What a step holds on this rank. `number` counts from 0."""

    number: int
    epoch: int
    micros: Sequence[Micro]
    bad: Sequence[Bad]
    audio_s: float


class StepLoader:
    """All steps of a training, from one on, for one rank of several."""

    def __init__(self, task: Task[Any, Any], manifest: Manifest, recipe: Recipe, rank: int = 0, world: int = 1) -> None:
        self._sources = recipe.data.sources
        parts, window = manifest.parts(self._sources), recipe.data.shuffle_groups
        self.plan = Plan(manifest.column("duration_s"), recipe.loop, parts, window)
        if any(p.groups is not None for p in parts):
            keep_groups(2 * window)
        self._task, self.manifest, self._recipe = task, manifest, recipe
        self._rank, self._world = rank, world
        self.cut = Cut(recipe.loop.at_once_s)  # memory may teach it more
        self._max_steps = self.plan.max_steps
        self._by_speaker = _positions_by_speaker(manifest) if any(a.join_p for a in recipe.augments) else {}

    def steps(self, first: int, end: int) -> Iterator[Step]:
        """Steps `first` … `end` - 1, decoded ahead by `data.workers` threads."""
        workers = self._recipe.data.workers
        ahead = AHEAD if workers else 0
        with decoders(workers, "audio") as pool:
            waiting: deque[tuple[int, int, list[Future[Loaded]]]] = deque()
            try:
                for number in range(first, end + ahead):
                    if number < end:
                        epoch, micros = self.micros_of(number)
                        waiting.append((number, epoch, [pool.submit(_load, self._task, *m) for m in micros]))
                    if len(waiting) > ahead or (number >= end and waiting):
                        yield _joined(*waiting.popleft())
            finally:
                for _, _, futures in waiting:
                    for f in futures:
                        f.cancel()

    def micros_of(self, step: int) -> tuple[int, list[tuple[list[Example], list[Draw | None]]]]:
        """The step's epoch, and this rank's micro-batches as (examples, draws), nothing decoded yet."""
        place = self.plan.at(step)
        examples = [self.manifest[int(p)] for p in place.positions]
        done = min(1.0, step / self._max_steps)
        own = [self._sources[i].augment for i in self.manifest.sources_at(place.positions)]
        triples = zip(examples, place.passes, own, strict=True)
        draws: list[Draw | None] = [self.draw(e, int(n), done, augment) for e, n, augment in triples]
        sizes = [self._task.size(e, d) for e, d in zip(examples, draws, strict=True)]
        micros = cut(sizes, self.cut)[self._rank :: self._world]
        return place.epoch, [([examples[i] for i in m], [draws[i] for i in m]) for m in micros]

    def recut(self, step: Step) -> Step:
        """The step with no micro-batch larger than memory is known to hold: itself, or read again in parts."""
        if all(len(m.examples) <= self.cut.n_at(m.padded_s) for m in step.micros):
            return step
        micros: list[Micro] = []
        for m in step.micros:
            n = self.cut.n_at(m.padded_s)
            if len(m.examples) <= n:
                micros.append(m)
                continue
            for at in range(0, len(m.examples), n):
                part = part_of(self._task, m, at, at + n)
                micros += [part] if part else []
        return replace(step, micros=micros)

    def augment_at(self, position: int) -> Augment | None:
        """What the source of a position has of its own."""
        return self._sources[self.manifest.sources_at(np.array([position]))[0]].augment

    def draw(self, example: Example, heard: int, done: float = 0.0, augment: Augment | None = None) -> Draw:
        """The utterance's chance when it was heard so often before (its epoch, where sources are not weighted).

        `done` is the share of the training that lies behind, `augment` its source's own.
        """
        seed = seed_of(self._recipe.loop.seed, heard, example.id)
        how = augment or self._recipe.augment
        if not how.join_p:
            return Draw(seed, (), done, augment)
        rng = np.random.default_rng([seed, 2])
        same = self._by_speaker.get(example.speaker)
        partners = []
        for _ in range(how.join_max):
            if rng.random() >= how.join_p:
                break
            pick = int(rng.choice(same)) if same is not None else int(rng.integers(len(self.manifest)))
            partners.append(self.manifest[pick])
        return Draw(seed, tuple(partners), done, augment)


def evaluation_cut(task: Task[Any, Any], examples: Sequence[Example], micro_s: float) -> list[list[Example]]:
    """Every example once, in homogeneous batches."""
    sizes = [task.size(e, None) for e in examples]
    return [[examples[i] for i in m] for m in cut(sizes, Cut(micro_s))]


def evaluation_batches(
    task: Task[Any, Any],
    micros: Sequence[Sequence[Example]],
    workers: int,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Loaded]:
    """These batches, without chance; ends early where `stop` says so."""
    with decoders(workers, "audio") as pool:
        waiting: deque[Future[Loaded]] = deque()
        for n in range(len(micros) + workers):
            if n < len(micros):
                waiting.append(pool.submit(_load, task, micros[n], [None] * len(micros[n])))
            if n >= workers and waiting:
                if stop():
                    for f in waiting:
                        f.cancel()
                    return
                yield waiting.popleft().result()


def part_of(task: Task[Any, Any], micro: Micro, first: int, end: int) -> Micro | None:
    """Some of a micro-batch's examples, made again; None where none of them could be used."""
    return _load(task, micro.examples[first:end], micro.draws[first:end]).micro


def _load(task: Task[Any, Any], examples: Sequence[Example], draws: Sequence[Draw | None]) -> Loaded:
    answers = task.load(examples, draws)
    items = [a for a in answers if not isinstance(a, Bad)]
    triples = zip(examples, draws, answers, strict=True)
    audio_s = sum(task.size(e, d).audio_s for e, d, a in triples if not isinstance(a, Bad))
    bad = [a for a in answers if isinstance(a, Bad)]
    padded_s = task.size(examples[0], draws[0]).padded_s
    micro = Micro(task.collate(items), padded_s, examples, draws) if items else None
    return Loaded(micro, bad, audio_s)


def _joined(number: int, epoch: int, futures: Sequence["Future[Loaded]"]) -> Step:
    loaded = [f.result() for f in futures]
    micros = [m.micro for m in loaded if m.micro is not None]
    return Step(number, epoch, micros, [b for m in loaded for b in m.bad], sum(m.audio_s for m in loaded))


def _positions_by_speaker(manifest: Manifest) -> dict[str, np.ndarray]:
    codes, names = manifest.codes("speaker")
    order = np.argsort(codes, kind="stable").astype(np.int32 if len(codes) < 1 << 31 else np.int64)
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    parts = np.split(order, ends[:-1]) if len(names) else []
    return {name: part for name, part in zip(names, parts, strict=True) if name and len(part)}
