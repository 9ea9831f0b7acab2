"""What is written down while training."""

from pydantic import Field

from trainer.recipe.section import Section


class Log(Section):
    """What is written down while training."""

    every_steps: int = Field(
        default=10, gt=0, description="a line in the log, and a row of metrics, every so many steps"
    )
    tensorboard: bool = Field(default=True, description="also write events for TensorBoard")
    report: bool = Field(default=True, description="write the page reports/report.html at the end (5 MB and more)")
