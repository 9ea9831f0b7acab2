"""What a frozen encoder says of training utterances, kept on the local disk: from the second epoch on it is only read.

An utterance is encoded by itself, so what is kept is a function of it alone, and a training whose cache was lost meets
the same numbers again. Whether a recipe allows it at all: trainer.recipe.frozen.

P encoder positions · D model width
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.pcm import recording_key
from trainer.data.places import open_frozen
from trainer.errors import BadRecipe
from trainer.machine import resolved_precision
from trainer.recipe.base import Recipe
from trainer.task import Example

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
CHANCES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")


class FrozenStates:
    """One encoder's outputs by utterance. In half precision they are kept so, as the decoder reads nothing finer."""

    def __init__(self, recipe: Recipe) -> None:
        self._store = open_frozen(recipe.data)
        self._precision = resolved_precision(recipe.loop) if self.is_on else ""
        self._kind = KINDS.get(self._precision, torch.float32)
        self._model = ""  # its hash, once it is there

    @property
    def is_on(self) -> bool:
        return self._store is not None

    def watch(self, encoder: nn.Module, config: object) -> None:
        """From here on this encoder is meant. Raises BadRecipe where chance plays in it."""
        if self._store is None:
            return
        drawn = [name for name in CHANCES if getattr(config, name, 0)]
        if drawn:
            raise BadRecipe.one("train.data.frozen_gb", f"must be 0: the encoder draws, by {', '.join(drawn)}")
        self._model = weights_hash(encoder)

    def find(self, examples: Sequence[Example], padded: int, width: int) -> list[Tensor] | None:
        """(P, D) an utterance, or None where one of them is not there yet: they are encoded together."""
        found = []
        for e in examples:
            key = self._key(e, padded)
            hit = self._store.get(key) if self._store is not None and key else None
            if hit is None:
                return None
            flat = torch.from_numpy(np.frombuffer(hit[0], np.uint8).copy()).view(self._kind)
            found.append(flat.reshape(-1, width))
        return found

    def encode(self, examples: Sequence[Example], padded: int, encode_one: Callable[[int], Tensor]) -> Tensor:
        """(B, P, D), one after the other, and kept: a wait for the device, in the first epoch only."""
        states = []
        for b, e in enumerate(examples):
            with torch.no_grad():
                state_PD = encode_one(b)[0].to(self._kind)
            key = self._key(e, padded)
            if key and self._store is not None:
                self._store.put(key, state_PD.contiguous().view(torch.uint8).cpu().numpy().tobytes())
            states.append(state_PD)
        return torch.stack(states)

    def _key(self, e: Example, padded: int) -> bytes:
        return recording_key(e.audio, e.start_s, e.duration_s, padded, self._precision, self._model)


def weights_hash(module: nn.Module) -> str:
    """Of all parameters and buffers, by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
