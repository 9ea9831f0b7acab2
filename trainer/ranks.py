"""Gradients added up over all ranks, each of which holds the whole model, while the last backward pass still runs.

The trained parameters' gradients are views of flat buckets. In the last backward pass a bucket is sent as soon as all
of it is there, always in the same order; what was not sent by then is sent at the end. So a rank that ran out of
memory half way still sends everything, nobody waits for it for ever, and all of them may agree to begin the step again:
this is what torch's DistributedDataParallel can't do (2.13), whose buckets this otherwise follows (Li et al., 2020).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 << 20  # as DistributedDataParallel's


class Joined:
    """The gradients of these parameters, in buckets. `group`: over which they travel."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: Any = None) -> None:
        self._group = group
        self._parameters = list(parameters)
        self._buckets: list[Tensor] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._views: dict[nn.Parameter, Tensor] = {}
        self._fired: set[nn.Parameter] = set()  # has a gradient of this step
        self._missing: list[int] = []  # a bucket's parameters whose gradient the last pass has not brought yet
        self._n_sent = 0
        self._works: list[Any] = []
        self._is_last = False
        self._fill()
        self._hooks = [p.register_post_accumulate_grad_hook(self._on_gradient) for p in self._parameters]

    def close(self) -> None:
        """The parameters are as they were before: no hooks, no gradients."""
        for hook in self._hooks:
            hook.remove()
        for p in self._parameters:
            p.grad = None
        self._buckets.clear()
        self._views.clear()

    def clear(self) -> None:
        """Before a step, and before one is done again."""
        for bucket in self._buckets:
            bucket.zero_()
        for p, view in self._views.items():
            p.grad = view
        self._fired.clear()
        self._works.clear()
        self._n_sent, self._is_last = 0, False

    def begin_last(self) -> None:
        """The next backward pass is this rank's last of the step."""
        self._missing = [0] * len(self._buckets)
        for bucket in self._bucket_of.values():
            self._missing[bucket] += 1
        self._is_last = True

    def finish(self) -> None:
        """Sends what was not sent and waits for all: on a GPU its stream does, not the host."""
        self._is_last = False
        while self._n_sent < len(self._buckets):
            self._send()
        for work in self._works:
            work.wait()
        self._works.clear()

    @property
    def fired(self) -> list[int]:
        """1 for each parameter that this rank has a gradient of, in the parameters' order."""
        return [int(p in self._fired) for p in self._parameters]

    def drop_unfired(self, n_ranks_fired: Sequence[int]) -> None:
        """What no rank has a gradient of has none: the optimiser passes it by, as it does on one rank."""
        for p, n in zip(self._parameters, n_ranks_fired, strict=True):
            if not n:
                p.grad = None

    def _fill(self) -> None:
        """From the last parameter to the first, as a backward pass comes by."""
        held: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        n_bytes: dict[tuple[torch.device, torch.dtype], int] = {}
        for p in reversed(self._parameters):
            kind = (p.device, p.dtype)
            held.setdefault(kind, []).append(p)
            n_bytes[kind] = n_bytes.get(kind, 0) + p.numel() * p.element_size()
            if n_bytes[kind] >= BUCKET_BYTES:
                self._add(held.pop(kind))
                n_bytes[kind] = 0
        for rest in held.values():
            self._add(rest)

    def _add(self, members: Sequence[nn.Parameter]) -> None:
        flat = torch.zeros(sum(p.numel() for p in members), dtype=members[0].dtype, device=members[0].device)
        at = 0
        for p in members:
            view = flat[at : at + p.numel()].view_as(p)
            p.grad = self._views[p] = view
            self._bucket_of[p] = len(self._buckets)
            at += p.numel()
        self._buckets.append(flat)

    def _on_gradient(self, p: Tensor) -> None:
        assert isinstance(p, nn.Parameter)
        self._fired.add(p)
        if not self._is_last:
            return
        self._missing[self._bucket_of[p]] -= 1
        while self._n_sent < len(self._buckets) and not self._missing[self._n_sent]:
            self._send()

    def _send(self) -> None:
        self._works.append(dist.all_reduce(self._buckets[self._n_sent], group=self._group, async_op=True))
        self._n_sent += 1
