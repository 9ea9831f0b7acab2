"""What is trained of a large model: all of it, or low-rank adapters."""

from typing import Literal

from pydantic import Field

from trainer.recipe.section import Section


class Lora(Section):
    """Low-rank adapters (Hu et al., 2021)."""

    kind: Literal["lora"] = Field(default="lora", description="the one kind there is")
    r: int = Field(default=16, gt=0, description="rank: columns of each low-rank factor")
    alpha: float = Field(default=32.0, gt=0, description="what an adapter adds is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of an adapter's inputs that are zeroed")
    targets: str = Field(
        default="all-linear",
        description="a preset of the task (all-linear, attention, decoder) or a regular expression over module names",
    )
    base_dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="of the frozen base; adapters stay float32")
