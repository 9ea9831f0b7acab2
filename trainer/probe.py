"""Memory is tried before the first step: the worst micro-batch of each length, out of nothing and leaving nothing.

What does not fit is cut finer from the start; with `loop.micro_s: auto` the cut itself is found. All ranks learn the
same.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from trainer.data.loader import StepLoader
from trainer.data.manifest import Manifest
from trainer.data.plan import Cut
from trainer.errors import OutOfMemory
from trainer.gradient import Gradient, free_memory, is_out_of_memory
from trainer.machine import Machine
from trainer.recipe.base import Recipe
from trainer.recipe.loop import Loop
from trainer.task import Bad, Draw, Example, Task
from trainer.untouched import untouched

log = logging.getLogger(__name__)

DRAWS = 8  # of each length, early and late in the training: speeds, joins, whole windows
TRIED = 24  # lengths at most, the longest among them
SEARCHED = 10  # lengths at most that a cut is searched for
MARGIN = 0.08  # of the memory that a searched cut leaves free: fragments, and what a real batch has more

Attempt = Callable[["LengthClass", int], None]  # tries so many utterances of a length; raises where they don't fit


@dataclass(frozen=True)
class LengthClass:
    """Utterances of one padded length, as a step meets them."""

    padded_s: float
    tokens: int  # of the longest transcript
    mean: float  # utterances that a step holds of it
    most: int  # and hardly ever more


def wants_trial(how: Loop, device: torch.device) -> bool:
    if how.try_memory == "auto":
        return device.type in ("cuda", "mps")
    return how.try_memory == "always"


def try_memory(gradient: Gradient, loader: StepLoader, recipe: Recipe, machine: Machine) -> None:
    """Teaches the loader's cut what fits. Raises OutOfMemory where one utterance alone does not."""
    began = time.monotonic()
    task, module, device = gradient.task, gradient.parts.module, machine.device
    classes = length_classes(task, loader, recipe)
    gauge = Gauge(device, MARGIN if recipe.loop.micro_s == "auto" else 0.0)

    def attempt(length: LengthClass, n: int) -> None:
        with gauge:
            gradient.try_out(task.dummy(n, length.padded_s, length.tokens))

    with untouched(module, device):
        if recipe.loop.micro_s == "auto":
            loader.cut = search(thinned(classes, SEARCHED), attempt, machine)
            share_s = sum(c.mean * c.padded_s for c in classes) / machine.world
            loader.cut.micro_s = max(classes[0].padded_s, min(loader.cut.micro_s, share_s))  # work for every rank
        else:
            teach(loader.cut, thinned(classes, TRIED), attempt, machine)
    longest = classes[0]
    n = min(longest.most, loader.cut.n_at(longest.padded_s))
    log.info(
        "memory was tried at %d lengths in %.1f s: largest %d × %.1f s%s",
        *(len(classes), time.monotonic() - began, n, longest.padded_s, gauge.said),
    )


def teach(cut: Cut, classes: Sequence[LengthClass], attempt: Attempt, machine: Machine) -> None:
    """Each length's worst micro-batch, the longest first; what does not fit is halved until it does."""
    for length in classes:
        n = asked = min(length.most, cut.n_at(length.padded_s))
        while not fits(attempt, length, n, machine):
            _refuse_one(length, n)
            n //= 2
        if n < asked:
            cut.learn(length.padded_s, n)
            log.info("%d utterances of %g s don't fit into memory: at most %d at once", asked, length.padded_s, n)


def search(classes: Sequence[LengthClass], attempt: Attempt, machine: Machine) -> Cut:
    """The cut that takes as much at once as fits of each length, the longest first."""
    cut = Cut(0.0)
    n = 1
    for length in classes:
        first = max(n, int(cut.micro_s / length.padded_s))  # as many seconds of what is shorter should fit too
        n = largest(lambda k, c=length: fits(attempt, c, k, machine), length.most, first)  # type: ignore[misc]
        if not n:
            _refuse_one(length, 1)
        if n < length.most:
            cut.learn(length.padded_s, n)
        cut.micro_s = max(cut.micro_s, n * length.padded_s)
        log.info("of %g s %d utterances fit into memory at once", length.padded_s, n)
    return cut


