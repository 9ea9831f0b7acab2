"""Everything the trainer tells a person when it can't go on.

TrainerError            1
├── BadRecipe           2   mistakes in an experiment file, all at once
├── BadData             2   a manifest or its audio, as a whole
├── AudioError          –   one recording; becomes a line in quarantine.jsonl
├── Diverged            1   too many non-finite steps in a row
├── OutOfMemory         1   one utterance alone is too much for the device
├── NoSpace             1   the disk is full
├── BadCheckpoint       1   a checkpoint that is not what it says
├── RankLost           69   another rank is gone; the launcher makes 1 of it, and says why
└── StopAsked          75   asked to stop; everything is saved

(`remote.fence.Superseded`, exit 75, comes from the contract.)
"""

from collections.abc import Sequence

from remote.mistakes import Mistake

EXIT_ALONE = 69  # of a rank whose fellow is gone: not the cause of anything
EXIT_SMALLER = 70  # of ranks that are to be started again, with batches cut finer


class TrainerError(Exception):
    """What is the case, in one sentence; `hint`: what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadRecipe(TrainerError):
    exit_code = 2

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(m) for m in mistakes))
        self.mistakes = list(mistakes)

    @classmethod
    def one(cls, where: str, what: str) -> "BadRecipe":
        return cls([Mistake(where, what)])


class BadData(TrainerError):
    exit_code = 2


class AudioError(TrainerError):
    pass


class Diverged(TrainerError):
    pass


class OutOfMemory(TrainerError):
    @classmethod
    def of_one(
        cls,
        padded_s: float,
        hint: str = "set loop.gradient_checkpointing: true, train adapters, or lower data.max_s",
    ) -> "OutOfMemory":
        return cls(f"one utterance of {padded_s:g} s is too much for this device's memory", hint)


class NoSpace(TrainerError):
    pass


class BadCheckpoint(TrainerError):
    pass


class RankLost(TrainerError):
    exit_code = EXIT_ALONE


class StopAsked(TrainerError):
    exit_code = 75
