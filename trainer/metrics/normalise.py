"""Text normalisers by name, each with a hash that travels with every number it took part in."""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainer.metrics.english import ENGLISH_RULES, SPELLINGS, english

BASIC_RULES = (
    "NFKC; lower case; apostrophes inside words deleted; other punctuation and symbols to a space; spaces collapsed"
)


@dataclass(frozen=True)
class Normaliser:
    """A function over transcripts and what it does, in words; `sha256` changes with these and with the table read."""

    name: str
    rules: str
    apply: Callable[[str], str]
    table: Path | None = None

    @property
    def sha256(self) -> str:
        said = f"{self.name}: {self.rules}; Unicode {unicodedata.unidata_version}"
        return hashlib.sha256(said.encode() + (_bytes_of(self.table) if self.table else b"")).hexdigest()


def normaliser_named(name: str) -> Normaliser:
    return NORMALISERS[name]


def basic(text: str) -> str:
    """Lower case, no punctuation: `"Don't  stop!"` → `"dont stop"`."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<=\w)['’ʼ](?=\w)", "", text)
    spaced = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in text)
    return " ".join(spaced.split())


def none(text: str) -> str:
    """Only the spaces are collapsed."""
    return " ".join(text.split())


@cache
def _bytes_of(table: Path) -> bytes:
    return table.read_bytes()


NORMALISERS = {
    "basic": Normaliser("basic", BASIC_RULES, basic),
    "english": Normaliser("english", ENGLISH_RULES, english, SPELLINGS),
    "none": Normaliser("none", "spaces collapsed", none),
}
