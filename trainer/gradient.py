"""The gradient of one step: however it is cut, over however many ranks, in as much memory as there is.

A step that does not fit is begun again from nothing, cut finer, by all ranks alike: what it sums over stays the same.
"""

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.loader import Micro, Step, StepLoader
from trainer.data.plan import seed_of
from trainer.errors import OutOfMemory
from trainer.machine import Machine
from trainer.nonfinite import Made, any_lost
from trainer.optim import Optimiser
from trainer.recipe.base import Recipe
from trainer.task import Batch, Parts, Task
from trainer.untouched import Kept, gathered_statistics

log = logging.getLogger(__name__)


class LossModule(nn.Module):
    """One forward that is the task's losses: what is compiled, and what is wrapped where weights are dealt to ranks."""

    def __init__(self, task: Task[Any, Any], module: nn.Module) -> None:
        super().__init__()
        self.task, self.module = task, module

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.task.losses(self.module, batch)


@dataclass
class Gradient:
    """Makes the gradients of steps, and keeps the sums of their losses until they are taken for the log."""

    task: Task[Any, Any]
    parts: Parts
    recipe: Recipe
    machine: Machine
    loader: StepLoader
    optimiser: Optimiser
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _losses: Any = None
    _said: list[dict[str, Tensor]] = field(default_factory=list)  # of this attempt's micro-batches, an utterance each

    def open(self) -> None:
        """For what trains from here on: over several ranks just those parameters' gradients are joined."""
        if self.optimiser.sharded:
            self._losses = self.optimiser.sharded.root
            return
        losses = LossModule(self.task, self.parts.module)
        if self.recipe.loop.compile:
            losses.compile()
        self._losses = losses
        if self.machine.world > 1:
            self.optimiser.join()

    def of(self, step: Step, count_of: Mapping[str, int], weight_of: Mapping[str, float]) -> Made:
        """Into the parameters' `.grad`: Σ over all ranks and keys of weight · summed loss / count.

        Raises OutOfMemory where one utterance alone is too much.
        """
        share_of = {k: weight_of.get(k, 1.0) / n for k, n in count_of.items()}
        statistics = Kept(gathered_statistics(self.parts.module))
        while True:
            step = self.loader.recut(step)
            # all chance inside a step (dropout) is a function of seed, step and rank: nothing of it needs saving
            torch.manual_seed(seed_of(self.recipe.loop.seed, "step", step.number, self.machine.rank))
            sums, failed = self._attempt(step, share_of)
            if self._agreed(failed):
                break
            self.optimiser.clear()
            statistics.put_back()
        for k, v in sums.items():
            self._sums[k] = self._sums[k] + v if k in self._sums else v
        return Made(step.micros, tuple(self._said), any_lost(self._said, self.machine))

    def taken(self) -> dict[str, float]:
        """The losses summed since the last call, by key, on this rank: a wait for the device."""
        sums, self._sums = self._sums, {}
        return {k: float(sums[k]) if k in sums else 0.0 for k in self.task.losses_of}

    def try_out(self, batch: Batch) -> None:
        """A pass through a batch out of nothing, with the memory of a real step: nothing of it stays.

        Raises what the device raises where memory is too small.
        """
        trained = [p for p in self.optimiser.named().values() if p.requires_grad]
        fresh = [p for p in trained if p not in self.optimiser.adamw.state]
        state = [torch.empty_like(p) for p in fresh for _ in range(2)]  # AdamW's two means, made in the first step
        try:
            for p in trained:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)  # as after the step's first micro-batch
            self._backward(Micro(batch, 0.0, (), ()), dict.fromkeys(self.task.losses_of, 1e-6))
        finally:
            del state
            self._said = []
            self.optimiser.clear()

    def _attempt(self, step: Step, share_of: Mapping[str, float]) -> tuple[dict[str, Tensor], Micro | None]:
        """What the losses sum to, and the micro-batch that memory was too small for."""
        sums: dict[str, Tensor] = {}
        failed = None
        self._said = []
        joined = self.optimiser.joined
        n_idle = self.machine.largest(len(step.micros)) - len(step.micros) if self.optimiser.sharded else 0
        for n, micro in enumerate(step.micros):
            if joined and n == len(step.micros) - 1:
                joined.begin_last()
            try:
                losses = self._backward(micro, share_of)
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                failed = micro  # the exception holds the whole graph: it must go before there is room again
                break
            for k, v in losses.items():
                sums[k] = sums[k] + v if k in sums else v
        if failed and self.optimiser.sharded:
            _check_divisible(failed)
            self.optimiser.sharded.begin_anew(failed.padded_s, len(failed.examples) // 2)
        for _ in range(n_idle):
            self._take_part()
        if failed:
            free_memory(self.machine.device)
        if joined:
            with self.machine.together():
                joined.finish()
        return sums, failed

    def _backward(self, micro: Micro, share_of: Mapping[str, float]) -> dict[str, Tensor]:
        batch = self.task.prepare(micro.batch.to(self.machine.device), self.parts, True)
        with self.machine.autocast(), self.machine.together():
            losses = self._losses(batch)
            total = torch.stack([losses[k].sum() * share_of[k] for k in losses]).sum()
            self.optimiser.backward(total)
        self._said.append({k: v.detach().clone() for k, v in losses.items()})
        return {k: v.detach().sum() for k, v in losses.items()}

    def _take_part(self) -> None:
        """A pass that adds nothing: where weights are dealt, the passes of others take all ranks."""
        batch = self.task.prepare(self.task.dummy(1, 1.0, 1).to(self.machine.device), self.parts, True)
        with self.machine.autocast(), self.machine.together():
            losses = self._losses(batch)
            self.optimiser.backward(torch.stack([losses[k].sum() * 0.0 for k in losses]).sum())

    def _agreed(self, failed: Micro | None) -> bool:
        """Whether every rank is done; else all of them know a finer cut, the same one."""
        joined = self.optimiser.joined
        if joined:
            n_failed, n_partly = self.machine.summed([int(failed is not None), int(not all(joined.fired))])
            if not n_failed:
                if n_partly:
                    joined.drop_unfired(self.machine.summed(joined.fired))
                return True
        elif failed is None:
            return True
        found = self.machine.gathered([(failed.padded_s, len(failed.examples))] if failed else [])
        for padded_s, n in found:
            if n == 1:
                raise OutOfMemory.of_one(padded_s)
            self.loader.cut.learn(padded_s, n // 2)
        worst = max(found)
        log.warning(
            "out of memory at %d utterances of %g s: the step is done again in halves, and so are those to come",
            *reversed(worst),
        )
        return False


def _check_divisible(failed: Micro) -> None:
    if len(failed.examples) == 1:
        raise OutOfMemory.of_one(failed.padded_s)


def is_out_of_memory(e: BaseException) -> bool:
    """Whether an error says that a device has no more memory: only CUDA has a class for it."""
    if isinstance(e, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(e)
    if "_STATUS_ALLOC_FAILED" in said:  # of cuBLAS and cuDNN
        return True
    return "out of memory" in said or "DefaultCPUAllocator" in said or "can't allocate memory" in said


def free_memory(device: torch.device) -> None:
    """What nothing holds any more goes back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
