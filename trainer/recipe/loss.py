"""What is minimised, beside the task's own losses."""

from pydantic import Field

from trainer.recipe.section import Section


class Anneal(Section):
    """How the teacher's share changes, in a straight line."""

    to: float = Field(default=0.0, ge=0, le=1, description="the teacher's share at its end and from there on")
    over: float = Field(
        default=1.0, gt=0, le=1, description="share of the training's steps over which it gets there; 1: all of them"
    )


class Distill(Section):
    """A frozen teacher, whose distribution over tokens is learnt beside the transcripts (Hinton et al., 2015)."""

    teacher: str = Field(
        min_length=1,
        description="a Hub id, or a directory in the Hub's layout: a model of the same task and vocabulary",
    )
    revision: str | None = Field(default=None, description="of the Hub id: a commit, tag or branch")
    weight: float = Field(
        default=0.5, ge=0, le=1, description="the teacher's share w of the loss at the start: (1 - w) · own + w · kl"
    )
    anneal: Anneal | None = Field(default=None, description="how that share changes; none: it stays")
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="both distributions are flattened by it; the loss is multiplied by its square, as in the paper",
    )

    def share(self, done: float) -> float:
        """The teacher's share when so much of the training lies behind: a pure function, so a resume needs no more."""
        if self.anneal is None:
            return self.weight
        return self.weight + (self.anneal.to - self.weight) * min(1.0, done / self.anneal.over)

    def weights(self, own: str, done: float) -> dict[str, float]:
        """A factor for each loss: the task's own, and the distance from the teacher."""
        share = self.share(done)
        return {own: 1.0 - share, "kl": share}


class Loss(Section):
    """What is minimised, beside the task's own losses."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of each target that is spread over all other labels"
    )
    distill: Distill | None = Field(default=None, description="none: there is no teacher")
