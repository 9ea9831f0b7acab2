"""How much arithmetic a training step is: what a figure such as the share of a device's peak is made of.

A matrix of N weights that meets T vectors is 2·N·T operations forward. Backward it is 2·N·T for the gradient of its
input, and 2·N·T more for its own where it is trained: 6·N·T in all, 4·N·T for a frozen one. Attention's scores and sums
have no weights: 4·Q·K·D forward, twice that backward. What is computed again to save memory is no progress and is not
counted; nor is what costs little: norms, activations, softmax, the optimiser, features.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Matrix:
    """A layer's weights, and how many vectors they are multiplied with, in a batch."""

    weights: int
    vectors: int
    is_trained: bool
    is_passed: bool = True  # the gradient goes on through it, to what is trained below


@dataclass(frozen=True)
class Attention:
    """All scores of a layer in a batch: so many pairs of query and key, each over `width` numbers (all heads)."""

    pairs: int
    width: int
    is_passed: bool = True


@dataclass(frozen=True)
class Work:
    """What a forward pass multiplies."""

    matrices: tuple[Matrix, ...] = ()
    attentions: tuple[Attention, ...] = ()

    def __add__(self, other: "Work") -> "Work":
        return Work(self.matrices + other.matrices, self.attentions + other.attentions)

    @property
    def forward_flops(self) -> int:
        return 2 * sum(m.weights * m.vectors for m in self.matrices) + 4 * sum(
            a.pairs * a.width for a in self.attentions
        )

    @property
    def step_flops(self) -> int:
        """Forward and backward."""
        back = sum(2 * m.weights * m.vectors * (m.is_trained + m.is_passed) for m in self.matrices)
        return self.forward_flops + back + sum(8 * a.pairs * a.width for a in self.attentions if a.is_passed)


def matrices_of(
    module: nn.Module, vectors_of: Callable[[str], int], is_passed: Callable[[str], bool] = lambda name: True
) -> Iterable[Matrix]:
    """Every linear layer and convolution, adapters' own included; `vectors_of` says how many vectors meet a name."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            yield Matrix(layer.weight.numel(), vectors_of(name), layer.weight.requires_grad, is_passed(name))


def whisper_work(module: nn.Module, config: Any, n: int, positions: int, tokens: int, labelled: int) -> Work:
    """A Whisper's, for `n` utterances of so many encoder positions and decoder tokens each; `labelled` in all."""

    def vectors_of(name: str) -> int:
        if name.endswith("proj_out"):
            return labelled
        if "conv1" in name:
            return 2 * n * positions  # before its stride of two
        is_heard = re.search(r"(^|\.)encoder\.|encoder_attn\.[kv]_proj", name)
        return n * positions if is_heard else n * tokens

    def is_encoder(name: str) -> bool:
        return re.search(r"(^|\.)encoder\.", name) is not None

    encoder_learns = any(p.requires_grad for name, p in module.named_parameters() if is_encoder(name))

    def is_passed(name: str) -> bool:
        return encoder_learns or not re.search(r"(^|\.)encoder\.|encoder_attn\.[kv]_proj", name)

    width = int(config.d_model)
    heard = Attention(n * positions * positions, width, encoder_learns)
    read = (Attention(n * tokens * tokens, width), Attention(n * tokens * positions, width))
    attentions = int(config.encoder_layers) * (heard,) + int(config.decoder_layers) * read
    return Work(tuple(matrices_of(module, vectors_of, is_passed)), attentions)
