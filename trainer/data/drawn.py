"""What becomes of a recording in one draw: first its length, from the manifest row alone; later its sound.

For tasks without a window. All chance is a function of the draw's seed; see trainer.task.Draw.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.data.audio import RATE, fit, padded_samples, samples_of
from trainer.data.noise import NoiseFolder
from trainer.data.pcm import PcmCache
from trainer.recipe.augment import Augment, SpecAugment
from trainer.recipe.base import Recipe
from trainer.task import Draw, Example


@dataclass(frozen=True)
class Drawn:
    """An utterance in one draw: what is said, and lengths in samples."""

    text: str
    n_samples: int
    padded: int
    speed: float = 1.0
    joined: tuple[tuple[int, Example], ...] = ()  # (samples of quiet before it, utterance)

    @property
    def audio_s(self) -> float:
        return self.n_samples / RATE

    @property
    def padded_s(self) -> float:
        return self.padded / RATE


def draw_lengths(
    example: Example, draw: Draw | None, how: Augment, edge_s: float, max_s: float, fits: Callable[[str, int], bool]
) -> Drawn:
    """Speed and joins as drawn; what would pass `max_s`, or not `fits` its text into so many samples, is left out."""
    n, text = samples_of(example.duration_s), example.text
    speed, joined = 1.0, []
    if draw is not None:
        rng = np.random.default_rng(draw.seed)
        speed = float(rng.choice(how.speed)) if how.speed else 1.0
        longest = max(n, samples_of(max_s))
        for partner in draw.partners:
            gap = samples_of(rng.uniform(*how.join_gap_s))
            longer, whole = n + gap + samples_of(partner.duration_s), f"{text} {partner.text}"
            if longer / speed > longest or not fits(whole, longer):
                break
            joined.append((gap, partner))
            n, text = longer, whole
        if n / speed > longest or not fits(text, round(n / speed)):
            speed = 1.0
        n = round(n / speed)
    return Drawn(text, n, padded_samples(n, edge_s), speed, tuple(joined))


def own(draw: Draw | None, recipe: Recipe) -> Augment:
    """What is done to an utterance: as its source says, or the recipe."""
    return draw.augment if draw is not None and draw.augment is not None else recipe.augment


def read_drawn(
    audio: PcmCache,
    example: Example,
    drawn: Drawn,
    draw: Draw | None,
    how: Augment,
    noise: NoiseFolder | None = None,
) -> np.ndarray:
    """Its sound: float32 (n_samples,). Raises AudioError."""
    wave_T = audio.read(example.audio, example.start_s, example.duration_s)
    if draw is None:
        return fit(wave_T, drawn.n_samples)
    for gap, partner in drawn.joined:
        more = audio.read(partner.audio, partner.start_s, partner.duration_s)
        wave_T = np.concatenate([wave_T, np.zeros(gap, dtype=np.float32), more])
    rng = np.random.default_rng([draw.seed, 1])
    return fit(augmented(wave_T, drawn.speed, how, rng, noise), drawn.n_samples)


def augmented(
    wave_T: np.ndarray, speed: float, how: Augment, rng: np.random.Generator, noise: NoiseFolder | None = None
) -> np.ndarray:
    """Faster or slower, louder or softer, with noise of a folder or white noise: as drawn."""
    if speed != 1.0:
        import soxr

        wave_T = soxr.resample(wave_T, RATE * speed, RATE, quality="MQ")
    if how.gain_db:
        wave_T = wave_T * np.float32(10 ** (rng.uniform(-how.gain_db, how.gain_db) / 20))
    if how.noise_snr_db is not None and rng.random() < how.noise_p:
        power = _power(wave_T) / 10 ** (rng.uniform(*how.noise_snr_db) / 10)
        if noise is None:
            wave_T = wave_T + rng.normal(0, power**0.5, len(wave_T)).astype(np.float32)
        elif (heard_T := noise.draw(len(wave_T), rng)) is not None:
            wave_T = wave_T + heard_T * np.float32((power / _power(heard_T)) ** 0.5)
    return wave_T


def _power(wave_T: np.ndarray) -> float:
    return float(np.mean(np.square(wave_T)))


Spans = list[tuple[int, int]]


def draw_spans(draw: Draw | None, how: SpecAugment | None, bins: int, frames: int) -> tuple[Spans, Spans]:
    """SpecAugment's spans over bins and over the utterance's own frames, first and end."""
    if draw is None:
        return [], []
    return spans(how, bins, frames, np.random.default_rng([draw.seed, 3]))


def spans(how: SpecAugment | None, bins: int, frames: int, rng: np.random.Generator) -> tuple[Spans, Spans]:
    """The same from a generator that is there already."""
    if how is None or rng.random() >= how.p:
        return [], []
    freq = [_span(rng, min(how.freq_width, bins), bins) for _ in range(how.freq_masks)]
    time = [_span(rng, int(how.time_share * frames), frames) for _ in range(how.time_masks)]
    return freq, time


def _span(rng: np.random.Generator, widest: int, size: int) -> tuple[int, int]:
    width = int(rng.integers(0, widest + 1))
    first = int(rng.integers(0, size - width + 1))
    return first, first + width
