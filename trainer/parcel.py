"""What of a model travels: files that are known to belong to one, nothing of where files lie, nobody's name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.files import read_json
from trainer.errors import BadData

KNOWN = {
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *("vocab.json", "vocabulary.json", "merges.txt", "chat_template.jinja", "model.safetensors.index.json"),
    *("recipe.json", "provenance.json", "decode.json", "adapter_config.json", "model.bin"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md"),
}
SUFFIXES = (".safetensors", ".model")  # weights, and vocabularies of SentencePiece
SCRUBBED = ("recipe.json", "provenance.json", "config.json", "tokenizer_config.json", "adapter_config.json")
NEEDED = {
    "export": ("config.json", "recipe.json", "provenance.json"),
    "adapters": ("adapter_config.json", "adapter_model.safetensors"),
    "ct2": ("model.bin", "config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json", "decode.json"),
}


@dataclass(frozen=True)
class Parcel:
    """Name in the repository → the file, or what is sent instead of it."""

    files: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        return sum(size_of(f) for f in self.files.values())


def size_of(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def pack(folder: Path, what: str, more: Mapping[str, bytes] | None = None) -> Parcel:
    """The files of a model, and `more` beside them. Raises BadData where it lacks one, and names all that are lacking.

    Texts of test sets (parity.json) stay here: they are other people's words.
    """
    if not folder.is_dir():
        raise BadData(f"{folder} is not a folder with a model", "name a run (--run) or an export (--model)")
    missing = [n for n in NEEDED[what] if not (folder / n).is_file() and n not in (more or {})]
    if what == "export":
        missing += [n for n in _weights(folder) if not (folder / n).is_file()]
    if missing:
        raise BadData(
            f"{folder} is incomplete: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not there",
            f"make it again: trainer export --run RUN --format {'ct2' if what == 'ct2' else 'hf'} --out DIR",
        )
    files: dict[str, Path | bytes] = {}
    left_out = []
    for path in sorted(folder.iterdir()):
        if path.name in KNOWN or path.suffix in SUFFIXES:
            files[path.name] = path
        elif path.name != "README.md":
            left_out.append(path.name)
    files |= more or {}
    return Parcel({n: _scrubbed(f) if n in SCRUBBED else f for n, f in files.items()}, tuple(left_out))


def without_places(value: Any) -> Any:
    """The same, but of every absolute path only its last name, and without figures of single persons."""
    if isinstance(value, Mapping):
        return {k: without_places(v) for k, v in value.items() if "speaker=" not in str(k)}
    if isinstance(value, (list, tuple)):
        return [without_places(v) for v in value]
    if isinstance(value, str) and re.match(r"[/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", value) and len(value) > 1:
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value
    return value


def _weights(folder: Path) -> list[str]:
    index = read_json(folder / "model.safetensors.index.json")
    return sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]


def _scrubbed(content: Path | bytes) -> Path | bytes:
    try:
        value = json.loads(content if isinstance(content, bytes) else content.read_bytes())
    except ValueError:
        raise BadData(f"{content!s:.80} is not JSON", "make the export again: trainer export --format hf") from None
    clean = without_places(value)
    return content if clean == value else (json.dumps(clean, indent=1, ensure_ascii=False) + "\n").encode()
