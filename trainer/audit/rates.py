"""How fast people speak: limits for characters a second, absolute and by what others of the same bucket do."""

from dataclasses import dataclass

import numpy as np

FASTEST = 30.0  # characters a second: quick adults reach 20, auctioneers 25
SLOWEST = 0.3  # a short word in ten seconds
FEWEST = 100  # utterances of a bucket: below, its own quartiles say nothing
FENCE = 3.0  # interquartile ranges beyond the quartiles, of the logarithm (Tukey, 1977: "far out")
NARROWEST = float(np.log(2))  # a bucket whose members are all alike still allows a factor of two


@dataclass(frozen=True)
class Limits:
    """Characters a second, of one bucket."""

    low: float
    high: float

    def flag(self, chars_per_s: float) -> str:
        """`fast`, `slow` or nothing."""
        if chars_per_s > self.high:
            return "fast"
        return "slow" if chars_per_s < self.low else ""


def limits_of(chars_per_s: np.ndarray, codes: np.ndarray, n_buckets: int) -> list[Limits]:
    """Of every bucket; utterances without text say nothing about it."""
    found = []
    for code in range(n_buckets):
        mine = chars_per_s[(codes == code) & (chars_per_s > 0)]
        low, high = SLOWEST, FASTEST
        if len(mine) >= FEWEST:
            first, third = np.quantile(np.log(mine), [0.25, 0.75])
            reach = max(FENCE * float(third - first), NARROWEST)
            low = max(low, float(np.exp(first - reach)))
            high = min(high, float(np.exp(third + reach)))
        found.append(Limits(low, high))
    return found
