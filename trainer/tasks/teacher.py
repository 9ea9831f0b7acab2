"""A frozen teacher beside a student of the same task: loaded once, checked against it, asked only in training.

It is a task of its own, with a recipe made of the student's, so it hears as its own kind does: its own features, its
own size. Its weights are in no optimiser and no checkpoint; a checkpoint keeps its name, revision and a hash of them.

K positions · V vocabulary of the student
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from remote.files import read_json, write_json
from remote.mistakes import Mistake
from trainer.errors import BadRecipe
from trainer.frozen import weights_hash
from trainer.losses.distill import flattened
from trainer.machine import DTYPES, autocast, resolved_precision
from trainer.recipe.augment import Augment
from trainer.recipe.base import Recipe
from trainer.recipe.loss import Distill, Loss

WHERE = "train.loss.distill.teacher"
RECORD = "teacher.json"  # beside a checkpoint's model

T = TypeVar("T")


class Teacher(Generic[T]):
    """`task` is the teacher's own, of the student's class; the network is there from `join` on."""

    def __init__(self, recipe: Recipe, make: Callable[[Any], T]) -> None:
        assert recipe.loss.distill is not None
        self.how: Distill = recipe.loss.distill
        self.precision = resolved_precision(recipe.loop)
        self.task: T = _blaming_it(lambda: make(recipe_of(recipe)))
        self._build = self.task.build  # type: ignore[attr-defined]
        self._network: nn.Module | None = None
        self._record: dict[str, str] = {}
        self._student_to_teacher_V: Tensor | None = None

    def join(self, saved: Path | None) -> nn.Module:
        """The network, in eval mode and without gradient, in half precision where the student computes in it.

        Raises BadRecipe where `saved`, a student's checkpoint, was taught by another.
        """
        if self._network is None:
            network: nn.Module = _blaming_it(lambda: self._build().module)
            record = {
                "teacher": self.how.teacher,
                "revision": self.how.revision or "",
                "weights": weights_hash(network),
            }
            self._record = record
            self._network = network.to(DTYPES.get(self.precision, torch.float32)).eval().requires_grad_(False)
        before = read_json(saved / RECORD) if saved is not None else None
        if before and before["weights"] != self._record["weights"]:
            raise BadRecipe.one(
                WHERE, f"{self.how.teacher} is another model than this run was taught by: its weights have changed"
            )
        return self._network

    def leave_word(self, directory: Path) -> None:
        """Who taught this student, beside its weights."""
        write_json(directory / RECORD, self._record)

    def share_words(self, student: tuple[str, Mapping[str, int], int], teacher: tuple[Mapping[str, int], int]) -> None:
        """Which of the teacher's tokens each of the student's is, by name. Raises BadRecipe where some are missing."""
        name, tokens, size = student
        self._student_to_teacher_V = places_of(name, tokens, size, self.how.teacher, *teacher)

    def same(self, what: str, student: str, ours: object, theirs: object) -> None:
        """Raises BadRecipe where the two differ in it."""
        if ours != theirs:
            raise BadRecipe.one(
                WHERE, f"{self.how.teacher} and {student} do not have the same {what}: {theirs} and {ours}"
            )

    def longer(self, what: str, student: str, ours: float, theirs: float) -> None:
        """Raises BadRecipe where the teacher can't follow the student to its end."""
        if theirs < ours:
            raise BadRecipe.one(
                WHERE, f"{self.how.teacher} takes {theirs} {what}, {student} takes {ours}: it can't follow"
            )

    def token_of(self, tokens: Tensor) -> Tensor:
        """The student's tokens as the teacher counts them."""
        if self._student_to_teacher_V is None:
            return tokens
        return self._student_to_teacher_V.to(tokens.device)[tokens]

    @torch.no_grad()
    def says(self, logits: Callable[[], Tensor], device: torch.device) -> Tensor:
        """(K, V) log-probabilities over the student's vocabulary, flattened by the temperature; `logits` asks for them.

        Tokens that the student has not are left out, and what remains sums to one again.
        """
        with autocast(self.precision, device):
            logits_KV = logits()
        if self._student_to_teacher_V is not None:
            self._student_to_teacher_V = self._student_to_teacher_V.to(device)
            logits_KV = logits_KV.index_select(-1, self._student_to_teacher_V)
        return flattened(logits_KV, self.how.temperature)


def recipe_of(student: Recipe) -> Recipe:
    """The teacher's: the student's with another model, all of it, nothing drawn, and no teacher of its own."""
    how = student.loss.distill
    assert how is not None
    model = student.model  # type: ignore[attr-defined]
    changed: dict[str, Any] = {"name": how.teacher, "revision": how.revision}
    for field, value in (("from_scratch", None), ("vocabulary", "tokenizer"), ("letters", None), ("dropout", None)):
        if field in type(model).model_fields:
            changed[field] = value
    return student.model_copy(
        update={
            "model": model.model_copy(update=changed),
            "loss": Loss(),
            "adapters": None,
            "phases": [],
            "augment": Augment(),
            "loop": student.loop.model_copy(update={"gradient_checkpointing": False}),
        }
    )


def places_of(
    student: str, ours: Mapping[str, int], size: int, teacher: str, theirs: Mapping[str, int], their_size: int
) -> Tensor | None:
    """(V,) int64: where each of the student's tokens stands in the teacher's vocabulary; None where it is the same.

    A teacher may know more tokens (a later Whisper knows one language more). Raises BadRecipe where it knows fewer.
    """
    if size == their_size and dict(ours) == dict(theirs):
        return None
    missing = sorted(set(ours) - set(theirs), key=lambda token: ours[token])
    unnamed = sorted(set(range(size)) - set(ours.values()))
    named_there = set(theirs.values())
    homeless = [i for i in unnamed if i >= their_size or i in named_there]
    if missing or homeless:
        lost = f"{missing[0]!r}" if missing else f"its place {homeless[0]}"
        raise BadRecipe.one(
            WHERE,
            f"{teacher} and {student} do not share a vocabulary: of {size} tokens of the student "
            f"{len(missing) + len(homeless)} are unknown to the teacher, such as {lost}",
        )
    places = torch.arange(size)
    for token, i in ours.items():
        if i < size:
            places[i] = theirs[token]
    return places


def _blaming_it(make: Callable[[], Any]) -> Any:
    """What `make` makes; a mistake that it finds is the teacher's."""
    try:
        return make()
    except BadRecipe as e:
        raise BadRecipe([Mistake(WHERE, m.what) for m in e.mistakes]) from None
