"""The recipe of task `ctc` (Graves et al., 2006): wav2vec 2.0, HuBERT, WavLM or Parakeet, and one linear layer."""

from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import Field, model_validator

from trainer.recipe.base import Recipe
from trainer.recipe.section import Section
from trainer.recipe.written import Writing, letters_of


class CtcScratch(Section):
    """A small encoder with fresh weights: no hub, no download."""

    family: Literal["parakeet", "wav2vec2", "hubert", "wavlm"] = Field(
        default="parakeet", description="parakeet hears log-mel and learns from little data; the others hear the wave"
    )
    d_model: int = Field(default=128, gt=0, multiple_of=8, description="width of every layer")
    layers: int = Field(default=2, gt=0, description="layers of the encoder")
    heads: int = Field(default=4, gt=0, description="attention heads; they divide d_model")
    ffn: int = Field(default=512, gt=0, description="width of the feed-forward part")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of activations zeroed in training")
    channels: int = Field(default=64, gt=0, description="of the convolutions before the encoder")
    mels: int = Field(default=80, ge=8, multiple_of=8, description="mel bins of parakeet's input")
    subsampling: Literal[2, 4, 8] = Field(default=4, description="parakeet: frames of 10 ms that become one")
    norm: Literal["group", "layer"] = Field(default="group", description="of the convolutions over the wave")

    @model_validator(mode="after")
    def _heads_divide(self) -> "CtcScratch":
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model})")
        return self


class CtcModel(Section):
    """Which encoder is trained: one by name, or a small one from fresh weights."""

    name: str | None = Field(default=None, description="a Hub id, or a directory in the Hub's layout")
    revision: str | None = Field(default=None, description="of the Hub id: a commit, tag or branch")
    from_scratch: CtcScratch | None = Field(default=None, description="instead of name: fresh weights")
    vocabulary: Literal["tokenizer", "transcripts"] = Field(
        default="tokenizer",
        description="tokenizer: the model's own; transcripts: the training set's characters, with a fresh last layer",
    )
    letters: list[str] | None = Field(
        default=None,
        min_length=1,
        description="the characters of vocabulary: transcripts; found in the training set and kept with the run "
        "where none are given",
    )
    text: Writing = Field(
        default="as_is",
        description="how transcripts are written as targets: many tokenizers know capitals alone, or small letters "
        "alone; basic is eval's normaliser of that name",
    )
    freeze_features: bool | None = Field(
        default=None, description="the convolutions over the wave are not trained; by default where they come trained"
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="everywhere; the model's own where none is given"
    )
    batch_statistics: Literal["frozen", "live"] = Field(
        default="frozen",
        description="of batch norms. live: what an utterance yields in training depends on its neighbours",
    )
    attention: Literal["eager", "sdpa"] = Field(
        default="sdpa", description="how attention is computed; eager is faster in bf16 on a CPU"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "CtcModel":
        wrong = []
        if (self.name is None) == (self.from_scratch is None):
            wrong.append("give either name (a Hub id or a directory) or from_scratch, one of them")
        if self.revision and not self.name:
            wrong.append("revision belongs to name")
        if self.from_scratch and self.vocabulary == "tokenizer":
            wrong.append("from_scratch has no tokenizer: say vocabulary: transcripts")
        if self.letters is not None:
            if self.vocabulary == "tokenizer":
                wrong.append("letters belong to vocabulary: transcripts")
            if len(set(self.letters)) != len(self.letters) or any(len(c) != 1 or c.isspace() for c in self.letters):
                wrong.append("letters are single characters, none twice, no space")
        if self.from_scratch and self.from_scratch.family == "parakeet" and self.freeze_features:
            wrong.append("freeze_features is about convolutions over the wave, and parakeet has none")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class CtcRecipe(Recipe):
    """An encoder and one linear layer (Graves et al., 2006): wav2vec 2.0, HuBERT, WavLM or Parakeet."""

    task: Literal["ctc"] = Field(description="the model family")
    model: CtcModel

    @model_validator(mode="after")
    def _fits_ctc(self) -> "CtcRecipe":
        wrong = []
        if self.loss.label_smoothing:
            wrong.append("loss.label_smoothing is not for CTC")
        if self.eval.decode.beams != 1:
            wrong.append("eval.decode.beams must be 1: CTC is decoded greedily here")
        if self.eval.decode.window != "own":
            wrong.append("eval.decode.window must be own: the encoder has no window to fill")
        if self.adapters and self.model.from_scratch:
            wrong.append("adapters need a trained base: give model.name, not model.from_scratch")
        if self.adapters and self.adapters.targets == "decoder":
            wrong.append("adapters.targets: there is no decoder; known are all-linear, attention, or an expression")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def resolved(self, texts: Callable[[], Iterable[str]]) -> "CtcRecipe":
        """With the letters of the vocabulary, found in the training set's transcripts."""
        if self.model.vocabulary != "transcripts" or self.model.letters is not None:
            return self
        letters = letters_of(texts(), self.model.text)
        return self.model_copy(update={"model": self.model.model_copy(update={"letters": letters})})

    def exceptions(self) -> list[str]:
        return live_statistics(self.model.batch_statistics)


def live_statistics(which: str) -> list[str]:
    """The exception to laws 12 and 13 that live batch statistics are, in a sentence."""
    if which == "frozen":
        return []
    return [
        "model.batch_statistics is live: batch norms see the whole micro-batch, so in training what an utterance "
        "yields depends on its neighbours, and an update on loop.micro_s, the GPU and the number of ranks"
    ]
