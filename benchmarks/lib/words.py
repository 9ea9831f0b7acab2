"""Word errors of two sides on the same utterances, and whether they differ by more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.metrics.wer import Errors, count_errors, pooled

Rows = Sequence[Mapping[str, Any]]  # `id`, `text`, `reference`


def wer(rows: Rows) -> float:
    return pooled(_errors(rows)).rate


def paired(ours: Rows, theirs: Rows, resamples: int = 10_000) -> tuple[float, float]:
    """95 % of WER(ours) − WER(theirs), the same utterances of both drawn again and again (Bisani & Ney, 2004)."""
    assert [r["id"] for r in ours] == [r["id"] for r in theirs]
    counts = np.array([(a.total, b.total, a.length) for a, b in zip(_errors(ours), _errors(theirs), strict=True)])
    drawn = np.random.default_rng(0).integers(0, len(counts), (resamples, len(counts)))
    sums = counts[drawn].sum(axis=1)
    low, high = np.percentile((sums[:, 0] - sums[:, 1]) / np.maximum(1, sums[:, 2]), [2.5, 97.5])
    return float(low), float(high)


def _errors(rows: Rows) -> list[Errors]:
    return [count_errors(r["reference"].split(), r["text"].split()) for r in rows]
