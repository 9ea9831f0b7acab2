"""What one recording is worth, read once: its bytes' names, its real length, how loud its noise is."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.audio import decoded
from trainer.data.levels import frame_levels_db, loud_and_quiet_db
from trainer.errors import AudioError

FEWEST = 3  # frames that an estimate of the noise needs
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
    """How far what is loud stands above what is quiet, dB (`trainer.data.levels`); None below three frames."""
    levels_F = frame_levels_db(wave_T, rate)
    if len(levels_F) < FEWEST:
        return None
    loud, quiet = loud_and_quiet_db(levels_F)
    return round(loud - quiet, 1)


def noise_of(snr: float | None) -> str:
    """The bucket: quiet, some or noisy."""
    if snr is None:
        return "unknown"
    return "quiet" if snr >= QUIET_DB else "some" if snr >= NOISY_DB else "noisy"
