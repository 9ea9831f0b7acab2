"""What recipes share whose model hears frame by frame and writes down tokens: an encoder under CTC or a transducer."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer.recipe.base import Recipe
from trainer.recipe.frozen import why_not_cached
from trainer.recipe.section import Section
from trainer.recipe.written import Writing, letters_of


class AcousticScratch(Section):
    """A small encoder with fresh weights: no hub, no download."""

    d_model: int = Field(default=128, gt=0, multiple_of=8, description="width of every layer")
    layers: int = Field(default=2, gt=0, description="layers of the encoder")
    heads: int = Field(default=4, gt=0, description="attention heads; they divide d_model")
    ffn: int = Field(default=512, gt=0, description="width of the feed-forward part")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of activations zeroed in training")
    channels: int = Field(default=64, gt=0, description="of the convolutions before the encoder")
    mels: int = Field(default=80, ge=8, multiple_of=8, description="mel bins of parakeet's input")
    subsampling: Literal[2, 4, 8] = Field(default=4, description="parakeet: frames of 10 ms that become one")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model})")
        return self


class AcousticModel(Section):
    """Which model is trained, by name or from fresh weights, and what it writes."""

    name: str | None = Field(default=None, description="a Hub id, or a directory in the Hub's layout")
    revision: str | None = Field(default=None, description="of the Hub id: a commit, tag or branch")
    from_scratch: AcousticScratch | None = Field(default=None, description="instead of name: fresh weights")
    vocabulary: Literal["tokenizer", "transcripts"] = Field(
        default="tokenizer",
        description="tokenizer: the model's own; transcripts: the training set's characters, with fresh layers where "
        "tokens go in and out",
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

    @property
    def makes_vocabulary(self) -> bool:
        return self.vocabulary == "transcripts"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wrong = self.mistakes()
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def mistakes(self) -> list[str]:
        """All that contradicts itself."""
        wrong = []
        if (self.name is None) == (self.from_scratch is None):
            wrong.append("give either name (a Hub id or a directory) or from_scratch, one of them")
        if self.revision and not self.name:
            wrong.append("revision belongs to name")
        if self.from_scratch and not self.makes_vocabulary:
            wrong.append("from_scratch has no tokenizer: say vocabulary: transcripts")
        if self.letters is not None:
            if not self.makes_vocabulary:
                wrong.append("letters belong to vocabulary: transcripts")
            if len(set(self.letters)) != len(self.letters) or any(len(c) != 1 or c.isspace() for c in self.letters):
                wrong.append("letters are single characters, none twice, no space")
        return wrong


class AcousticRecipe(Recipe):
    """The sections that such recipes add to every recipe's."""

    LOSS: ClassVar[str]  # as a sentence calls it
    DISTILS: ClassVar[bool] = False  # whether a teacher and a student can be compared frame by frame
    DECODER: ClassVar[str]  # why adapters have no preset for it

    model: AcousticModel

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wrong = []
        if self.loss.label_smoothing:
            wrong.append(f"loss.label_smoothing is not for {self.LOSS}")
        if self.loss.distill and not self.DISTILS:
            wrong.append(f"loss.distill is not for {self.LOSS}: it has no distribution over tokens a frame to compare")
        if self.eval.decode.beams != 1:
            wrong.append(f"eval.decode.beams must be 1: {self.LOSS} is decoded greedily here")
        if self.eval.decode.window != "own":
            wrong.append("eval.decode.window must be own: the encoder has no window to fill")
        if self.adapters and self.model.from_scratch:
            wrong.append("adapters need a trained base: give model.name, not model.from_scratch")
        if self.adapters and self.adapters.targets == "decoder":
            wrong.append(f"adapters.targets: {self.DECODER}; known are all-linear, attention, or an expression")
        if self.data.frozen_gb:
            wrong.append(f"data.frozen_gb must be 0: {why_not_cached(self)}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def resolved(self, texts: Callable[[], Iterable[str]]) -> Self:
        """With the letters of the vocabulary, found in the training set's transcripts."""
        if not self.model.makes_vocabulary or self.model.letters is not None:
            return self
        letters = letters_of(texts(), self.model.text)
        return self.model_copy(update={"model": self.model.model_copy(update={"letters": letters})})

    def exceptions(self) -> list[str]:
        if self.model.batch_statistics == "frozen":
            return []
        return [
            "model.batch_statistics is live: batch norms see the whole micro-batch, so in training what an utterance "
            "yields depends on its neighbours, and an update on loop.micro_s, the GPU and the number of ranks"
        ]
