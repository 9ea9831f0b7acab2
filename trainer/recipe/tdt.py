"""The recipe of task `tdt`: transducers with durations (TDT, Xu et al., 2023) or without (RNN-T, Graves, 2012)."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from trainer.recipe.acoustic import AcousticModel, AcousticRecipe, AcousticScratch
from trainer.recipe.section import Section


class TdtScratch(AcousticScratch):
    """A small Parakeet with fresh weights: no hub, no download."""

    kind: Literal["tdt", "rnnt"] = Field(default="tdt", description="tdt: tokens have durations; rnnt: they have none")
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


class TdtModel(AcousticModel):
    """Which transducer is trained: one by name, or a small one from fresh weights."""

    from_scratch: TdtScratch | None = Field(default=None, description="instead of name: fresh weights")


class Transducer(Section):
    """What the TDT paper adds to the bare likelihood; RNN-T has neither."""

    sigma: float = Field(
        default=0.02, ge=0, lt=1, description="taken off every token's log-probability: favours longer durations"
    )
    omega: float = Field(
        default=0.0, ge=0, lt=1, description="share of the loss that is RNN-T's, over the same tokens without durations"
    )


class TdtRecipe(AcousticRecipe):
    """Transducers: Parakeet with durations (TDT, Xu et al., 2023) or without (RNN-T, Graves, 2012)."""

    GROUPS: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "head")
    LOSS: ClassVar[str] = "a transducer"
    DECODER: ClassVar[str] = "the decoder is an LSTM"

    task: Literal["tdt"] = Field(description="the model family")
    model: TdtModel
    transducer: Transducer = Transducer()
