"""Two transcripts of the same recordings: is one better, or is it chance? The whole corpus, and each bucket."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.errors import BadData
from trainer.metrics.normalise import Normaliser, normaliser_named
from trainer.metrics.wer import Errors, count_errors, pooled, spread, unit_of, units_of
from trainer.recipe.eval import Eval
from trainer.task import Row

FEWEST_FLIPS = 1000  # behind p, whatever the recipe says of intervals
FLIPS_A_SET = 50  # where few flips say as much: Holm multiplies p by the number of buckets, and p is 1 / flips at least
MOST_FLIPS = 50_000
FEW_HITS = 10  # below, p is known too coarsely for that
ALL_FLIPS = 12  # units that moved: up to here every combination of signs is counted, 4096 of them


@dataclass(frozen=True)
class Difference:
    """b − a on one set of utterances, as shares of its reference words: below zero b is better."""

    set: str  # all, or FIELD=VALUE
    wer_a: float
    wer_b: float
    difference: float
    low: float  # of the difference, 95 %
    high: float
    p: float  # two-sided: how often chance alone would say as much
    better: int  # utterances that b made fewer errors in
    worse: int
    words: int
    utterances: int
    unit: str  # what was resampled
    p_holm: float = 1.0  # p of a bucket among all buckets (Holm, 1979); that of the whole corpus stays


@dataclass(frozen=True)
class Comparison:
    """Two sets of rows over the same ids, scored by one normaliser."""

    a: str
    b: str
    normaliser: str
    normaliser_sha256: str
    differences: Sequence[Difference]  # the whole corpus first
    only_a: int  # ids that b lacks, and the other way round: left out
    only_b: int


@dataclass(frozen=True)
class Pair:
    """An utterance that both heard: its words as they are compared, and the errors of each."""

    id: str
    speaker: str
    buckets: Mapping[str, str]
    reference: str
    text_a: str
    text_b: str
    errors_a: Errors
    errors_b: Errors

    @property
    def gained(self) -> int:
        """Errors that b makes beyond a's; below zero b is better."""
        return self.errors_b.total - self.errors_a.total


def compare_rows(a: Sequence[Row], b: Sequence[Row], how: Eval, names: tuple[str, str] = ("a", "b")) -> Comparison:
    """Both scored anew, paired by id. Raises BadData where no id is common, one stands twice, or references differ.

    The interval is a paired bootstrap over speakers or utterances (Bisani & Ney, 2004). p is of approximate
    randomisation (Noreen, 1989): were a and b alike, each unit's difference might as well have the other sign. A
    bootstrap's p says 0.00 of five utterances that all moved one way; this one says 0.06, as it should.
    """
    pairs = pairs_of(a, b, normaliser_named(how.normaliser))
    return compare_pairs(pairs, how, names, (len(a) - len(pairs), len(b) - len(pairs)))


def compare_pairs(pairs: Sequence[Pair], how: Eval, names: tuple[str, str], left_out: tuple[int, int]) -> Comparison:
    """`compare_rows` of what was paired already; `left_out` are the rows of each that the other lacks."""
    sets: dict[str, list[Pair]] = {"all": list(pairs)}
    of_bucket: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        for name, value in pair.buckets.items():
            of_bucket[f"{name}={value}"].append(pair)
    sets |= dict(sorted(of_bucket.items()))
    n_flips = min(MOST_FLIPS, FLIPS_A_SET * len(sets))
    found = [_difference(name, these, how.bootstrap, n_flips) for name, these in sets.items()]
    corrected = holm([d.p for d in found[1:]])
    found[1:] = [replace(d, p_holm=p) for d, p in zip(found[1:], corrected, strict=True)]
    normaliser = normaliser_named(how.normaliser)
    return Comparison(*names, normaliser.name, normaliser.sha256, found, *left_out)


