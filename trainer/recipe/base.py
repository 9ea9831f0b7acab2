"""The sections that every recipe has, whatever its task."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Self

from pydantic import Field, model_validator

from trainer.recipe.adapters import Adapters
from trainer.recipe.augment import Augment
from trainer.recipe.averaging import Averaging
from trainer.recipe.data import Data
from trainer.recipe.eval import Eval
from trainer.recipe.log import Log
from trainer.recipe.loop import Loop
from trainer.recipe.loss import Loss
from trainer.recipe.optim import Optim
from trainer.recipe.phases import Phase, mistakes_in
from trainer.recipe.section import Section
from trainer.recipe.stop import Stop


class Recipe(Section):
    """All that decides what a training is. Each task's recipe adds `task` and `model`."""

    GROUPS: ClassVar[tuple[str, ...]]  # of parameters: what rates and phases may name

    task: str = Field(description="the model family")
    data: Data
    loss: Loss = Loss()
    optim: Optim
    loop: Loop
    adapters: Adapters | None = Field(default=None, description="none: all weights are trained")
    phases: list[Phase] = Field(
        default=[], description="what trains from which epoch on; none: everything, all the time"
    )
    averaging: Averaging = Averaging()
    augment: Augment = Augment()
    eval: Eval
    log: Log = Log()
    stop: Stop = Stop()

    @model_validator(mode="after")
    def _phases_agree(self) -> Self:
        wrong = mistakes_in(self.phases, self.optim.rates, self.loop.epochs, self.GROUPS)
        if wrong:
            raise ValueError("; ".join(wrong))
        if self.loop.shard and self.data.frozen_gb:
            raise ValueError("loop.shard excludes data.frozen_gb: say 0 to one of them")
        return self

    @property
    def n_kept_best(self) -> int:
        """How many of the best checkpoints are kept."""
        return max(self.loop.keep_best, self.averaging.best or 1)

    @property
    def augments(self) -> list[Augment]:
        """Every augmentation that some utterance may meet."""
        return [self.augment, *(s.augment for s in self.data.sources if s.augment is not None)]

    def resolved(self, texts: Callable[[], Iterable[str]]) -> "Recipe":
        """With all that only the training set's transcripts can say (a vocabulary): what is kept with the run."""
        return self

    def exceptions(self) -> list[str]:
        """Which laws this training breaks as it was asked to, a sentence each: told by `check` and at the start."""
        return []

    def debugged(self) -> "Recipe":
        """The same training in a minute: 100 utterances trained, 20 validated and tested, a few steps."""
        loop = self.loop.model_copy(update={"steps": 6, "epochs": None})
        if self.loop.step_utts:
            loop = loop.model_copy(update={"step_utts": min(self.loop.step_utts, 16)})
        data = {"limit_train": 100, "limit_dev": 20, "limit_test": 20}
        if self.data.dev_from_train:
            data["dev_from_train"] = min(self.data.dev_from_train, 20)
        ev: dict[str, object] = {"every_steps": 3, "bootstrap": min(self.eval.bootstrap, 100)}
        ev["decode"] = self.eval.decode.model_copy(update={"max_new_tokens": min(self.eval.decode.max_new_tokens, 24)})
        return self.model_copy(
            update={
                "loop": loop,
                "data": self.data.model_copy(update=data),
                "eval": self.eval.model_copy(update=ev),
                "log": self.log.model_copy(update={"every_steps": 1}),
                "phases": [p.model_copy(update={"from_epoch": 0.25 * n}) for n, p in enumerate(self.phases)],
            }
        )


# A run may be resumed after a change in these and no others: length, evaluation and logging change no weight that
# was trained.
RESUMABLE_CHANGES = (
    "loop.steps",
    "loop.epochs",
    "loop.save_every_s",
    "loop.save_every_steps",
    "loop.keep_last",
    "loop.keep_best",
    "loop.micro_s",
    "loop.try_memory",
    "loop.ranks",
    "loop.shard",
    "loop.wait_s",
    "averaging.best",
    "data.workers",
    "data.cache_gb",
    "data.cache_dir",
    "eval",
    "log",
    "stop",
)
