"""What is minimised, beside the task's own losses."""

from pydantic import Field

from trainer.recipe.section import Section


class Loss(Section):
    """What is minimised, beside the task's own losses."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of each target that is spread over all other labels"
    )
