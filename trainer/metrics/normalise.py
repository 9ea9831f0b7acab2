"""Text normalisers by name, each with a hash that travels with every number it took part in."""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

BASIC_RULES = (
    "NFKC; lower case; apostrophes inside words deleted; other punctuation and symbols to a space; spaces collapsed"
)


@dataclass(frozen=True)
class Normaliser:
    """A function over transcripts and what it does, in words; `sha256` changes when either does."""

    name: str
    rules: str
    apply: Callable[[str], str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.name}: {self.rules}; Unicode {unicodedata.unidata_version}".encode()).hexdigest()


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


NORMALISERS = {
    "basic": Normaliser("basic", BASIC_RULES, basic),
    "none": Normaliser("none", "spaces collapsed", none),
}
