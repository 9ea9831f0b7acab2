"""What a recording is like as sound: how loud, how quiet between, how much of it at full scale, and which samples.

T samples · C channels · F frames of 20 ms
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from trainer.data.audio import RATE, read_sound, resampled
from trainer.data.levels import FLOOR_DB, frame_levels_db, loud_and_quiet_db
from trainer.data.pcm import rounded

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
    loud, quiet = loud_and_quiet_db(levels_F)
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
