"""How transcripts become targets: which writing, and which letters a vocabulary has when it is made from them."""

from collections.abc import Iterable
from typing import Literal

from trainer.metrics.normalise import basic

Writing = Literal["as_is", "lower", "upper", "basic"]


def written(text: str, how: Writing) -> str:
    """A transcript as the model is to write it; spaces are collapsed in any case."""
    if how == "basic":
        return basic(text)
    text = " ".join(text.split())
    return {"as_is": text, "lower": text.lower(), "upper": text.upper()}[how]


def letters_of(texts: Iterable[str], how: Writing) -> list[str]:
    """Every character of the transcripts but the space, sorted: the same for the same transcripts, in any order."""
    found: set[str] = set()
    for text in texts:
        found.update(written(text, how))
    return sorted(found - {" "})
