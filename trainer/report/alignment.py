"""Words said beside words heard: which were mistaken for which, which were missed, which came from nowhere. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from trainer.metrics.normalise import Normaliser
from trainer.metrics.wer import Kind, aligned
from trainer.task import Row

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """A word and what became of it: `D` has nothing heard, `I` nothing said."""

    kind: Kind
    said: str
    heard: str


@dataclass(frozen=True)
class Aligned:
    """A row of an evaluation as its errors were counted: by normalised words."""

    row: Row
    pairs: Sequence[Pair]

    @property
    def errors(self) -> int:
        return sum(p.kind != "=" for p in self.pairs)

    @property
    def words(self) -> int:
        return sum(p.kind != "I" for p in self.pairs)

    @property
    def wer(self) -> float:
        """As `Errors.rate`: an empty reference counts as one word."""
        return self.errors / max(1, self.words)


def align(said: Sequence[str], heard: Sequence[str]) -> list[Pair]:
    """A shortest way from the one to the other: as many errors as `count_errors` says."""
    return [Pair(*edit) for edit in aligned(said, heard)]


def align_rows(rows: Iterable[Row], normaliser: Normaliser) -> list[Aligned]:
    """Every row that was heard at all: one with a `reason` has no transcript to look at."""
    heard = [r for r in rows if not r.get("reason")]
    return [
        Aligned(r, align(normaliser.apply(r["reference"]).split(), normaliser.apply(r["text"]).split())) for r in heard
    ]


def worst(rows: Iterable[Aligned], most: int) -> list[Aligned]:
    """Those with errors, the most of them first; of as many, where they are the larger share."""
    wrong = [a for a in rows if a.errors]
    return sorted(wrong, key=lambda a: (-a.errors, -a.wer, str(a.row.get("id", ""))))[:most]


@dataclass(frozen=True)
class Frequent:
    """The commonest errors of a corpus, with how often they happened."""

    substituted: Sequence[tuple[tuple[str, str], int]]
    deleted: Sequence[tuple[str, int]]
    inserted: Sequence[tuple[str, int]]

    def __bool__(self) -> bool:
        return bool(self.substituted or self.deleted or self.inserted)


def frequent_errors(rows: Iterable[Aligned], most: int = 12) -> Frequent:
    """The first of each kind; of as many, in the order of the alphabet."""
    pairs = [p for a in rows for p in a.pairs]
    substituted = Counter((p.said, p.heard) for p in pairs if p.kind == "S")
    deleted = Counter(p.said for p in pairs if p.kind == "D")
    inserted = Counter(p.heard for p in pairs if p.kind == "I")
    return Frequent(_first(substituted, most), _first(deleted, most), _first(inserted, most))


def _first(counts: Counter[T], most: int) -> list[tuple[T, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:most]
