"""Two programs, one model, the same sound: do they write the same, and does it matter to the error rate?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.metrics.normalise import normaliser_named
from trainer.metrics.transcripts import score_transcripts
from trainer.metrics.wer import aligned
from trainer.recipe.eval import Eval
from trainer.task import Row

GAP = "·"  # where the other side has a word more


@dataclass(frozen=True)
class Differing:
    """One utterance that they write differently."""

    id: str
    ours: str
    theirs: str
    reference: str
    is_normalised_too: bool  # the normaliser does not make one text of them


@dataclass(frozen=True)
class Parity:
    """What the comparison found; rates are pooled over the corpus, after the recipe's normaliser."""

    utterances: int
    wer_ours: float
    wer_theirs: float
    differing: Sequence[Differing]
    empty: int  # utterances of which both say nothing
    normaliser: str
    normaliser_sha256: str
    more: Mapping[str, Any] = field(default_factory=dict)  # how both were asked, and of what

    @property
    def difference(self) -> float:
        return abs(self.wer_theirs - self.wer_ours)

    def holds(self, max_wer_difference: float) -> bool:
        return self.difference <= max_wer_difference

    @property
    def summary(self) -> dict[str, Any]:
        """All but the texts."""
        return {
            "utterances": self.utterances,
            "wer_ours": self.wer_ours,
            "wer_theirs": self.wer_theirs,
            "differing": len(self.differing),
            "differing_normalised": sum(d.is_normalised_too for d in self.differing),
            "empty": self.empty,
            "normaliser": self.normaliser,
            "normaliser_sha256": self.normaliser_sha256,
            **self.more,
        }

    def as_json(self) -> dict[str, Any]:
        return {**self.summary, "differences": [asdict(d) for d in self.differing]}


def compare_texts(ours: Sequence[Row], theirs: Mapping[str, str], how: Eval, **more: Any) -> Parity:
    """Our rows, with references, beside what the other program wrote of the same ids."""
    normaliser = normaliser_named(how.normaliser)
    other = [{**row, "text": theirs[row["id"]]} for row in ours]
    quick = how.model_copy(update={"bootstrap": 0})  # no interval is wanted
    differing = [
        Differing(
            id=a["id"],
            ours=a["text"],
            theirs=b["text"],
            reference=a["reference"],
            is_normalised_too=normaliser.apply(a["text"]) != normaliser.apply(b["text"]),
        )
        for a, b in zip(ours, other, strict=True)
        if a["text"] != b["text"]
    ]
    return Parity(
        utterances=len(ours),
        wer_ours=float(score_transcripts(ours, quick).metrics["wer"]),
        wer_theirs=float(score_transcripts(other, quick).metrics["wer"]),
        differing=differing,
        empty=sum(not (a["text"] or b["text"]) for a, b in zip(ours, other, strict=True)),
        normaliser=normaliser.name,
        normaliser_sha256=normaliser.sha256,
        more=more,
    )


def difference_lines(parity: Parity, most: int = 10) -> list[str]:
    """The first of them for a person: both texts under each other, word by word."""
    lines = []
    for d in parity.differing[:most]:
        one, two = beneath(d.ours.split(), d.theirs.split())
        lines += [f"  {d.id}", f"    said   {d.reference}", f"    ours   {one}", f"    theirs {two}"]
    left = len(parity.differing) - most
    return [*lines, f"  … and {left} more"] if left > 0 else lines


def beneath(a: Sequence[str], b: Sequence[str]) -> tuple[str, str]:
    """Two lines of equal width in which equal words stand under each other."""
    pairs = [(one or GAP, two or GAP) for _, one, two in aligned(a, b)]
    widths = [max(len(x), len(y)) for x, y in pairs]
    one, two = (" ".join(p[side].ljust(w) for p, w in zip(pairs, widths, strict=True)).rstrip() for side in (0, 1))
    return one, two
