"""What a batch costs, counted on torch's device "meta": bytes that the backward pass will ask for, and operations.

Nothing is computed and nothing is held: a model of any size is weighed on a laptop. A GPU's autocast and attention are
taken as they are there: matrices in half precision, attention that keeps no matrix of positions.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.machine import DTYPES
from trainer.task import Batch, Parts, Task

META = torch.device("meta")
HALVED = {
    *(F.linear, F.conv1d, F.conv2d, torch.conv1d, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm),
    *(torch.mm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, F.scaled_dot_product_attention),
}
WHOLE = {
    *(F.layer_norm, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax),
    *(F.cross_entropy, F.ctc_loss, F.group_norm, nn.functional.batch_norm),
}


@dataclass(frozen=True)
class Weight:
    """A batch's cost: what it has once, and what each of its utterances adds."""

    base_bytes: float
    bytes_an_utterance: float
    flops_an_utterance: float  # forward and backward

    def bytes_of(self, n: int) -> float:
        return self.base_bytes + n * self.bytes_an_utterance


def weigh(
    task: Task[Any, Any], parts: Parts, precision: str, padded_s: float, tokens: int, is_checkpointed: bool
) -> Weight:
    """Of utterances of a length, on a module on the device meta, in the state that it is in."""
    batches = [_batch(task, parts, n, padded_s, tokens) for n in (1, 2)]
    one, two = (saved_bytes(task, parts, precision, b) + _again(task, parts, precision, b) for b in batches)
    flops = _flops(task, parts, precision, batches[0], is_checkpointed)
    casts = _cast_bytes(parts.module) if is_checkpointed and precision in DTYPES else 0
    return Weight(max(0, 2 * one - two) + casts, two - one, flops)


def saved_bytes(task: Task[Any, Any], parts: Parts, precision: str, batch: Batch) -> int:
    """What the forward pass keeps for the backward pass, each storage once; the module's own tensors are not of it."""
    own = {t.untyped_storage()._cdata for t in [*parts.module.parameters(), *parts.module.buffers()]}
    kept: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its number
        return t

    with saved_tensors_hooks(keep, lambda t: t), as_on_a_gpu(precision):
        losses = task.losses(parts.module, batch)
    assert all(v.shape == (len(batch.ids),) for v in losses.values())
    return sum(s.nbytes() for s in kept.values())


def _cast_bytes(module: nn.Module) -> int:
    """Of matrices in half precision: autocast holds them all through a pass, checkpointed or not."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return sum(2 * m.weight.numel() for m in layers if m.weight.requires_grad)


def _again(task: Task[Any, Any], parts: Parts, precision: str, batch: Batch) -> int:
    """With gradient checkpointing: what the backward pass makes again of one layer, while it is there."""
    layers = [m for m in parts.module.modules() if isinstance(m, GradientCheckpointingLayer)]
    on = next((m for m in layers if m.gradient_checkpointing and m.training), None)
    if on is None:
        return 0
    thin = saved_bytes(task, parts, precision, batch)
    on.gradient_checkpointing = False
    try:
        return saved_bytes(task, parts, precision, batch) - thin
    finally:
        on.gradient_checkpointing = True


def _flops(task: Task[Any, Any], parts: Parts, precision: str, batch: Batch, is_checkpointed: bool) -> float:
    with FlopCounterMode(display=False) as forward, as_on_a_gpu(precision):
        losses = task.losses(parts.module, batch)
    done = forward.get_total_flops()
    total = torch.stack([v.sum() for v in losses.values()]).sum()
    try:
        with FlopCounterMode(display=False) as backward, _Answers():
            total.backward()  # type: ignore[no-untyped-call]
        again = backward.get_total_flops()
    except (RuntimeError, NotImplementedError):  # an operation whose gradient has no shape without numbers
        again = (3 if is_checkpointed else 2) * done
    finally:
        for p in parts.module.parameters():
            p.grad = None
    return float(done + again)


def _batch(task: Task[Any, Any], parts: Parts, n: int, padded_s: float, tokens: int) -> Batch:
    """Prepared on the CPU, where a spectrogram can be had, and moved."""
    with torch.no_grad():
        return task.prepare(task.dummy(n, padded_s, tokens), parts, True).to(META)


@contextmanager
def as_on_a_gpu(precision: str) -> Iterator[None]:
    """In here what is computed on meta has the shapes and types that a GPU would give it."""
    with ExitStack() as stack:
        stack.enter_context(_Answers())
        stack.enter_context(_Casts(DTYPES.get(precision)))
        yield


class _Answers(TorchDispatchMode):
    """Where a model asks whether a mask masks nothing: of equally long utterances, it does not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        return func(*args, **(kwargs or {}))


class _Casts(TorchFunctionMode):
    """Autocast, which passes tensors without numbers by, and attention as a GPU's kernels do it."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._weights: dict[int, Tensor] = {}  # cast once, as autocast does

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._dtype is not None and (func in HALVED or func in WHOLE):
            to = self._dtype if func in HALVED else torch.float32
            args = [self._cast(a, to) for a in args]
            kwargs = {k: self._cast(v, to) for k, v in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, to: torch.dtype) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._cast(v, to) for v in value)
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, self._dtype) or value.dtype == to:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(to)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(to)
        return self._weights[id(value)]


def _attended(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if attn_mask is None:
        op: Any = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = op(q, k, v, dropout_p, is_causal, scale=scale)[0]
        return out
    bias = attn_mask.to(q.dtype) if attn_mask.dtype == torch.bool else attn_mask
    bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    with_mask: Any = torch.ops.aten._scaled_dot_product_efficient_attention
    masked: Tensor = with_mask(q, k, v, bias, True, dropout_p, is_causal, scale=scale)[0]
    return masked


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Each storage once: tied weights are one."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors.values()}
    return sum(storages.values())
