"""README.md of a model's repository: our part stands between two marks, and what people write around it stays."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from trainer.errors import BadData

END = "<!-- end of what podctl wrote -->"
BEGIN = re.compile(r"<!-- podctl wrote this: front ([0-9a-f]{16}), text ([0-9a-f]{16}); write above or below -->\n?")
FRONT = re.compile(r"\A---\s*\n(.*?)^---\s*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
MEND = "mend it on its page, or leave it alone: --keep-card"
MEASURED = "model-index"  # of the front matter; always ours


@dataclass(frozen=True)
class Card:
    """What is known of a model: the page's front matter and our text."""

    front: Mapping[str, Any]
    text: str


def card_file(card: Card, old: str | None = None) -> str:
    """The whole page: a fresh one, or the `old` one with our part renewed.

    Of a front matter that people changed, what they say stays, but for what was measured. Raises BadData where they
    changed our text: it would be lost.
    """
    front, before, after = dict(card.front), "", "\n"
    if old is not None:
        if any("\udc80" <= c <= "\udcff" for c in old):  # bytes that were not decoded: the Hub's client takes none
            raise BadData("README.md there is not UTF-8", MEND)
        theirs, rest = _split_front(old)
        begin, end = BEGIN.search(rest), rest.rfind(END)
        if begin and end > begin.end():
            if _hash(rest[begin.end() : end]) != begin[2]:
                raise BadData(
                    "README.md there was edited inside the part that podctl writes",
                    "move those words above or below podctl's marks on its page; or leave the page alone: --keep-card",
                )
            before, after = rest[: begin.start()], rest[end + len(END) :]
            if begin[1] != _hash(_front_text(theirs)):
                front = _merged(theirs, front)
        else:
            before, front = rest.rstrip() + "\n\n" if rest.strip() else "", _merged(theirs, front)
    text = card.text.strip() + "\n"
    own = _hash(_front_text(card.front))  # not of a merged one: what was changed once is theirs from then on
    mark = f"<!-- podctl wrote this: front {own}, text {_hash(text)}; write above or below -->"
    return f"---\n{_front_text(front)}---\n{before}{mark}\n{text}{END}{after}"


def is_ours(page: str) -> bool:
    """Whether podctl had a part in it."""
    return BEGIN.search(page) is not None


def read_front(page: str) -> dict[str, Any]:
    """The front matter of a page; empty where there is none."""
    return _split_front(page)[0]


def _split_front(page: str) -> tuple[dict[str, Any], str]:
    page = page.replace("\r\n", "\n")
    match = FRONT.match(page)
    if not match:
        return {}, page
    try:
        front = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError):  # a date that is none
        front = match[1]
    if not isinstance(front, dict | None):
        raise BadData("the front matter of README.md there is not YAML of keys and values", MEND)
    return front or {}, page[match.end() :]


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**ours, **theirs}
    if MEASURED in ours:
        merged[MEASURED] = ours[MEASURED]
    else:
        merged.pop(MEASURED, None)  # of another model
    return merged


def _front_text(front: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=1000)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
