"""The recipe of task `seq2seq`: any encoder-decoder of transformers that listens and writes, but Whisper."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.recipe.base import Recipe
from trainer.recipe.frozen import why_not_cached
from trainer.recipe.section import Section
from trainer.recipe.written import Writing


class Seq2SeqModel(Section):
    """Which model is trained, and how transcripts are written for it."""

    name: str = Field(
        min_length=1,
        description="a Hub id, or a directory in the Hub's layout: Speech2Text, SpeechT5, Moonshine, Canary, Cohere's, "
        "SeamlessM4T, or a speech-encoder-decoder of wav2vec 2.0, HuBERT or WavLM and any decoder",
    )
    revision: str | None = Field(default=None, description="of the Hub id: a commit, tag or branch")
    language: str | None = Field(
        default=None, description="for models whose prompt names one: en, he, … as the model calls it"
    )
    prompt: str | None = Field(
        default=None,
        min_length=1,
        description="what stands before every transcript, written in the model's own tokens; by default the token its "
        "decoder starts with, and what language asks for",
    )
    text: Writing = Field(
        default="as_is",
        description="how transcripts are written as targets: many tokenizers know capitals alone, or small letters "
        "alone; basic is eval's normaliser of that name",
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="everywhere; the model's own where none is given"
    )
    freeze_features: bool = Field(
        default=True,
        description="wav2vec 2.0's convolutions over the wave, and those of its heirs, are not trained; others are",
    )
    attention: Literal["eager", "sdpa"] = Field(
        default="sdpa",
        description="how attention is computed, where the model has both; eager is faster in bf16 on a CPU",
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> "Seq2SeqModel":
        if self.language is not None and self.prompt is not None:
            raise ValueError("give either language or prompt, one of them: a prompt says all")
        return self


class Seq2SeqRecipe(Recipe):
    """Any other encoder-decoder that listens and writes: AutoModelForSpeechSeq2Seq of transformers."""

    GROUPS: ClassVar[tuple[str, ...]] = ("encoder", "projector", "decoder")

    task: Literal["seq2seq"] = Field(description="the model family")
    model: Seq2SeqModel

    @model_validator(mode="after")
    def _fits(self) -> "Seq2SeqRecipe":
        wrong = []
        if self.eval.decode.window != "own":
            wrong.append("eval.decode.window must be own: only Whisper has a window to fill")
        if self.data.frozen_gb:
            wrong.append(f"data.frozen_gb must be 0: {why_not_cached(self)}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
