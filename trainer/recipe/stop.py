"""When training ends before its length is reached."""

from pydantic import Field

from trainer.recipe.section import Section


class Stop(Section):
    """When training ends before its length is reached."""

    patience: int | None = Field(default=None, gt=0, description="evaluations without a better one before stopping")
    max_nonfinite: int = Field(
        default=10,
        gt=0,
        description="steps in a row whose loss or gradient is not finite before giving up; fp16's search for a scale "
        "does not count",
    )
