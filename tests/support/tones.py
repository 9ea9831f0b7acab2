"""A task that hears tones without learning: it decodes what tests/support/speech.py says, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from support.speech import RATE, WORDS

from trainer.data.audio import read_audio
from trainer.errors import AudioError
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.base import Recipe
from trainer.task import Bad, Draw, Example, Parts, Report, Row, Size

FRAME_S = 0.05


def heard(wave_T: np.ndarray, word_s: float = 0.2) -> str:
    """The words: stretches of one pitch, each as many words as it is long."""
    frame = round(FRAME_S * RATE)
    names, pitches = list(WORDS), np.array(list(WORDS.values()))
    labels = []
    for at in range(0, len(wave_T) - frame + 1, frame):
        part = wave_T[at : at + frame]
        if np.abs(part).max() < 0.15:
            labels.append("")
            continue
        peak_hz = np.abs(np.fft.rfft(part)).argmax() / FRAME_S
        labels.append(names[int(np.abs(np.log(pitches / max(peak_hz, 1))).argmin())])
    words: list[str] = []
    run, last = 0, ""
    for label in [*labels, ""]:
        if label != last:
            words += [last] * round(run * FRAME_S / word_s) if last else []
            run = 0
        run, last = run + 1, label
    return " ".join(words)


@dataclass(frozen=True)
class Tones:
    ids: Sequence[str]
    waves: Sequence[np.ndarray]
    counts: Mapping[str, int]

    def to(self, device: torch.device) -> "Tones":
        return self


class ToneTask:
    """As much of a task as evaluation asks for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.lengths_s: list[float] = []

    def size(self, example: Example, draw: Draw | None) -> Size:
        return Size(float(np.ceil(example.duration_s)), example.duration_s, 1)

    def load(self, examples: Sequence[Example], draws: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for e in examples:
            self.lengths_s.append(e.duration_s)
            try:
                found.append((e.id, read_audio(e.audio, e.start_s, e.duration_s)))
            except AudioError as error:
                found.append(Bad(e.id, error.message))
        return found

    def collate(self, items: Sequence[Any]) -> Tones:
        return Tones([i for i, _ in items], [w for _, w in items], {"x": len(items)})

    def prepare(self, batch: Tones, parts: Parts, train: bool) -> Tones:
        return batch

    def predict(self, module: Any, batch: Tones, decode: Any) -> list[Row]:
        return [{"id": i, "text": heard(w)} for i, w in zip(batch.ids, batch.waves, strict=True)]

    def score(self, rows: Any) -> Report:
        return score_transcripts(rows, self.recipe.eval)


def parts() -> Parts:
    return Parts(torch.nn.Identity())
