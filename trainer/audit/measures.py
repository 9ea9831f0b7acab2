"""What a recording is like as sound: how loud, how quiet between, how much of it at full scale, and which samples.

T samples · C channels · F frames of 20 ms
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from trainer.data.audio import RATE, read_sound, resampled
from trainer.data.pcm import rounded

FRAME_S = 0.02  # about a pitch period or two: shorter frames would call the valleys of a low voice quiet
FLOOR_DB = -96.0  # of 16 bits: nothing measured here is quieter
LOUD_SHARE = 0.95  # the level that 5 % of the frames exceed is that of speech: one click does not move it
QUIET_SHARE = 0.10  # and 10 % lie below that of the background, pauses between words being more than that
QUIET_BELOW_LOUD_DB = 30.0  # frames so far below speech hold none: unvoiced consonants lie 10 to 25 dB below vowels
QUIET_DB = -60.0  # dBFS: quieter is no speech that a microphone was meant to hear, whatever else is there
FULL_SCALE = 0.999  # 16-bit clipping ends at 32767/32768; a codec between moves it a little
CLIPPED_RUN = 3  # samples: a single one at full scale is a peak, several in a row are a flat top


@dataclass(frozen=True)
class Sound:
    """Levels are dB below full scale, shares lie in 0 … 1."""

    sha256: str  # of the samples that training hears: 16 kHz, mono, 16 bits; a copy in another format has the same
    peak_db: float
    rms_db: float
    snr_db: float  # loud frames over quiet ones: at most how far speech stands above its background
    silence: float  # share of frames that are quiet
    clipping: float  # share of samples in runs at full scale
    is_silent: bool  # no frame is loud enough to be speech


def measure_sound(path: str, start_s: float, duration_s: float) -> Sound:
    """Of a recording as it is stored, before anything is done to it. Raises AudioError where it can't be heard."""
    sound_TC, rate = read_sound(path, start_s, duration_s)
    wave_T = sound_TC.mean(axis=1) if sound_TC.shape[1] > 1 else sound_TC[:, 0]
    heard = rounded(resampled(wave_T, rate, path, start_s, duration_s))
    digest = hashlib.sha256(f"{RATE} {heard.exponent} ".encode() + heard.samples_T.tobytes())
    levels_F = frame_levels_db(wave_T, rate)
    loud, quiet = (float(np.quantile(levels_F, share)) for share in (LOUD_SHARE, QUIET_SHARE))
    is_quiet_F = levels_F < max(QUIET_DB, loud - QUIET_BELOW_LOUD_DB)
    return Sound(
        sha256=digest.hexdigest(),
        peak_db=_db(float(np.abs(wave_T).max())),
        rms_db=_db(float(np.sqrt(np.mean(np.square(wave_T, dtype=np.float64))))),
        snr_db=loud - quiet,
        silence=float(is_quiet_F.mean()),
        clipping=clipped_share(sound_TC),
        is_silent=loud < QUIET_DB,
    )


def frame_levels_db(wave_T: np.ndarray, rate: int) -> np.ndarray:
    """The level of every 20 ms, (F,); what is left at the end counts where it is all there is."""
    size = max(1, round(FRAME_S * rate))
    n = len(wave_T) // size
    frames_FT = wave_T[: n * size].reshape(n, size) if n else wave_T[None, :]
    power_F = np.mean(np.square(frames_FT, dtype=np.float64), axis=1)
    return np.maximum(10 * np.log10(np.maximum(power_F, 1e-12)), FLOOR_DB)


def clipped_share(sound_TC: np.ndarray) -> float:
    """Share of samples in runs at full scale, of the worst channel."""
    worst = 0.0
    for c in range(sound_TC.shape[1]):
        is_full_T = np.abs(sound_TC[:, c]) >= FULL_SCALE
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_full_T, [False]]).astype(np.int8)))
        runs = edges[1::2] - edges[::2]
        worst = max(worst, float(runs[runs >= CLIPPED_RUN].sum()) / len(sound_TC))
    return worst


def _db(amplitude: float) -> float:
    return max(20 * float(np.log10(max(amplitude, 1e-6))), FLOOR_DB)
