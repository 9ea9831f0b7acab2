"""Which positions are an utterance's own, and the attention masks that say so.

Masks have four axes, as transformers takes them without a look of its own: that look would wait for the device.

B batch · Q positions that look · P positions that are looked at
"""

from typing import Any

import torch
from torch import Tensor


def own(lengths_B: Tensor, n: int) -> Tensor:
    """(B, n) bool: true where a position is an utterance's own."""
    return torch.arange(n, device=lengths_B.device) < lengths_B[:, None]


def looking_at(own_BP: Tensor, n_queries: int, config: Any, dtype: torch.dtype) -> Tensor:
    """(B, 1, Q, P): everybody looks at an utterance's own positions."""
    return as_attended(own_BP[:, None, None].expand(-1, 1, n_queries, -1), config, dtype)


def looking_within(own_BP: Tensor, near_PP: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """(B, 1, P, P): everybody looks at own positions that are near; who has none, at itself, lest it be no number."""
    seen_BPP = own_BP[:, None] & near_PP
    itself_PP = torch.eye(own_BP.shape[1], dtype=torch.bool, device=own_BP.device)
    return as_attended((seen_BPP | itself_PP & ~seen_BPP.any(-1, keepdim=True))[:, None], config, dtype)


def looking_back(n_texts: int, length: int, config: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(B, 1, L, L): a token looks at itself and what stands before it. What pads a text stands behind it."""
    seen_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return as_attended(seen_LL[None, None].expand(n_texts, 1, -1, -1), config, dtype)


def as_attended(seen: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """As the attention of this configuration takes it: sdpa a bool, all others what is added to the scores."""
    if config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
