"""What CTC and transducers share: an encoder hears frame by frame, and what is written must fit the frames heard.

B batch · T samples (16 kHz) · M mel bins · F mel frames (10 ms)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, ParakeetEncoderConfig

from trainer.data.audio import padded_samples
from trainer.data.drawn import Drawn, draw_lengths, draw_spans, own, read_drawn
from trainer.data.features import ParakeetMel, mask_spans
from trainer.data.noise import noise_of, open_noises
from trainer.data.places import open_cache
from trainer.errors import AudioError
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.acoustic import AcousticModel, AcousticRecipe, AcousticScratch
from trainer.recipe.eval import Decode
from trainer.recipe.written import written
from trainer.task import Bad, Draw, Example, Fitted, Report, Row, Size
from trainer.tasks import hub
from trainer.tasks.depths import depths_of
from trainer.tasks.letters import Strangers, encoded
from trainer.tasks.utterances import Utterance

SHORTEST = 400  # samples: two mel frames, one frame of an encoder over the wave
PARAKEET_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")

R = TypeVar("R", bound=AcousticRecipe)


class AcousticTask(ABC, Generic[R]):
    """The half of trainer.task.Task that asks for nothing but lengths and tokens."""

    def __init__(self, recipe: R, extractor: Any, tokenizer: Any, config: Any, blank: int) -> None:
        self.recipe = recipe
        self.extractor, self.tokenizer, self.config, self.blank = extractor, tokenizer, config, blank
        self._audio = open_cache(recipe.data)
        self._noises = open_noises(recipe)
        self._strangers = Strangers(tokenizer)

    @abstractmethod
    def n_frames(self, n_samples: int) -> int:
        """The encoder's frames of so many samples."""

    @abstractmethod
    def fits(self, text: str, n_samples: int) -> bool:
        """Whether the frames of so many samples can hold the text."""

    @abstractmethod
    def _why_not(self, tokens: list[int], n_frames: int) -> str:
        """Of a text that does not fit, in a sentence."""

    @abstractmethod
    def _masked_over(self, n_samples: int) -> tuple[int, int]:
        """What SpecAugment masks: bins and frames."""

    @abstractmethod
    def _processor(self) -> Any:
        """Extractor and tokenizer, to be saved beside the weights."""

    def _levelled(self, wave_T: np.ndarray) -> np.ndarray:
        """The wave as the encoder wants it."""
        return wave_T

    # ---- networks

    def groups(self, module: nn.Module) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {group: [] for group in self.recipe.GROUPS}
        for name, p in module.named_parameters():
            if p.requires_grad:
                found[self._group_of(name)].append(name)
        return found

    @abstractmethod
    def _group_of(self, name: str) -> str:
        """Which of the recipe's GROUPS a parameter belongs to."""

    def depths(self, module: nn.Module) -> Mapping[str, int]:
        return depths_of((name for name, _ in module.named_parameters()), self._below)

    @property
    @abstractmethod
    def _below(self) -> str:
        """An expression for the parameters that stand before the first layer."""

    def save(self, module: nn.Module, directory: Path) -> None:
        hub.save(module, directory, self._processor())

    def export(self, module: nn.Module, directory: Path) -> None:
        hub.export(module, directory, self._processor())

    # ---- an utterance

    def drawn(self, example: Example, draw: Draw | None) -> Drawn:
        data = self.recipe.data
        return draw_lengths(example, draw, own(draw, self.recipe), data.edge_s, data.max_s, self.fits)

    def size(self, example: Example, draw: Draw | None) -> Size:
        drawn = self.drawn(example, draw)
        return Size(drawn.padded_s, drawn.audio_s, len(drawn.text))

    def load(self, examples: Sequence[Example], draws: Sequence[Draw | None]) -> Sequence[Utterance | Bad]:
        return [self._load(e, d) for e, d in zip(examples, draws, strict=True)]

    def _load(self, example: Example, draw: Draw | None) -> Utterance | Bad:
        drawn, how = self.drawn(example, draw), own(draw, self.recipe)
        if drawn.n_samples < SHORTEST or self.n_frames(drawn.n_samples) < 1:
            return Bad(example.id, f"{drawn.audio_s:.3f} s is too short for this encoder")
        tokens: list[int] = []
        if draw is not None:
            tokens = self._tokens(drawn.text)
            reason = self._unusable(drawn, tokens)
            if reason:
                return Bad(example.id, reason)
        try:
            wave_T = read_drawn(self._audio, example, drawn, draw, how, noise_of(how, self._noises))
        except AudioError as e:
            return Bad(example.id, e.message)
        bins, frames = self._masked_over(drawn.n_samples)
        freq, time = draw_spans(draw, how.spec, bins, frames)
        heard_T = wave_T if draw is not None and self.recipe.loss.distill else None
        return Utterance(example.id, self._levelled(wave_T), drawn.padded, tokens, freq, time, heard_T=heard_T)

    def item(self, id: str, wave_T: np.ndarray) -> Utterance:
        """A sound that no manifest names, ready to be collated: a window of a longer one."""
        padded = padded_samples(len(wave_T), self.recipe.data.edge_s)
        return Utterance(id, self._levelled(wave_T), padded, [], [], [])

    def _unusable(self, drawn: Drawn, tokens: list[int]) -> str:
        """Why a transcript can't be learnt from its audio; empty where it can."""
        if not tokens:
            return f"nothing is left of its transcript {drawn.text!r} as train.model.text writes it"
        missing = self._strangers.missing(drawn.text, self.recipe.model.text)
        if missing:
            return f"the vocabulary lacks {missing!r} of its transcript: see train.model.text and .vocabulary"
        if self.blank in tokens:
            return "its transcript holds the blank's own name"
        if not self.fits(drawn.text, drawn.n_samples):
            return self._why_not(tokens, self.n_frames(drawn.n_samples))
        return ""

    def _tokens(self, text: str) -> list[int]:
        return encoded(self.tokenizer, written(text, self.recipe.model.text))

    # ---- what is said

    def _rows(self, ids: Sequence[str], said: Iterable[Sequence[int]]) -> list[Row]:
        texts = (self.tokenizer.decode(t, group_tokens=False, skip_special_tokens=True) for t in said)
        return [{"id": i, "text": text.strip()} for i, text in zip(ids, texts, strict=True)]

    def final_decodes(self, decode: Decode) -> Mapping[str, Decode]:
        return {"greedy": decode}

    def score(self, rows: Iterable[Row], fitted: Fitted | None = None) -> Report:
        return score_transcripts(rows, self.recipe.eval)


