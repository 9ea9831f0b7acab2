"""How quality is measured: how often, after which normaliser, with which decoding."""

from typing import Literal

from pydantic import Field

from trainer.recipe.section import Section


class Decode(Section):
    """How transcripts are decoded."""

    beams: int = Field(default=1, ge=1, le=64, description="1 is greedy")
    max_new_tokens: int = Field(default=128, gt=0, description="a transcript's tokens, at most")
    window: Literal["own", "full"] = Field(
        default="own",
        description="own: the utterance's padded length; full: the model's window, as the stock pipeline pads",
    )
    long: Literal["cut", "refuse"] = Field(
        default="cut",
        description="what is longer than data.max_s: cut at its quietest places, the texts joined; or unusable",
    )


class Eval(Section):
    """Word error rates are pooled over the corpus: all errors by all reference words."""

    normaliser: Literal["basic", "english", "none"] = Field(
        description="applied to both sides before words are compared; english is that of Whisper"
    )
    metric: Literal["wer", "cer"] = Field(default="wer", description="chooses the best checkpoint, on dev")
    every_steps: int = Field(gt=0, description="dev is decoded every so many steps, and at the end")
    before_training: bool = Field(
        default=True, description="decode dev before the first step: the first row of every report"
    )
    buckets: list[str] = Field(
        default=[], description="fields whose values are reported apart: of the manifest, or duration"
    )
    worst: int = Field(default=20, ge=0, description="so many of the worst utterances are kept with their sound")
    decode: Decode = Decode()
    micro_s: float | None = Field(default=None, gt=0, description="as loop.micro_s, for decoding; that by default")
    bootstrap: int = Field(default=1000, ge=0, description="resamples behind the 95 % interval; 0: none")
