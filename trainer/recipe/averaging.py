"""Means of weights: over the steps of a training as it goes, and over its best checkpoints at its end."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.recipe.section import Section


class Averaging(Section):
    """Means of weights, often better than any one of them (Polyak & Juditsky, 1992; Izmailov et al., 2018)."""

    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay a step of a running mean of what is trained, in float32; at first it is "
        "(1 + n) / (10 + n), n steps",
    )
    evaluate: Literal["ema", "raw"] = Field(
        default="ema",
        description="which weights are measured and exported, where there is a running mean; raw: it is only kept",
    )
    best: int | None = Field(
        default=None,
        ge=2,
        description="so many of the checkpoints that are best on dev are kept, and their mean is what is tested and "
        "exported",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.evaluate == "raw" and self.ema is None:
            raise ValueError("evaluate: raw says which of two weights are measured: without ema there is one kind")
        return self