def parakeet_frames(config: Any, n_mel: int) -> int:
    """Frames that a ParakeetEncoderConfig's convolutions make of so many mel frames."""
    size, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
    for _ in range(int(math.log2(config.subsampling_factor))):
        n_mel = (n_mel + (size - 1) // 2 * 2 - size) // stride + 1
    return n_mel


def parakeet_mel(mel: ParakeetMel, batch: Any, train: bool) -> Tensor:
    """(B, F, M) of a batch's waves, its spans masked in training."""
    mel_BFM: Tensor = mel.to(batch.wave_BT.device)(batch.wave_BT, batch.samples_B)
    if train and batch.freq_spans.shape[1] + batch.time_spans.shape[1]:
        mel_BFM = mask_spans(mel_BFM.transpose(1, 2), batch.freq_spans, batch.time_spans).transpose(1, 2)
    return mel_BFM


def parakeet_scratch(how: AcousticScratch) -> dict[str, Any]:
    """The `encoder_config` of a small Parakeet."""
    encoder = ParakeetEncoderConfig(
        hidden_size=how.d_model,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        intermediate_size=how.ffn,
        num_mel_bins=how.mels,
        subsampling_factor=how.subsampling,
        subsampling_conv_channels=how.channels,
        **dict.fromkeys(PARAKEET_DROPOUTS, how.dropout),
    )
    told: dict[str, Any] = encoder.to_dict()
    return told


def trained_config(how: AcousticModel) -> Any:
    """Of a model that has trained weights. Raises BadRecipe."""
    return hub.beside_weights(AutoConfig, how.name, how.revision)


def own_tokenizer(how: AcousticModel) -> Any:
    """The tokenizer that lies beside the weights. Raises BadRecipe."""
    hint = "; with vocabulary: transcripts it needs no tokenizer"
    return hub.beside_weights(AutoTokenizer, how.name, how.revision, hint)


def steadied(config: Any, inner: Any, how: AcousticModel, dropouts: Iterable[str], attention: str) -> None:
    """A configuration and its encoder's, as the recipe wants them."""
    inner.layerdrop = 0.0  # its chance would be a micro-batch's, and several ranks would wait for the dropped layers
    if how.dropout is not None:
        for name in dropouts:
            setattr(inner, name, how.dropout)
    config._attn_implementation = inner._attn_implementation = attention
