"""Two transcripts of the same recordings: is one better, or is it chance? The whole corpus, and each bucket."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import BadData
from trainer.metrics.normalise import normaliser_named
from trainer.metrics.wer import Errors, count_errors, pooled
from trainer.recipe.eval import Eval
from trainer.task import Row

FEWEST_SPEAKERS = 20  # from here on speakers are resampled, as in trainer.metrics.wer.interval


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


def compare_rows(a: Sequence[Row], b: Sequence[Row], how: Eval, names: tuple[str, str] = ("a", "b")) -> Comparison:
    """Both scored anew, paired by id. Raises BadData where no id is common, or where references differ.

    The interval and p come from a paired bootstrap over speakers or utterances (Bisani & Ney, 2004): p is twice the
    smaller share of resamples on one side of no difference.
    """
    of_b: Mapping[str, Row] = {r["id"]: r for r in b}
    both = [(r, of_b[r["id"]]) for r in a if r["id"] in of_b]
    if not both:
        raise BadData("the two have no utterance in common", "compare results on the same manifest")
    normaliser = normaliser_named(how.normaliser)
    said = [normaliser.apply(x["reference"]) for x, _ in both]
    for (x, y), reference in zip(both, said, strict=True):
        if normaliser.apply(y["reference"]) != reference:
            raise BadData(f"{x['id']} has two references", "compare results on the same version of the manifest")

    def errors(side: int) -> list[Errors]:
        rows = [pair[side] for pair in both]
        return [count_errors(s.split(), normaliser.apply(r["text"]).split()) for s, r in zip(said, rows, strict=True)]

    errors_a, errors_b = errors(0), errors(1)
    speakers = [x.get("speaker", "") for x, _ in both]
    sets: dict[str, list[int]] = {"all": list(range(len(both)))}
    of_bucket: dict[str, list[int]] = defaultdict(list)
    for i, (x, _) in enumerate(both):
        for name, value in x.get("buckets", {}).items():
            of_bucket[f"{name}={value}"].append(i)
    sets |= dict(sorted(of_bucket.items()))
    found = [
        _difference(
            name, [errors_a[i] for i in at], [errors_b[i] for i in at], [speakers[i] for i in at], how.bootstrap
        )
        for name, at in sets.items()
    ]
    n = len(both)
    return Comparison(*names, normaliser.name, normaliser.sha256, found, len(a) - n, len(b) - n)


def _difference(
    name: str, a: Sequence[Errors], b: Sequence[Errors], groups: Sequence[str], n_resamples: int, seed: int = 0
) -> Difference:
    unit = "speakers" if len(set(groups)) >= FEWEST_SPEAKERS else "utterances"
    keys = list(groups) if unit == "speakers" else [str(i) for i in range(len(a))]
    place = {k: i for i, k in enumerate(dict.fromkeys(keys))}
    sums = np.zeros((len(place), 2))  # of a unit: b's errors beyond a's, reference words
    for key, x, y in zip(keys, a, b, strict=True):
        sums[place[key]] += (y.total - x.total, x.length)
    whole_a, whole_b = pooled(a), pooled(b)
    difference = whole_b.rate - whole_a.rate
    low = high = difference
    p = 1.0
    if n_resamples:
        rng = np.random.default_rng(seed)
        drawn = np.stack([sums[rng.integers(0, len(sums), size=len(sums))].sum(axis=0) for _ in range(n_resamples)])
        shares = drawn[:, 0] / np.maximum(1, drawn[:, 1])
        low, high = (float(x) for x in np.percentile(shares, [2.5, 97.5]))
        side = min((shares <= 0).mean(), (shares >= 0).mean())
        p = float(min(1.0, 2 * max(side, 1 / n_resamples)))  # no resample says more than one in so many
    return Difference(
        set=name,
        wer_a=whole_a.rate,
        wer_b=whole_b.rate,
        difference=difference,
        low=low,
        high=high,
        p=p,
        better=sum(y.total < x.total for x, y in zip(a, b, strict=True)),
        worse=sum(y.total > x.total for x, y in zip(a, b, strict=True)),
        words=whole_a.length,
        utterances=len(a),
        unit=unit,
    )
