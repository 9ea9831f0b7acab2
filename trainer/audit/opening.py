"""Manifests as an audit meets them: nothing is too long, too short or without text to be looked at."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from remote.mistakes import mistakes_of
from trainer.data.manifest import Manifest, open_manifests
from trainer.data.places import cache_root, data_root
from trainer.errors import BadData, BadRecipe
from trainer.recipe.data import Data

LONGEST_S = 1e6  # eleven days: all that may stand in a manifest


@dataclass(frozen=True)
class Opened:
    """A manifest by the name it was asked for, its file, and the hash of that."""

    name: str
    path: Path
    manifest: Manifest
    sha256: str


def data_of(sets: Sequence[str]) -> tuple[Data, list[str]]:
    """The `data.…` among `--set KEY=VALUE`, and the others. Raises BadRecipe with every mistake."""
    found: dict[str, Any] = {}
    rest = []
    for text in sets:
        key, eq, value = text.partition("=")
        key = key.removeprefix("train.")
        if not key.startswith("data."):
            rest.append(text)
            continue
        try:
            found[key.removeprefix("data.")] = yaml.safe_load(value) if eq else None
        except yaml.YAMLError:
            raise BadRecipe.one("--set", f"{value!r} is not YAML") from None
    return parsed({"train": ["-"], "dev": ["-"], **found}), rest


def parsed(section: Mapping[str, Any]) -> Data:
    """Raises BadRecipe with every mistake."""
    try:
        return Data.model_validate(dict(section))
    except ValidationError as e:
        known = {"": list(Data.model_fields)}
        raise BadRecipe(mistakes_of([dict(x) for x in e.errors(include_url=False)], "data", known)) from None


def open_whole(name: str, data: Data) -> Opened:
    """All rows of a manifest that name a sound and an id; the others are in its `.bad`. Raises BadData."""
    given = Path(name)
    path = given.absolute() if given.exists() else data_root() / name
    if path.suffix != ".jsonl":
        raise BadData(f"{name} is not a manifest (.jsonl)", "name manifests, or one experiment file (.yaml)")
    every = data.model_copy(update={"min_s": 0.0, "max_s": LONGEST_S, "max_bad_share": 1.0})
    manifest = open_manifests([path], every, data_root(), cache_root(), need_text=False)
    with path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    if hashlib.sha256(sha256.encode()).hexdigest() != manifest.sha256:
        raise BadData(f"{path} changed while it was read", "wait until it is written, then again")
    return Opened(name, path, manifest, sha256)


def check_out(out: Path, taken: Sequence[Path]) -> None:
    """Raises BadData where what is written would lie over what is read, or over its own summary."""
    if out.suffix != ".jsonl":
        raise BadData(f"{out} is not a .jsonl file", "name it so: its summary becomes the .json beside it")
    if out.resolve() in {path.resolve() for path in taken}:
        raise BadData(
            f"{out} is needed as it is: --out would write over it",
            "name another file, or leave --out away: it lies beside the manifest",
        )


def beside(path: Path, what: str) -> Path:
    """`NAME.WHAT.jsonl` for `NAME.jsonl`."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.{what}.jsonl")
