"""Losses at labelled positions, summed an utterance.

K labelled positions of the whole batch · V vocabulary
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_KV: Tensor, label_K: Tensor, row_K: Tensor, n: int, smoothing: float) -> Tensor:
    """(n,): of each row's own positions, in float32 or wider."""
    ce_K = F.cross_entropy(wide(logits_KV), label_K, reduction="none", label_smoothing=smoothing)
    return sum_by_row(ce_K, row_K, n)


def sum_by_row(value_K: Tensor, row_K: Tensor, n: int) -> Tensor:
    """(n,): of each row's own positions."""
    return torch.zeros(n, dtype=value_K.dtype, device=value_K.device).index_add(0, row_K, value_K)


def wide(t: Tensor) -> Tensor:
    """In float32 at least."""
    return t if t.dtype == torch.float64 else t.float()
