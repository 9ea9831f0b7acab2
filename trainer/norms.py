"""Normalisations that keep law 13: their statistics are an utterance's own, or nobody's.

A module becomes one of these in place: parameters, buffers and names stay, so what is saved loads anywhere.

B batch · C channels · F frames
"""

import torch
from torch import Tensor, nn


class StillBatchNorm(nn.BatchNorm1d):
    """Uses the statistics it came with and never gathers others; its scale and shift are trained."""

    def train(self, mode: bool = True) -> "StillBatchNorm":
        super().train(False)
        return self


class OwnGroupNorm(nn.GroupNorm):
    """Over an utterance's own frames, however many channels are a group: padding behind them changes nothing.

    `frames_B` is set before each forward. What comes out beyond an utterance's own frames means nothing.
    """

    frames_B: Tensor

    def forward(self, x_BCF: Tensor) -> Tensor:
        x = x_BCF if x_BCF.dtype == torch.float64 else x_BCF.float()
        n_B11 = self.frames_B[:, None, None]
        own_B1F = torch.arange(x.shape[-1], device=x.device) < n_B11
        mean = self._in_groups((x * own_B1F).sum(-1, keepdim=True) / n_B11)
        centred = (x - mean) * own_B1F
        variance = self._in_groups(centred.square().sum(-1, keepdim=True) / n_B11)
        assert self.weight is not None
        assert self.bias is not None
        out = centred * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]
        return out.to(x_BCF.dtype)

    def _in_groups(self, x_BC1: Tensor) -> Tensor:
        """Each channel's mean over the channels of its group: all have as many frames."""
        if self.num_groups == self.num_channels:
            return x_BC1
        grouped = x_BC1.unflatten(1, (self.num_groups, -1))
        return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1, 2)


def keep_batch_norms_still(module: nn.Module) -> int:
    """Every batch norm of the module becomes a StillBatchNorm; how many there were."""
    found = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
    for m in found:
        m.__class__ = StillBatchNorm
        m.eval()
    return len(found)
