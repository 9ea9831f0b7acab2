"""From an experiment file to a recipe, or to all its mistakes at once. Imports no torch and no task."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from remote.mistakes import Mistake, did_you_mean, mistakes_of
from trainer.errors import BadRecipe
from trainer.recipe.base import RESUMABLE_CHANGES, Recipe

RECIPES = {
    "whisper": "trainer.recipe.whisper:WhisperRecipe",
    "ctc": "trainer.recipe.ctc:CtcRecipe",
    "tdt": "trainer.recipe.tdt:TdtRecipe",
    "seq2seq": "trainer.recipe.seq2seq:Seq2SeqRecipe",
}


def load_recipe(path: Path, *, expand: bool = True) -> Recipe:
    """The recipe under `train:` of an experiment file. Raises BadRecipe with every mistake in it.

    `expand` replaces `${NAME}` by this machine's environment; a check on another machine leaves them.
    """
    return parse_recipe(read_train_section(path), expand=expand, origin=str(path))


def read_train_section(path: Path) -> Any:
    """What stands under `train:`. Raises BadRecipe where the file is absent or not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = "is not UTF-8 text" if isinstance(e, UnicodeDecodeError) else (e.strerror or str(e))
        raise BadRecipe([Mistake("", f"{path}: {reason}")]) from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise BadRecipe([Mistake("", f"{path} is not YAML: {' '.join(str(e).split())}")]) from None
    if not isinstance(value, dict) or "train" not in value:
        raise BadRecipe([Mistake("train", f"is missing from {path}")])
    return value["train"]


def parse_recipe(train: Any, *, expand: bool = False, origin: str = "") -> Recipe:
    """A recipe from the parsed `train:` section. Raises BadRecipe."""
    if not isinstance(train, dict):
        raise BadRecipe([Mistake("train", "must be a mapping of keys")])
    task = train.get("task")
    if task is None:
        raise BadRecipe([Mistake("train.task", f"is missing, and has no default: one of {', '.join(RECIPES)}")])
    if not isinstance(task, str) or task not in RECIPES:
        raise BadRecipe([Mistake("train.task", f"there is no task {task!r}{did_you_mean(str(task), list(RECIPES))}")])
    missing: list[Mistake] = []
    if expand:
        train = _expanded(train, "train", missing)
    cls = recipe_class(task)
    try:
        recipe = cls.model_validate(train)
    except ValidationError as e:
        errors = [{**error, "loc": _without_tags(error["loc"])} for error in e.errors(include_url=False)]
        found = mistakes_of(errors, "train", known_keys(cls))
        raise BadRecipe([*missing, *found]) from None
    if missing:
        raise BadRecipe(missing)
    return recipe


def recipe_class(task: str) -> type[Recipe]:
    module, name = RECIPES[task].split(":")
    cls: type[Recipe] = getattr(import_module(module), name)
    return cls


def known_keys(cls: type[BaseModel], at: str = "") -> dict[str, list[str]]:
    """The keys allowed at each dotted place of a schema."""
    known = {at: list(cls.model_fields)}
    for name, field in cls.model_fields.items():
        for part in _models_in(field.annotation):
            known |= known_keys(part, f"{at}.{name}" if at else name)
    return known


def with_sets(train: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """`eval.decode.beams=5` put into a copy of a recipe's mapping; values are YAML. Raises BadRecipe."""
    result: dict[str, Any] = json.loads(json.dumps(train))
    for text in sets:
        path, eq, value = text.partition("=")
        keys = path.removeprefix("train.").split(".")
        if not eq or not all(keys):
            raise BadRecipe.one("--set", f"{text!r} is not KEY=VALUE, as in eval.decode.beams=5")
        at = result
        for key in keys[:-1]:
            if not isinstance(at.get(key), dict):
                at[key] = {}
            at = at[key]
        try:
            at[keys[-1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadRecipe.one("--set", f"{value!r} is not YAML") from None
    return result


def changes(old: Recipe, new: Recipe) -> list[str]:
    """What differs between two recipes beyond what a resume allows: `optim.lr: 0.001 → 0.003`."""
    a, b = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    found = []
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key) and not any(key == r or key.startswith(r + ".") for r in RESUMABLE_CHANGES):
            found.append(f"{key}: {a.get(key)} → {b.get(key)}")
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def _without_tags(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place as it is written in the file: behind a list's index pydantic names the kind of item (see Source)."""
    return tuple(p for n, p in enumerate(loc) if not (n and isinstance(loc[n - 1], int) and p in ("name", "source")))


def _expanded(value: Any, where: str, missing: list[Mistake]) -> Any:
    if isinstance(value, Mapping):
        return {k: _expanded(v, f"{where}.{k}", missing) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, where, missing) for v in value]
    if not isinstance(value, str):
        return value

    def of(match: re.Match[str]) -> str:
        name = match.group(1)
        what = f"the environment variable {name} is not set on this machine"
        if name not in os.environ and all(m.what != what for m in missing):  # once is enough
            missing.append(Mistake(where, what))
        return os.environ.get(name, "")

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", of, value)


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {at: value}
    return {k: v for key, child in value.items() for k, v in _flat(child, f"{at}.{key}" if at else key).items()}
