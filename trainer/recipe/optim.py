"""The optimiser and its schedule."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.recipe.section import Section


class Optim(Section):
    """AdamW (Loshchilov & Hutter, 2019) with a linear warm-up."""

    lr: float = Field(gt=0, description="peak learning rate")
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="parameter group → factor on lr; 0 freezes the group. The task names its groups",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor on lr a layer, counted from the top of each stack of layers (Clark et al., 2020; Bao et "
        "al., 2022): what stands behind the last layer has lr itself, what stands before the first the least",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="AdamW's decay of both running means")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's guard against division by zero")
    weight_decay: float = Field(default=0.01, ge=0, description="on matrices only: not on biases, norms, embeddings")
    clip_norm: float = Field(default=1.0, gt=0, description="the gradient's norm is cut to this")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the rate falls after the warm-up, down to final_share"
    )
    warmup_share: float = Field(
        default=0.1, ge=0, le=1, description="the rate rises from 0 over this share of all steps"
    )
    final_share: float = Field(default=0.0, ge=0, le=1, description="the last learning rate, as a share of lr")
