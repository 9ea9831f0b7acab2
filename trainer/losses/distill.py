"""How far a student is from its teacher: the Kullback–Leibler divergence of their distributions over tokens.

Hinton et al., 2015: both are flattened by a temperature T, and the loss is multiplied by T², so that its gradient is
about as large at any T. One buffer of the size of the logits is kept for the backward pass: the gradient itself.

K positions · V vocabulary
"""

from typing import Any

import torch
from torch import Tensor

from trainer.losses.labelled import wide


def flattened(logits_KV: Tensor, temperature: float) -> Tensor:
    """(K, V) log-probabilities, in float32 or wider."""
    return torch.log_softmax(wide(logits_KV) / temperature, dim=-1)


def divergence(logits_KV: Tensor, teacher_KV: Tensor, temperature: float) -> Tensor:
    """(K,): T² · KL(teacher ‖ student) a position; `teacher_KV` holds its log-probabilities, already flattened.

    Exactly 0 where both say the same. Nothing flows back to the teacher.
    """
    kl_K: Tensor = _Divergence.apply(wide(logits_KV), teacher_KV, temperature)  # type: ignore[no-untyped-call]
    return kl_K


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, teacher_KV: Tensor, temperature: float) -> Tensor:
        student_KV = flattened(logits_KV, temperature)
        teacher_KV = teacher_KV.to(student_KV.dtype)
        p_KV = teacher_KV.exp()
        kl_K = (p_KV * (teacher_KV - student_KV)).sum(-1) * temperature**2
        ctx.save_for_backward((student_KV.exp() - p_KV) * temperature)  # T² of the loss, 1/T of the logits
        return kl_K

    @staticmethod
    def backward(ctx: Any, kl_K: Tensor) -> tuple[Tensor, None, None]:
        (gradient_KV,) = ctx.saved_tensors
        return gradient_KV * kl_K[:, None], None, None
