"""The recipe of task `ctc` (Graves et al., 2006): wav2vec 2.0, HuBERT, WavLM or Parakeet, and one linear layer."""

from typing import ClassVar, Literal

from pydantic import Field

from trainer.recipe.acoustic import AcousticModel, AcousticRecipe, AcousticScratch


class CtcScratch(AcousticScratch):
    """A small encoder with fresh weights: no hub, no download."""

    family: Literal["parakeet", "wav2vec2", "hubert", "wavlm"] = Field(
        default="parakeet", description="parakeet hears log-mel and learns from little data; the others hear the wave"
    )
    norm: Literal["group", "layer"] = Field(default="group", description="of the convolutions over the wave")


class CtcModel(AcousticModel):
    """Which encoder is trained: one by name, or a small one from fresh weights."""

    from_scratch: CtcScratch | None = Field(default=None, description="instead of name: fresh weights")
    freeze_features: bool | None = Field(
        default=None, description="the convolutions over the wave are not trained; by default where they come trained"
    )

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.from_scratch and self.from_scratch.family == "parakeet" and self.freeze_features:
            wrong.append("freeze_features is about convolutions over the wave, and parakeet has none")
        return wrong


class CtcRecipe(AcousticRecipe):
    """An encoder and one linear layer (Graves et al., 2006): wav2vec 2.0, HuBERT, WavLM or Parakeet."""

    GROUPS: ClassVar[tuple[str, ...]] = ("features", "encoder", "head")
    LOSS: ClassVar[str] = "CTC"
    DISTILS: ClassVar[bool] = True
    DECODER: ClassVar[str] = "there is no decoder"

    task: Literal["ctc"] = Field(description="the model family")
    model: CtcModel
