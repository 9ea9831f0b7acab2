"""What all sections of a recipe share: frozen, no unknown keys, every number with its limit."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe. Immutable; an unknown key is a mistake, not a surprise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