def largest(is_ok: Callable[[int], bool], most: int, first: int = 1) -> int:
    """The largest number up to `most` that is ok, or an eighth less; 0 where not even 1 is."""
    n = min(first, most)
    if is_ok(n):
        good, bad = n, most + 1
        while good < most and bad > most:
            n = min(2 * good, most)
            good, bad = (n, bad) if is_ok(n) else (good, n)
    else:
        good, bad = 0, n
        while good == 0 and bad > 1:
            n = bad // 2
            good, bad = (n, bad) if is_ok(n) else (0, n)
    while bad - good > max(1, good // 8) and bad <= most:
        n = (good + bad) // 2
        good, bad = (n, bad) if is_ok(n) else (good, n)
    return good


def fits(attempt: Attempt, length: LengthClass, n: int, machine: Machine) -> bool:
    """Whether every rank could do it."""
    failed = 0
    try:
        attempt(length, n)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        failed = 1
    free_memory(machine.device)
    return machine.summed([failed])[0] == 0


def thinned(classes: Sequence[LengthClass], n: int) -> list[LengthClass]:
    """At most so many, evenly, the first and the last among them."""
    if len(classes) <= n:
        return list(classes)
    return [classes[i] for i in sorted({round(float(x)) for x in np.linspace(0, len(classes) - 1, n)})]


def length_classes(task: Task[Any, Any], loader: StepLoader, recipe: Recipe) -> list[LengthClass]:
    """From the manifest alone, the longest first: a few draws of one utterance a length, whatever the set's size.

    That utterance is the one with the longest transcript; only those are read, to count its tokens.
    """
    manifest = loader.manifest
    durations_s, letters = manifest.column("duration_s"), _letters(manifest)
    of = np.ceil(durations_s / recipe.data.edge_s).astype(np.int64)
    order = np.lexsort((letters, of))
    ends = np.flatnonzero(np.append(np.diff(of[order]), 1))  # the last of each length has the longest transcript
    counts = np.diff(np.append(-1, ends))
    share: dict[float, float] = {}
    worst: dict[float, tuple[int, Example, Draw]] = {}
    for position, count in zip(order[ends], counts, strict=True):
        example, augment = manifest[int(position)], loader.augment_at(int(position))
        draws = [loader.draw(example, k, done, augment) for k in range(DRAWS) for done in (0.0, 1.0)]
        for draw in draws:
            size = task.size(example, draw)
            share[size.padded_s] = share.get(size.padded_s, 0.0) + float(count) / len(draws) / len(manifest)
            if size.padded_s not in worst or worst[size.padded_s][0] < size.targets:
                worst[size.padded_s] = (size.targets, example, draw)
    step = recipe.loop.step_utts or float(recipe.loop.step_s or 0) / max(1e-3, float(durations_s.mean()))
    return [
        LengthClass(s, _tokens(task, *worst[s]), step * share[s], _most(step, share[s], len(manifest)))
        for s in sorted(worst, reverse=True)
    ]


class Gauge:
    """The device's memory around an attempt: the most that was taken, and that a margin of it was left."""

    def __init__(self, device: torch.device, margin: float) -> None:
        self._device, self._margin = device, margin
        self._most_gb = 0.0

    def __enter__(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._device.type != "cuda" or kind is not None:
            return
        free, total = torch.cuda.mem_get_info(self._device)
        others = total - free - torch.cuda.memory_reserved(self._device)
        peak = torch.cuda.max_memory_reserved(self._device)
        if peak + others > (1 - self._margin) * total:
            raise torch.OutOfMemoryError("out of memory: no margin is left")
        self._most_gb = max(self._most_gb, (peak + others) / 1e9)

    @property
    def said(self) -> str:
        if self._device.type != "cuda":
            return ""
        return f", {self._most_gb:.1f} of {torch.cuda.mem_get_info(self._device)[1] / 1e9:.1f} GB"


def _refuse_one(length: LengthClass, n: int) -> None:
    if n <= 1:
        raise OutOfMemory.of_one(length.padded_s)


def _letters(manifest: Manifest) -> np.ndarray:
    """Bytes of each transcript (N,): ten million of them in a second."""
    columns = [pc.binary_length(t.table.column("text")).to_numpy() for t in manifest.tables]
    whole: np.ndarray = np.concatenate(columns)[manifest.rows]
    return whole


def _tokens(task: Task[Any, Any], letters: int, example: Example, draw: Draw) -> int:
    """Of its transcript; as many as letters where its audio can't be read."""
    (item,) = task.load([example], [draw])
    return letters if isinstance(item, Bad) else max(task.collate([item]).counts.values())


def _most(step: float, share: float, n: int) -> int:
    """How many of a step's utterances are of a class, four deviations above the mean."""
    mean = step * share
    return max(1, min(int(step + 0.999), n, int(mean + 4 * mean**0.5) + 4))
