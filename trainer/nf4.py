"""Linear layers that are frozen in nf4: four bits a weight, on levels that suit what is normally distributed.

QLoRA (Dettmers et al., 2023): blocks of 64 weights, each scaled by its largest; where asked, the scales in 8 bits too.
Only torch: the same bits on every machine, so a resumed training stands on the base that it began with.

B … batch and time · I inputs · O outputs
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64  # weights under one scale
SCALES = 256  # scales under one scale of theirs, in double quantisation
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)  # the paper's appendix E


class Nf4Linear(nn.Linear):
    """A linear layer whose matrix is nf4 and is never trained; its gradient goes to its inputs alone."""

    def __init__(self, linear: nn.Linear, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed, scales = _quantised(linear.weight.detach())
        self.weight = nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        levels = torch.tensor(LEVELS)
        table = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)  # a byte → its two weights
        mean = scales.mean()
        buffers = {"table": table, "scales": scales}
        if double:
            small, of_small = _in_eight_bits(scales - mean)
            buffers |= {"scales": small, "of_scales": of_small, "mean": mean}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=name != "table")  # what a hash of the weights must see

    def forward(self, x_BI: Tensor) -> Tensor:
        kind = x_BI.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x_BI = x_BI.to(torch.get_autocast_dtype(kind))
        y_BO: Tensor = _Product.apply(x_BI, self)  # type: ignore[no-untyped-call]
        return y_BO if self.bias is None else y_BO + self.bias.to(y_BO.dtype)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(O, I): what the four bits stand for."""
        scales: Any = self.scales
        if scales.dtype == torch.int8:
            whole = scales.to(self.mean.dtype) * self.of_scales[:, None]  # type: ignore[index, arg-type]
            scales = (whole + self.mean).flatten()
        count = len(self.weight) * 2 // BLOCK  # int8 rows are filled up
        values = self.table.index_select(0, self.weight.int()).view(-1, BLOCK) * scales[:count, None]  # type: ignore[operator]
        n = self.out_features * self.in_features
        return values.flatten()[:n].view(self.out_features, self.in_features).to(dtype)

    def dequantised(self) -> nn.Linear:
        """The ordinary float32 layer that computes the same."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.matrix(), requires_grad=False)
        linear.bias = self.bias
        return linear


class _Product(torch.autograd.Function):
    """x·Wᵀ, where the backward pass makes W again: nothing but four bits of it is kept in between."""

    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x_BI, layer.matrix(x_BI.dtype))

    @staticmethod
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad_BO @ ctx.layer.matrix(grad_BO.dtype), None


def quantise(model: nn.Module, expression: str, double: bool) -> int:
    """Every linear layer whose name the expression matches becomes an Nf4Linear; how many."""
    found = [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear and re.fullmatch(expression, n)]
    for name, linear in found:
        _put(model, name, Nf4Linear(linear, double))
    return len(found)


def dequantise(model: nn.Module) -> None:
    """The opposite: ordinary float32 layers that compute the same."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, Nf4Linear)]:
        _put(model, name, layer.dequantised())


def n_weights(module: nn.Module, *, trained: bool = False) -> int:
    """How many weights a module has: two of nf4 are one byte."""
    sizes = ((p, 2 if p.dtype == torch.uint8 else 1) for p in module.parameters() if p.requires_grad or not trained)
    return sum(p.numel() * n for p, n in sizes)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _quantised(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights a byte, and a scale a block, filled up with zeros to whole blocks."""
    flat = weight_OI.float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    levels = torch.tensor(LEVELS, device=flat.device)
    places = torch.bucketize(blocks / scales.clamp_min(1e-30)[:, None], (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    high, low = places.flatten().view(-1, 2).unbind(1)
    return high * 16 + low, scales


def _in_eight_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """int8 in rows of SCALES, and what one step of each row is worth."""
    rows = F.pad(values, (0, -len(values) % SCALES)).view(-1, SCALES)
    steps = rows.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (rows / steps[:, None]).round().to(torch.int8), steps
