"""A running mean of what is trained: each step moves it a little towards the weights (Polyak & Juditsky, 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def decay_at(n: int, decay: float) -> float:
    """The decay of the update after `n` others: small at first, so that the mean soon forgets where it began."""
    return min(decay, (1 + n) / (10 + n))


class Ema:
    """The mean, in float32 or wider; a weight joins when it first trains, and stays when its group is frozen again.

    A step that was skipped counts, with the weights that it left as they were: nothing waits for the device.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.n = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def join(self, weights: Mapping[str, nn.Parameter]) -> None:
        """These are trained from now on; those that already were keep their mean."""
        for name, p in weights.items():
            if name not in self.mean:
                self.mean[name] = p.detach().clone().to(torch.promote_types(p.dtype, torch.float32))

    @torch.no_grad()
    def update(self, weights: Mapping[str, nn.Parameter]) -> None:
        means = list(self.mean.values())
        now = [weights[name].to(mean.dtype) for name, mean in self.mean.items()]
        torch._foreach_lerp_(means, now, 1.0 - decay_at(self.n, self.decay))
        self.n += 1

    @contextmanager
    def in_place(self, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """The model is its own mean in here. Nothing is copied where the dtypes agree."""
        raw = {name: weights[name].data for name in self.mean}
        try:
            for name, mean in self.mean.items():
                weights[name].data = mean.to(weights[name].dtype)
            yield
        finally:
            for name, data in raw.items():
                weights[name].data = data

    def forget(self) -> None:
        self.mean.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n, self.mean = int(state["n"]), dict(state["mean"])
