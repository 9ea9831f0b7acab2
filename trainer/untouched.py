"""What a forward pass changes beside the gradients, kept so that the pass can be undone: statistics and chance."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class Kept:
    """Copies of some tensors, to be put back into them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._pairs = [(t, t.detach().clone()) for t in tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        for there, kept in self._pairs:
            there.copy_(kept)


def gathered_statistics(module: nn.Module) -> list[Tensor]:
    """The buffers that a training pass writes: those of batch norms in training mode."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    return [b for m in norms for b in m.buffers(recurse=False)]


@contextmanager
def untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever is computed in here, buffers and all generators of chance are afterwards what they were."""
    buffers = Kept(module.buffers())
    chance = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        buffers.put_back()
        random.setstate(chance[0])
        np.random.set_state(chance[1])
        torch.set_rng_state(chance[2])
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)
