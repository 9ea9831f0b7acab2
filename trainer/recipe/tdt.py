"""The recipe of task `tdt`: transducers with durations (TDT, Xu et al., 2023) or without (RNN-T, Graves, 2012)."""

from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import Field, field_validator, model_validator

from trainer.recipe.base import Recipe
from trainer.recipe.ctc import live_statistics
from trainer.recipe.section import Section
from trainer.recipe.written import Writing, letters_of


class TdtScratch(Section):
    """A small Parakeet with fresh weights: no hub, no download."""

    kind: Literal["tdt", "rnnt"] = Field(default="tdt", description="tdt: tokens have durations; rnnt: they have none")
    d_model: int = Field(default=128, gt=0, multiple_of=8, description="width of every layer")
    layers: int = Field(default=2, gt=0, description="layers of the encoder")
    heads: int = Field(default=4, gt=0, description="attention heads; they divide d_model")
    ffn: int = Field(default=512, gt=0, description="width of the feed-forward part")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of activations zeroed in training")
    channels: int = Field(default=64, gt=0, description="of the convolutions before the encoder")
    mels: int = Field(default=80, ge=8, multiple_of=8, description="mel bins of the input")
    subsampling: Literal[2, 4, 8] = Field(default=4, description="frames of 10 ms that become one")
    decoder_dim: int = Field(default=128, gt=0, description="of the prediction network and the joint network")
    decoder_layers: int = Field(default=1, gt=0, description="LSTM layers of the prediction network")
    durations: list[int] = Field(default=[0, 1, 2, 3, 4], description="tdt: how many frames a token or blank may last")

    @field_validator("durations")
    @classmethod
    def _is_counted(cls, durations: list[int]) -> list[int]:
        if durations != list(range(len(durations))) or len(durations) < 2:
            # ParakeetForTDT.generate takes the place in the list for the duration itself (transformers 5.23)
            raise ValueError("must be 0, 1, 2, … without a gap, two of them at least")
        return durations

    @model_validator(mode="after")
    def _heads_divide(self) -> "TdtScratch":
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model})")
        return self


class TdtModel(Section):
    """Which transducer is trained: one by name, or a small one from fresh weights."""

    name: str | None = Field(default=None, description="a Hub id, or a directory in the Hub's layout: TDT or RNN-T")
    revision: str | None = Field(default=None, description="of the Hub id: a commit, tag or branch")
    from_scratch: TdtScratch | None = Field(default=None, description="instead of name: fresh weights")
    vocabulary: Literal["tokenizer", "transcripts"] = Field(
        default="tokenizer",
        description="tokenizer: the model's own; transcripts: the training set's characters, with a fresh embedding "
        "and last layer",
    )
    letters: list[str] | None = Field(
        default=None,
        min_length=1,
        description="the characters of vocabulary: transcripts; found in the training set and kept with the run "
        "where none are given",
    )
    text: Writing = Field(
        default="as_is", description="how transcripts are written as targets; basic is eval's normaliser of that name"
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
    def _one_source(self) -> "TdtModel":
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
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Transducer(Section):
    """What the TDT paper adds to the bare likelihood; RNN-T has neither."""

    sigma: float = Field(
        default=0.02, ge=0, lt=1, description="taken off every token's log-probability: favours longer durations"
    )
    omega: float = Field(
        default=0.0, ge=0, lt=1, description="share of the loss that is RNN-T's, over the same tokens without durations"
    )


class TdtRecipe(Recipe):
    """Transducers: Parakeet with durations (TDT, Xu et al., 2023) or without (RNN-T, Graves, 2012)."""

    task: Literal["tdt"] = Field(description="the model family")
    model: TdtModel
    transducer: Transducer = Transducer()

    @model_validator(mode="after")
    def _fits_transducer(self) -> "TdtRecipe":
        wrong = []
        if self.loss.label_smoothing:
            wrong.append("loss.label_smoothing is not for a transducer")
        if self.eval.decode.beams != 1:
            wrong.append("eval.decode.beams must be 1: a transducer is decoded greedily here")
        if self.eval.decode.window != "own":
            wrong.append("eval.decode.window must be own: the encoder has no window to fill")
        if self.adapters and self.model.from_scratch:
            wrong.append("adapters need a trained base: give model.name, not model.from_scratch")
        if self.adapters and self.adapters.targets == "decoder":
            wrong.append("adapters.targets: the decoder is an LSTM; known are all-linear, attention, or an expression")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def resolved(self, texts: Callable[[], Iterable[str]]) -> "TdtRecipe":
        """With the letters of the vocabulary, found in the training set's transcripts."""
        if self.model.vocabulary != "transcripts" or self.model.letters is not None:
            return self
        letters = letters_of(texts(), self.model.text)
        return self.model_copy(update={"model": self.model.model_copy(update={"letters": letters})})

    def exceptions(self) -> list[str]:
        return live_statistics(self.model.batch_statistics)