def pairs_of(a: Sequence[Row], b: Sequence[Row], normaliser: Normaliser) -> list[Pair]:
    """What both rows files hold, by id: in an order of its own, so that chance does not depend on theirs."""
    of_a, of_b = _by_id(a, "the first"), _by_id(b, "the second")
    both = sorted(of_a.keys() & of_b.keys())
    if not both:
        raise BadData("the two have no utterance in common", "compare results on the same manifest")
    said = {i: normaliser.apply(of_a[i]["reference"]) for i in both}
    differ = [i for i in both if normaliser.apply(of_b[i]["reference"]) != said[i]]
    if differ:
        raise BadData(
            f"{len(differ)} of {len(both)} utterances have two references: {differ[0]} is "
            f"{of_a[differ[0]]['reference']!r} in the first, {of_b[differ[0]]['reference']!r} in the second",
            "compare results on the same version of the manifest",
        )
    found = []
    for i in both:
        text_a, text_b = normaliser.apply(of_a[i]["text"]), normaliser.apply(of_b[i]["text"])
        words = said[i].split()
        found.append(
            Pair(
                id=i,
                speaker=of_a[i].get("speaker", ""),
                buckets=_agreed(of_a[i].get("buckets", {}), of_b[i].get("buckets", {})),
                reference=said[i],
                text_a=text_a,
                text_b=text_b,
                errors_a=count_errors(words, text_a.split()),
                errors_b=count_errors(words, text_b.split()),
            )
        )
    return found


def most_changed(pairs: Sequence[Pair], n: int) -> tuple[list[Pair], list[Pair]]:
    """(better, worse) in b, at most `n` of each: most errors first, then the larger share of the reference."""

    def by(p: Pair) -> tuple[int, float, str]:
        return (-abs(p.gained), -abs(p.gained) / max(1, p.errors_a.length), p.id)

    n = max(0, n)  # a slice to −1 is all but the last
    better, worse = [p for p in pairs if p.gained < 0], [p for p in pairs if p.gained > 0]
    return sorted(better, key=by)[:n], sorted(worse, key=by)[:n]


def holm(ps: Sequence[float]) -> list[float]:
    """Each p among all of them: below 0.05 only where the whole family errs in one of twenty (Holm, 1979)."""
    found, most = [1.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))  # never smaller than that of a smaller p
        found[i] = most
    return found


def _difference(name: str, pairs: Sequence[Pair], n_resamples: int, n_flips: int, seed: int = 0) -> Difference:
    speakers = [p.speaker for p in pairs]
    sums: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(2))  # of a unit: b's errors beyond a's, words
    for unit, p in zip(units_of(speakers, [p.id for p in pairs]), pairs, strict=True):
        sums[unit] += (p.gained, p.errors_a.length)
    units = np.stack(list(sums.values()))
    whole_a, whole_b = pooled([p.errors_a for p in pairs]), pooled([p.errors_b for p in pairs])
    difference = whole_b.rate - whole_a.rate
    low = high = difference
    rng = np.random.default_rng(seed)
    if n_resamples:
        low, high = spread(units, n_resamples, rng)
    return Difference(
        set=name,
        wer_a=whole_a.rate,
        wer_b=whole_b.rate,
        difference=difference,
        low=low,
        high=high,
        p=_chance(units[:, 0], max(FEWEST_FLIPS, n_resamples), n_flips, rng),
        better=sum(p.gained < 0 for p in pairs),
        worse=sum(p.gained > 0 for p in pairs),
        words=whole_a.length,
        utterances=len(pairs),
        unit=unit_of(speakers),
    )


def _chance(gained: np.ndarray, n_flips: int, most_flips: int, rng: np.random.Generator) -> float:
    """The share of sign flips whose sum is as far from zero as the one seen, which is one of them.

    Of `n_flips`; where hardly any is, of as many as `most_flips`.
    """
    moved = gained[gained != 0]
    seen = abs(moved.sum())
    if len(moved) <= ALL_FLIPS:
        signs = 1.0 - 2.0 * ((np.arange(1 << len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(signs @ moved) >= seen).mean())
    hits = n = 0
    while n < n_flips or (n < most_flips and hits < FEW_HITS):
        many = min(100, (n_flips if n < n_flips else most_flips) - n)  # ten thousand units stay a few megabytes
        signs = 1.0 - 2.0 * rng.integers(0, 2, (many, len(moved)), dtype=np.int8)
        hits += int((np.abs(signs @ moved) >= seen).sum())
        n += many
    return (1 + hits) / (1 + n)


def _by_id(rows: Sequence[Row], which: str) -> dict[str, Row]:
    found = {r["id"]: r for r in rows}
    if len(found) < len(rows):
        twice = next(i for i, n in Counter(r["id"] for r in rows).items() if n > 1)
        raise BadData(f"{twice} stands in {which} rows file twice", "name the rows file of one evaluation")
    return found


def _agreed(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    """The buckets that one of them names, or both alike."""
    return {k: v for k, v in {**a, **b}.items() if a.get(k, v) == b.get(k, v)}
