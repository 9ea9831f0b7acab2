"""What is written down while training."""

from pydantic import Field

from trainer.recipe.section import Section


class Log(Section):
    every_steps: int = Field(default=10, gt=0)
    tensorboard: bool = True
