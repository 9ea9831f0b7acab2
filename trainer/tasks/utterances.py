"""Utterances on their way from a loader's thread into a batch.

B batch · T samples (16 kHz) · L labels · K labelled positions of the whole batch
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainer.data.drawn import Spans
from trainer.task import Example


@dataclass(frozen=True)
class Utterance:
    """One utterance ready to be padded: wave (T,), token ids, spans that will be masked, layers that it passes."""

    id: str
    wave_T: np.ndarray
    padded: int
    tokens: list[int]
    freq_spans: Spans
    time_spans: Spans
    kept: list[bool] = field(default_factory=list)
    source: Example | None = None
    states_PD: Tensor | None = None  # what a frozen encoder said of it before; then there is no wave
    heard_T: np.ndarray | None = None  # the wave as it came, for a teacher who levels it in his own way


def stack_waves(items: Sequence[Utterance]) -> Tensor:
    """(B, T) float32, quiet behind each; a micro-batch is homogeneous in padded length. (B, 0) where none is needed."""
    padded = items[0].padded if items[0].states_PD is None else 0
    if not padded:
        return torch.zeros(len(items), 0)
    assert all(i.padded == padded for i in items), "a micro-batch is homogeneous in padded length"
    wave_BT = torch.zeros(len(items), padded)
    for b, item in enumerate(items):
        wave_BT[b, : len(item.wave_T)] = torch.from_numpy(item.wave_T)
    return wave_BT


def stack_tokens(tokens: Sequence[Sequence[int]], fill: int, at_least: int = 0) -> Tensor:
    """(B, L) int64, filled up."""
    stacked_BL = torch.full((len(tokens), max(at_least, *map(len, tokens))), fill, dtype=torch.int64)
    for b, ids in enumerate(tokens):
        stacked_BL[b, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return stacked_BL


@dataclass(frozen=True)
class Labelled:
    """Texts that a decoder is taught token by token, on the CPU, int64.

    Nothing is known by a token's number: padding and the closing token may have the same.
    """

    input_BL: Tensor  # prompt and text without its last token, filled up with what no loss looks at
    index_K: Tensor  # which of the B·L positions are asked
    label_K: Tensor
    row_K: Tensor  # whose label it is


def labelled(prompt: Sequence[int], texts: Sequence[Sequence[int]], fill: int) -> Labelled:
    """Texts end in their closing token; the prompt's last position predicts a text's first token."""
    length = len(prompt) - 1 + max(map(len, texts))
    index: list[int] = []
    for b, text in enumerate(texts):
        first = b * length + len(prompt) - 1
        index += range(first, first + len(text))
    return Labelled(
        stack_tokens([[*prompt, *text[:-1]] for text in texts], fill),
        torch.tensor(index),
        torch.tensor([t for text in texts for t in text]),
        torch.tensor([b for b, text in enumerate(texts) for _ in text]),
    )


def noise(n: int, padded: int, tokens: list[int]) -> list[Utterance]:
    """As many alike, out of nothing: for probes."""
    wave_T = np.random.default_rng(0).normal(0, 0.1, size=padded).astype(np.float32)
    return [Utterance(f"dummy-{i}", wave_T, padded, tokens, [], [], heard_T=wave_T) for i in range(n)]


AnyBatch = TypeVar("AnyBatch")


def moved(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """A frozen batch with its tensors on another device, and those of a batch inside it."""
    there: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            there[name] = value.to(device, non_blocking=True)
        elif hasattr(value, "to"):
            there[name] = value.to(device)
    return replace(batch, **there)  # type: ignore[type-var]
