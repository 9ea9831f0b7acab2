"""The sections that every recipe has, whatever its task."""

from collections.abc import Callable, Iterable

from pydantic import Field

from trainer.recipe.adapters import Lora
from trainer.recipe.augment import Augment
from trainer.recipe.data import Data
from trainer.recipe.eval import Eval
from trainer.recipe.log import Log
from trainer.recipe.loop import Loop
from trainer.recipe.loss import Loss
from trainer.recipe.optim import Optim
from trainer.recipe.section import Section
from trainer.recipe.stop import Stop


class Recipe(Section):
    """All that decides what a training is. Each task's recipe adds `task` and `model`."""

    task: str = Field(description="the model family")
    data: Data
    loss: Loss = Loss()
    optim: Optim
    loop: Loop
    adapters: Lora | None = Field(default=None, description="none: all weights are trained")
    augment: Augment = Augment()
    eval: Eval
    log: Log = Log()
    stop: Stop = Stop()

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
            }
        )


# A run may be resumed after a change in these and no others: length, evaluation and logging change no weight.
RESUMABLE_CHANGES = (
    "loop.steps",
    "loop.epochs",
    "loop.save_every_s",
    "loop.save_every_steps",
    "loop.keep_last",
    "loop.keep_best",
    "loop.micro_s",
    "data.workers",
    "data.cache_gb",
    "data.cache_dir",
    "eval",
    "log",
    "stop",
)
