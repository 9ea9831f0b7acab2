"""The device, its precision and the other ranks: what the loop asks of the machine it runs on."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.errors import BadRecipe
from trainer.launch import is_rank
from trainer.recipe.loop import Loop
from trainer.task import Parts
from trainer.together import Ranks, join

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Where this process computes, and its place among the ranks."""

    device: torch.device
    precision: str  # bf16, fp16, fp32, fp64
    rank: int = 0
    world: int = 1
    ranks: Ranks | None = None  # all of them, where there are several

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """What computes, as a person calls it: NVIDIA H100 80GB HBM3, 4 × …, cpu."""
        if self.device.type != "cuda":
            return self.device.type
        one = torch.cuda.get_device_name(self.device)
        return f"{self.world} × {one}" if self.world > 1 else one

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.precision, self.device)

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, in double where the recipe asks for it."""
        return module.to(self.device).double() if self.precision == "fp64" else module.to(self.device)

    def summed(self, values: list[int]) -> list[int]:
        """Each number added over all ranks; before the backward pass, over gloo."""
        if self.world == 1:
            return values
        t = torch.tensor(values, dtype=torch.int64)
        with self.together() as group:
            dist.all_reduce(t, group=group)
        return [int(v) for v in t]

    def largest(self, value: int) -> int:
        """Of all ranks' numbers."""
        return max(self.gathered([value]))

    def gathered(self, values: list[Any]) -> list[Any]:
        """Every rank's list, joined in the order of the ranks."""
        if self.world == 1:
            return values
        parts: list[Any] = [None] * self.world
        with self.together() as group:
            dist.all_gather_object(parts, values, group=group)
        return [v for part in parts for v in part]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            with self.together() as group:
                dist.barrier(group=group)

    @contextmanager
    def together(self) -> Iterator[Any]:
        """Something that needs every rank, over this gloo group or another one. Raises RankLost."""
        if self.ranks is None:
            yield None
            return
        with self.ranks.together():
            yield self.ranks.control

    def any_asked(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """The same question, answered by all ranks a second after one of them would say yes."""
        ranks = self.ranks
        return asked if ranks is None else lambda: ranks.any_asked(asked())


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Matrices multiplied in half precision, where that was asked for."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def start_machine(loop: Loop) -> Machine:
    """Takes the device that the recipe asks for, and this process's place among the ranks.

    Raises BadRecipe where the device or its precision isn't there, TrainerError where not all ranks answer.
    """
    torch.set_num_threads(loop.threads)
    world = int(os.environ.get("WORLD_SIZE", "1")) if is_rank() else 1  # on a cluster it is set for every process
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(loop.device, local)
    precision = precision_of(loop.precision, device)
    # a CPU's threads would sum the gradient of an index in any order: two runs, two sets of weights
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    if world == 1:
        return Machine(device, precision)
    if loop.shard and precision == "fp16":  # each rank would find a loss scale of its own
        raise BadRecipe.one("train.loop.shard", "needs bf16 or fp32: this device or recipe computes in fp16")
    ranks = join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", loop.wait_s)
    return Machine(device, precision, ranks.rank, world, ranks)


def placed(parts: Parts, machine: Machine) -> Parts:
    """The parts on the machine: the module to be trained or used, the frozen ones in eval mode and without gradient."""
    for module in parts.frozen.values():
        machine.place(module).eval().requires_grad_(False)
    return dataclasses.replace(parts, module=machine.place(parts.module))


def _device(asked: str, local_rank: int) -> torch.device:
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(n for n, there in has.items() if there) if asked == "auto" else asked
    if not has[name]:
        raise BadRecipe.one("train.loop.device", f"{name} is not available here; auto takes what is")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def resolved_precision(loop: Loop) -> str:
    """What a training of this recipe computes in, on this machine."""
    return precision_of(loop.precision, _device(loop.device, 0))


def precision_of(asked: str, device: torch.device) -> str:
    """What `loop.precision` means on a device. Raises BadRecipe where it can't be."""
    if asked == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "fp32"  # a Mac's GPU and a CPU: correct everywhere; bf16 is faster on newer CPUs, where it is asked for
    if asked == "fp16" and device.type == "cpu":
        raise BadRecipe.one("train.loop.precision", "fp16 is not for a CPU: say bf16, fp32 or auto")
    if asked == "fp64" and device.type == "mps":
        raise BadRecipe.one("train.loop.precision", "fp64 is not for MPS: say fp32 or auto")
    return asked
