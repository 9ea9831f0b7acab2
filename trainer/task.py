"""The seam between the loop and the model families: all that differs between them, and nothing else.

The loop never asks what kind of task it has. A walk through one batch: manifest row → Example → size → (a step
is drawn, sorted and cut) → load → collate → prepare → losses → the loop divides by the counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from trainer.recipe.augment import Augment
from trainer.recipe.base import Recipe
from trainer.recipe.eval import Decode

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TASKS = {
    "whisper": "trainer.tasks.whisper:WhisperTask",
    "ctc": "trainer.tasks.ctc:CtcTask",
    "tdt": "trainer.tasks.tdt:TdtTask",
    "seq2seq": "trainer.tasks.seq2seq:Seq2SeqTask",
}


DURATIONS_S = (1.0, 3.0, 10.0, 30.0)  # edges of the bucket `duration`


def duration_bucket(duration_s: float) -> str:
    """`under 3 s`, or `longer`."""
    return next((f"under {edge:g} s" for edge in DURATIONS_S if duration_s < edge), "longer")


@dataclass(frozen=True, slots=True)
class Example:
    """One manifest row with its audio found. Seconds are of the recording; `audio` is a path on this machine."""

    id: str
    audio: str
    start_s: float
    duration_s: float
    text: str
    speaker: str = ""
    language: str = ""
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def bucket(self, name: str) -> str:
        """The value of a field that reports are split by: duration, speaker, language, source, or one of meta."""
        if name == "duration":
            return duration_bucket(self.duration_s)
        value = getattr(self, name) if name in ("speaker", "language", "source") else self.meta.get(name, "")
        return str(value)


@dataclass(frozen=True, slots=True)
class Draw:
    """All chance that an utterance meets in an epoch: a function of (seed, epoch, id), so any resume meets it again.

    And where in the training that is, for what belongs to its end.
    """

    seed: int  # of the utterance's own generator, 64 bits
    partners: tuple[Example, ...] = ()  # appended to it, as far as they fit, where augment.join_p says so
    done: float = 0.0  # share of the training's steps that lie before this one
    augment: Augment | None = None  # instead of the recipe's, where its source has one of its own


@dataclass(frozen=True, slots=True)
class Size:
    """What an utterance costs, known before its audio is read."""

    padded_s: float  # its length in the batch, a function of itself alone
    audio_s: float  # its length as drawn
    targets: int  # about how many targets its loss sums over


@dataclass(frozen=True, slots=True)
class Bad:
    """An utterance that could not be used, and why: a line in quarantine.jsonl."""

    id: str
    reason: str


class Batch(Protocol):
    """Homogeneous in padded length. Counts are made on the CPU, before anything moves."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How many targets each loss sums over."""
        ...

    def to(self, device: "torch.device") -> "Batch": ...


@dataclass(frozen=True)
class Parts:
    """A task's networks: the trained module, and frozen ones apart (eval mode, in no optimiser, saved by name)."""

    module: "nn.Module"
    frozen: Mapping[str, "nn.Module"] = field(default_factory=dict)


Row = dict[str, Any]  # one prediction: `id` and what the task says of it; a task's score reads its own rows


@dataclass(frozen=True)
class Fitted:
    """What was fitted on dev and is only applied elsewhere: thresholds by name."""

    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a set of rows is worth. `metrics` are the numbers that are logged; `table` the lines that people read."""

    metrics: Mapping[str, float]
    table: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]


Item = TypeVar("Item")
B = TypeVar("B", bound=Batch)


class Task(Protocol[Item, B]):
    losses_of: Sequence[str]  # the fixed keys of `losses`

    def build(self, saved: Path | None = None) -> Parts:
        """Fresh networks as the recipe says, or with the weights that `save` left in a directory."""
        ...

    def groups(self, module: "nn.Module") -> Mapping[str, list[str]]:
        """Named parameter groups (encoder, projector, decoder, head): every trainable parameter in one of them."""
        ...

    def depths(self, module: "nn.Module") -> Mapping[str, int]:
        """Layers above each parameter in its stack of them: 0 behind the last layer, n + 1 before the first of n."""
        ...

    def size(self, example: Example, draw: Draw | None) -> Size:
        """From the manifest row and the draw alone; no draw in evaluation."""
        ...

    def load(self, examples: Sequence[Example], draws: Sequence[Draw | None]) -> "Sequence[Item | Bad]":
        """Decode and augment, in a worker thread; one answer an example, in order."""
        ...

    def collate(self, items: Sequence[Item]) -> B:
        """Pad, count targets a key, index the labelled positions (int64), keep ids. On the CPU."""
        ...

    def prepare(self, batch: B, parts: Parts, train: bool) -> B:
        """On the device, without gradient: log-mel, masks, frozen and teacher outputs."""
        ...

    def losses(self, module: "nn.Module", batch: B) -> "dict[str, Tensor]":
        """Per-example sums, shape (n,), under the keys `losses_of`. Never a mean: the loop divides."""
        ...

    def weights(self, done: float) -> Mapping[str, float]:
        """A factor for each loss, where `done` is the share of the training's steps that lie before this one."""
        ...

    def predict(self, module: "nn.Module", batch: B, decode: Decode) -> list[Row]:
        """The one path of evaluate, predict, compare and serve."""
        ...

    def final_decodes(self, decode: Decode) -> Mapping[str, Decode]:
        """The ways in which the test set is decoded at the end, by name; the first makes the headline."""
        ...

    def score(self, rows: Iterable[Row], fitted: Fitted | None = None) -> Report:
        """On the CPU, from rows alone, so that saved rows can be scored again."""
        ...

    def save(self, module: "nn.Module", directory: Path) -> None:
        """What `build` needs to come back to these weights exactly."""
        ...

    def export(self, module: "nn.Module", directory: Path) -> None:
        """The model as others load it: whole, merged, with all its side files."""
        ...

    def dummy(self, n: int, seconds: float, tokens: int) -> B:
        """A batch of that shape out of nothing, for probes and for ranks without work."""
        ...


def make_task(recipe: Recipe) -> "Task[Any, Any]":
    """The task a recipe names."""
    module, name = TASKS[recipe.task].split(":")
    task: Task[Any, Any] = getattr(import_module(module), name)(recipe)
    return task
