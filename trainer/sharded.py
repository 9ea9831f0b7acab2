"""Weights, gradients and optimiser dealt to the ranks (FSDP2: Zhao et al., 2023), for models that don't fit one device.

Every layer of a stack is a unit, which is whole only while it computes; the rest of the model is the root, whole during
a step. Gradients are summed, as everywhere here. What is measured, saved or exported is an ordinary module again, made
of a skeleton without weights: nothing outside of a training step meets a dealt weight.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from trainer.errors import BadRecipe, OutOfMemory
from trainer.machine import Machine


class Sharded:
    """A module whose weights are dealt to all ranks from here on.

    `root` computes its losses; whatever of the module is used outside of a layer is used within root's forward.
    """

    def __init__(self, root: nn.Module, module: nn.Module, machine: Machine) -> None:
        check_dealable(module)
        self.root = root
        self._module, self._machine = module, machine
        self._skeleton = skeleton(module)
        self._mesh = init_device_mesh(machine.device.type, (machine.world,))
        for unit in units_of(module):
            fully_shard(unit, mesh=self._mesh)
        fully_shard(root, mesh=self._mesh)
        self._own = dict(module.named_parameters())  # of the module some are whole now and then
        self._stepped: Any = None
        self.begin_anew: Callable[[float, int], None] = _out_of_memory
        for part in root.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # summed: the loop's counts are those of all ranks

    def whole(self, instead: Mapping[str, Tensor] | None = None) -> nn.Module:
        """An ordinary module with all weights, on every rank's device; some of them others than those in training."""
        return self._filled(self._machine.device, self._instead(instead), _whole)

    def whole_on_first(self) -> nn.Module | None:
        """The same in rank 0's main memory, a weight at a time: no device needs room for it."""
        module = self._filled(torch.device("cpu"), {}, self._to_first)
        return module if self._machine.is_first else None

    def gathered(self, value: Any) -> Any:
        """A state with all that was dealt whole again, in rank 0's main memory; nothing of use elsewhere."""
        return mapped(value, lambda t: self._to_first(t) if isinstance(t, DTensor) else t.cpu())

    def dealt(self, value: Any) -> Any:
        """The opposite: of every tensor with axes this rank's part, on its device."""
        return mapped(value, lambda t: self._part(t) if t.ndim else t.to(self._machine.device))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Weights as they are dealt, and buffers, by name."""
        return self._own | dict(self._module.named_buffers())

    def mark(self) -> None:
        """An optimiser step is on its way to the device."""
        if self._machine.device.type == "cuda":
            self._stepped = torch.cuda.Event()
            self._stepped.record()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Read what the last step left, though what was begun after it may never end."""
        if self._machine.device.type != "cuda":
            yield
            return
        stream = torch.cuda.Stream(self._machine.device)
        if self._stepped is not None:
            stream.wait_event(self._stepped)
        with torch.cuda.stream(stream):
            yield

    def norm(self, of_parts: Tensor) -> Tensor:
        """A norm over all ranks, known to each."""
        with self._machine.together():
            return _whole(of_parts)

    def forget(self) -> None:
        """Give the memory back: nothing computes with this any more."""
        for p in self._own.values():
            if isinstance(p, DTensor):
                p.to_local().untyped_storage().resize_(0)

    def _instead(self, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        return {name: t.to(self._own[name].dtype) for name, t in (given or {}).items()}

    def _filled(self, device: torch.device, instead: Mapping[str, Tensor], take: Any) -> nn.Module:
        memo: dict[int, Any] = {}
        with torch.no_grad(), self._machine.together():
            now = self._own | dict(self._module.named_buffers())
            for name, empty in _tensors(self._skeleton):
                taken = take(instead.get(name, now[name])).detach().to(device)
                is_weight = isinstance(empty, nn.Parameter)
                memo[id(empty)] = nn.Parameter(taken, requires_grad=empty.requires_grad) if is_weight else taken
        return copy.deepcopy(self._skeleton, memo)

    def _to_first(self, t: Tensor) -> Tensor:
        """The whole of a dealt tensor on rank 0; this rank's part elsewhere."""
        if not isinstance(t, DTensor):
            return t.detach()
        shape, mine = t.shape, t.to_local().detach().cpu()
        padded = mine.new_zeros(_part_length(shape[0], self._machine.world), *shape[1:])
        padded[: len(mine)] = mine
        sent = padded.contiguous().view(-1).view(torch.uint8)  # gloo does not know every dtype, but bytes
        parts = [torch.empty_like(sent) for _ in range(self._machine.world)] if self._machine.is_first else None
        with self._machine.together() as group:
            dist.gather(sent, parts, dst=0, group=group)
        if parts is None:
            return mine
        return torch.cat(parts).view(mine.dtype).view(-1, *shape[1:])[: shape[0]].clone()

    def _part(self, t: Tensor) -> DTensor:
        length = _part_length(t.shape[0], self._machine.world)
        first = min(t.shape[0], self._machine.rank * length)
        mine = t[first : first + length].to(self._machine.device, copy=True).contiguous()
        whole = torch.empty(t.shape, device="meta")
        return DTensor.from_local(
            mine, self._mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )


def check_dealable(module: nn.Module) -> None:
    """Raises BadRecipe where a weight can't be dealt."""
    single = [name for name, p in module.named_parameters() if p.ndim == 0]
    if single:
        raise BadRecipe.one(
            "train.loop.shard", f"is not for this model: {single[0]} is a single number, which torch can't deal (2.13)"
        )


def units_of(module: nn.Module) -> list[nn.Module]:
    """The layers of all stacks: members of one class of a plain list, outermost lists only.

    Not those that a task takes apart: a unit is whole only while its own forward runs.
    """
    found: list[nn.Module] = []
    for child in module.children():
        members = list(child) if type(child) is nn.ModuleList else []
        is_stack = bool(members) and len({type(m) for m in members}) == 1
        if is_stack and all(_has_weights(m) and not getattr(m, "is_taken_apart", False) for m in members):
            found += members
        else:
            found += units_of(child)
    return found


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _out_of_memory(padded_s: float, n: int) -> None:
    raise OutOfMemory(
        f"{2 * n} utterances of {padded_s:g} s are too much for this device's memory", "lower loop.micro_s"
    )


def _part_length(n: int, world: int) -> int:
    """Rows of every rank's part but the last ones', as FSDP2 deals them."""
    return -(-n // world)


def _whole(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t.detach().clone()


def skeleton(module: nn.Module) -> nn.Module:
    """The module without a single number in it; what is tied stays tied."""
    memo: dict[int, Any] = {}
    for _, t in _tensors(module):
        empty = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(empty, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(v, change) for v in value)
    return value
