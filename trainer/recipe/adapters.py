"""What is trained of a large model: all of it, or low-rank adapters."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.recipe.section import Section


class Adapters(Section):
    """Low-rank adapters (LoRA: Hu et al., 2021), on a base that is frozen."""

    kind: Literal["lora", "dora", "qlora"] = Field(
        default="lora",
        description="dora: length and direction apart (Liu et al., 2024); qlora: lora on a base of 4 bits a weight, "
        "nf4 (Dettmers et al., 2023)",
    )
    r: int = Field(default=16, gt=0, description="rank: columns of each low-rank factor")
    alpha: float = Field(default=32.0, gt=0, description="what an adapter adds is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of an adapter's inputs that are zeroed")
    targets: str = Field(
        default="all-linear",
        min_length=1,
        description="a preset of the task (all-linear, attention, decoder) or a regular expression over module names",
    )
    base_dtype: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the frozen base, with qlora of what is not nf4; adapters stay float32"
    )
    double_quantisation: bool = Field(
        default=False, description="qlora: the scales of nf4 in 8 bits as well, 4.1 bits a weight instead of 4.5"
    )

    @field_validator("targets")
    @classmethod
    def _is_an_expression(cls, targets: str) -> str:
        try:
            re.compile(targets)
        except re.error as e:
            raise ValueError(f"is neither a preset nor a regular expression: {e}") from None
        return targets

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.double_quantisation and self.kind != "qlora":
            raise ValueError(f"double_quantisation is for kind qlora, not for {self.kind}")
        return self
