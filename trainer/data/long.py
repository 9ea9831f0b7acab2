"""Recordings longer than a model hears at once: cut at their quietest places, decoded in pieces, joined again.

T samples (16 kHz)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.audio import RATE, SILENCE, read_audio
from trainer.errors import AudioError
from trainer.recipe.base import Recipe
from trainer.recipe.data import Data
from trainer.task import Bad, Example, Row

if TYPE_CHECKING:
    from trainer.machine import Machine

EARLIEST = 0.6  # of max_s: no piece but the last is shorter
QUIET_S = 0.2  # energy is looked at over so long: a pause, not a zero between two waves
HOP_S = 0.01
LEAST_S = 0.5  # of the last piece
MARK = "\0"  # in a piece's id: no manifest's id ends so


@dataclass(frozen=True)
class Span:
    """A piece in samples of the recording at 16 kHz; a silent one is not worth decoding."""

    first: int
    end: int
    is_silent: bool


@dataclass(frozen=True)
class Pieces:
    """What is decoded instead of a manifest's examples, and how its long ones come back together."""

    examples: Sequence[Example]  # short ones as they are, long ones in pieces
    whole: Sequence[Example]  # that were cut, or could not be
    pieces: Mapping[str, str]  # a piece's id → its whole's
    numbers: Mapping[str, int]  # a whole's id → how many pieces, silent ones too
    bad: Mapping[str, Bad]

    def joined(self, rows: Sequence[Row]) -> list[tuple[Example, Row]]:
        """The long ones with the texts of their pieces in order; a piece that can't be used makes its whole unusable.

        Silence within a recording is no reason: there was nothing to say. `rows` are those of all ranks.
        """
        if not self.whole:
            return []
        by_id = {r["id"]: r for r in rows if r["id"] in self.pieces}
        of: dict[str, list[Row]] = {e.id: [] for e in self.whole}
        for piece, id in self.pieces.items():
            of[id].append(by_id[piece])
        found = []
        for e in self.whole:
            if e.id in self.bad:
                found.append((e, {"id": e.id, "text": "", "reason": self.bad[e.id].reason}))
                continue
            said: Row = {"id": e.id, "pieces": self.numbers[e.id]}
            reasons = [r["reason"] for r in of[e.id] if "reason" in r]
            if reasons:
                found.append((e, {**said, "text": "", "reason": f"a piece of it can't be used: {reasons[0]}"}))
            else:
                found.append((e, {**said, "text": " ".join(r["text"] for r in of[e.id] if r["text"])}))
        return found


def heard_whole(recipe: Recipe) -> Data:
    """How manifests are read that are only decoded: with what is too long for one piece, where it may be cut."""
    return recipe.data.model_copy(update={"max_s": math.inf}) if recipe.eval.decode.long == "cut" else recipe.data


def in_pieces(examples: Sequence[Example], max_s: float, machine: "Machine") -> Pieces:
    """Every example once, what is longer than `max_s` in pieces. Each rank looks for the quiet places of its share."""
    long = [e for e in examples if e.duration_s > max_s]
    if not long:  # of one mind: all ranks have the same manifest
        return Pieces(examples, [], {}, {}, {})
    answers: dict[str, list[Span] | Bad] = dict(
        machine.gathered([(e.id, _spans(e, max_s)) for e in long[machine.rank :: machine.world]])
    )
    found, pieces, numbers, bad = [], {}, {}, {}
    for e in examples:
        spans = answers.get(e.id)
        if spans is None:
            found.append(e)
            continue
        if isinstance(spans, Bad):
            bad[e.id] = spans
            continue
        numbers[e.id] = len(spans)
        for n, s in enumerate(spans):
            if not s.is_silent:
                id = f"{e.id}{MARK}{n}"
                start_s, duration_s = e.start_s + s.first / RATE, (s.end - s.first) / RATE
                found.append(replace(e, id=id, start_s=start_s, duration_s=duration_s, text=""))
                pieces[id] = e.id
    return Pieces(found, long, pieces, numbers, bad)


def cut_quietly(wave_T: np.ndarray, max_s: float) -> list[Span]:
    """All samples in pieces of at most `max_s`, cut where it is quietest between 60 % of that and all of it.

    So every piece but the last is at least that long.
    """
    hop = int(HOP_S * RATE)
    most, width = int(max_s * RATE) // hop, max(1, int(min(QUIET_S, 0.1 * max_s) * RATE) // hop)  # in hops
    least, first = max(1, int(min(LEAST_S, 0.1 * max_s) * RATE) // hop), max(1, int(EARLIEST * most))
    n = math.ceil(len(wave_T) / hop)
    hops_HT = wave_T[: len(wave_T) // hop * hop].reshape(-1, hop)
    sums = np.concatenate([[0.0], np.einsum("ht,ht->h", hops_HT, hops_HT).cumsum(dtype=np.float64)])
    cuts = [0]
    while len(wave_T) - cuts[-1] * hop > most * hop:
        places = np.arange(cuts[-1] + first, max(cuts[-1] + first, min(cuts[-1] + most, n - least)) + 1)
        low, high = np.maximum(places - width // 2, 0), np.minimum(places - width // 2 + width, len(sums) - 1)
        energies = (sums[high] - sums[low]) / np.maximum(1, high - low)
        cuts.append(int(places[int(energies.argmin())]))
    edges = [*(c * hop for c in cuts), len(wave_T)]
    return [Span(a, b, float(np.abs(wave_T[a:b]).max(initial=0.0)) < SILENCE) for a, b in pairwise(edges)]


def _spans(e: Example, max_s: float) -> list[Span] | Bad:
    try:
        return list(_found(e.audio, e.start_s, e.duration_s, max_s))
    except AudioError as error:
        return Bad(e.id, error.message)


@lru_cache(maxsize=4096)  # dev is decoded many times, and its recordings do not change
def _found(audio: str, start_s: float, duration_s: float, max_s: float) -> tuple[Span, ...]:
    return tuple(cut_quietly(read_audio(audio, start_s, duration_s), max_s))
