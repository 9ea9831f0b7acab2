"""What a manifest's transcripts are like together: what one of them is held against."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from trainer.audit.look import Expectations
from trainer.audit.rates import Limits, limits_of
from trainer.audit.scripts import scripts_in, scripts_of
from trainer.audit.texts import is_capitals
from trainer.data.buckets import codes_of, text_lengths
from trainer.data.manifest import Manifest
from trainer.metrics.normalise import Normaliser

SAMPLE = 10_000  # transcripts that a corpus' way of writing is known by
MAJORITY = 0.5  # a corpus most of which is written in capitals, or in one script, is written so


@dataclass(frozen=True)
class Corpus:
    """A manifest, its buckets as codes, and the limits of each bucket of the first of them."""

    manifest: Manifest
    codes: dict[str, tuple[np.ndarray, list[str]]]  # by the bucket's field
    limits: list[Limits]  # by code of the first field
    languages: tuple[np.ndarray, list[str]]
    scripts: list[tuple[str, ...]]  # by code of the language
    expected: Expectations

    def limits_at(self, position: int) -> Limits:
        first = next(iter(self.codes.values()))[0]
        return self.limits[int(first[position])]

    def scripts_at(self, position: int) -> tuple[str, ...]:
        return self.scripts[int(self.languages[0][position])]


def known_corpus(manifest: Manifest, fields: list[str], language: str, normaliser: Normaliser) -> Corpus:
    """`fields`: the buckets, the first of which has its own limits of speed; `language`: of rows that name none."""
    codes = {name: codes_of(manifest, name) for name in fields} or {"": (np.zeros(len(manifest), np.int32), [""])}
    rates = text_lengths(manifest) / np.maximum(manifest.column("duration_s"), 1e-3)
    first, values = next(iter(codes.values()))
    languages = codes_of(manifest, "language")
    expected = _expectations(manifest, normaliser)
    scripts = [scripts_of(own or language) or tuple(expected.scripts) for own in languages[1]]
    return Corpus(manifest, codes, limits_of(rates, first, len(values)), languages, scripts, expected)


def usual_fields(manifest: Manifest) -> list[str]:
    """Fields that children's speech is told apart by, as far as the manifest has them: age first, then source."""
    found = [name for name in ("age_bucket", "age") if any(codes_of(manifest, name)[1])][:1]
    return [*found, *(["source"] if any(codes_of(manifest, "source")[1]) else [])]


def _expectations(manifest: Manifest, normaliser: Normaliser) -> Expectations:
    n = len(manifest)
    chosen = np.arange(n) if n <= SAMPLE else np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])
    texts = [manifest[int(i)].text for i in chosen]
    capitals = sum(map(is_capitals, texts))
    scripts = Counter(s for t in texts for s in scripts_in(t))
    most = tuple(s for s, n in scripts.items() if n > MAJORITY * len(texts))
    return Expectations(capitals <= MAJORITY * len(texts), most, normaliser)
