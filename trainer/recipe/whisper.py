"""The recipe of task `whisper`: encoder-decoder speech recognition (Radford et al., 2022)."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.recipe.base import Recipe
from trainer.recipe.frozen import why_not_cached
from trainer.recipe.section import Section


class WhisperScratch(Section):
    """A small Whisper with fresh weights and a byte-level vocabulary: no hub, no download."""

    d_model: int = Field(default=128, gt=0, multiple_of=8, description="width of every layer")
    encoder_layers: int = Field(default=2, gt=0, description="layers that listen")
    decoder_layers: int = Field(default=2, gt=0, description="layers that write")
    heads: int = Field(default=4, gt=0, description="attention heads; they divide d_model")
    ffn: int = Field(default=512, gt=0, description="width of the feed-forward part")
    mels: int = Field(default=80, gt=0, description="mel bins of the input")
    window_s: int = Field(default=30, gt=0, le=30, description="the encoder's window, whole seconds")
    max_tokens: int = Field(default=448, gt=4, description="tokens of the decoder, its prompt included")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of activations zeroed in training")

    @model_validator(mode="after")
    def _heads_divide(self) -> "WhisperScratch":
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model})")
        return self


class WhisperModel(Section):
    """Which Whisper is trained: one by name, or a small one from fresh weights."""

    name: str | None = Field(default=None, description="a Hub id, or a directory in the Hub's layout")
    revision: str | None = Field(default=None, description="of the Hub id: a commit, tag or branch")
    from_scratch: WhisperScratch | None = Field(default=None, description="instead of name: fresh weights")
    language: str | None = Field(default=None, description="for multilingual models: en, he, …; goes into the prompt")
    task: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="what the prompt of a multilingual model asks for; translate: into English"
    )
    full_window_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of training utterances padded to the whole window, as the stock pipeline will pad; the "
        "others only to their own length",
    )
    full_window_last: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="over which last share of the steps that holds; before, none is padded to the window, which costs "
        "its whole length. 1: from the first step on",
    )
    attention: Literal["eager", "sdpa"] = Field(default="sdpa", description="eager is faster in bf16 on a CPU")

    @model_validator(mode="after")
    def _one_source(self) -> "WhisperModel":
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give either name (a Hub id or a directory) or from_scratch, one of them")
        if self.revision and not self.name:
            raise ValueError("revision belongs to name")
        return self


class WhisperRecipe(Recipe):
    """Encoder-decoder speech recognition (Radford et al., 2022)."""

    GROUPS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    task: Literal["whisper"] = Field(description="the model family")
    model: WhisperModel

    @model_validator(mode="after")
    def _fits_window(self) -> "WhisperRecipe":
        scratch = self.model.from_scratch
        if scratch and self.data.max_s > scratch.window_s:
            raise ValueError(
                f"data.max_s ({self.data.max_s} s) is longer than model.from_scratch.window_s ({scratch.window_s} s)"
            )
        if self.adapters and self.model.from_scratch:
            raise ValueError("adapters need a trained base: give model.name, not model.from_scratch")
        return self

    @model_validator(mode="after")
    def _frozen_outputs_stay(self) -> "WhisperRecipe":
        why_not = why_not_cached(self) if self.data.frozen_gb else ""
        if why_not:
            raise ValueError(f"data.frozen_gb must be 0: {why_not}")
        return self
