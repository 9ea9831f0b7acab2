"""What one recording is worth, read once: its bytes' names, its real length, how loud its noise is."""

import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.audio import decoded
from trainer.errors import AudioError

FRAME_S = 0.02
LOUD, QUIET = 95, 10  # percentiles of the frames' energies: speech, and what lies between the words
FLOOR = 1e-10  # -100 dBFS: below it there is no noise, only rounding
QUIET_DB, NOISY_DB = 30.0, 15.0  # edges of the bucket `noise`: from here on quiet; below this noisy


@dataclass(frozen=True)
class Heard:
    """A recording that can be used."""

    duration_s: float
    sha256: str  # of the file's bytes
    md5: str
    size: int
    snr_db: float | None  # None: too short to say


def hear(path: str) -> Heard:
    """Decodes the whole file. Raises AudioError where it can't be read, is cut off, empty or silent."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise AudioError(f"{path} can't be read ({e.strerror})") from None
    wave_T, rate = decoded(io.BytesIO(data), path)
    return Heard(
        duration_s=round(len(wave_T) / rate, 6),
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        size=len(data),
        snr_db=snr_db(wave_T, rate),
    )


def snr_db(wave_T: np.ndarray, rate: int) -> float | None:
    """The energy of the loud 20 ms frames (95th percentile) over that of the quiet ones (10th), in dB, at most 100.

    An estimate: where nobody pauses, the quiet frames are speech, and it says too little.
    """
    frame = max(1, round(FRAME_S * rate))
    n = len(wave_T) // frame
    if n < 3:
        return None
    energies = np.square(wave_T[: n * frame], dtype=np.float64).reshape(n, frame).mean(1)
    loud, quiet = np.percentile(energies, (LOUD, QUIET))
    return round(min(100.0, 10 * math.log10(max(loud, FLOOR) / max(quiet, FLOOR))), 1)


def noise_of(snr: float | None) -> str:
    """The bucket: quiet, some or noisy."""
    if snr is None:
        return "unknown"
    return "quiet" if snr >= QUIET_DB else "some" if snr >= NOISY_DB else "noisy"
