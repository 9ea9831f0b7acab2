"""Decoded recordings, 16 bits a sample, on the local disk: decoded once, whoever asks again.

Every recording passes through these 16 bits, kept or not, so the cache changes no training, only its speed. The bits
have an exponent a recording (a power of two): 16-bit sources at 16 kHz come back bit for bit, nothing is clipped, and
what was resampled, averaged from channels or finer than 16 bits is rounded at 96 dB below its own peak.
"""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.data.audio import RATE, file_of, read_audio
from trainer.data.store import Store

VERSION = 1  # of what decoding yields: another one is decoded anew


@dataclass(frozen=True)
class Sound:
    """16-bit samples (T,) and the power of two they are multiples of: `samples · 2 ** (exponent - 15)`."""

    samples_T: np.ndarray
    exponent: int

    def wave(self) -> np.ndarray:
        """Mono float32."""
        return np.multiply(self.samples_T, np.float32(math.ldexp(1.0, self.exponent - 15)), dtype=np.float32)


def rounded(wave_T: np.ndarray) -> Sound:
    """To 16 bits with the smallest exponent that clips nothing. What was 16-bit PCM stays what it was."""
    high, low = float(wave_T.max(initial=0.0)), float(wave_T.min(initial=0.0))
    exponent = max(math.frexp(max(high, -low))[1] - 1, -60)
    while round(math.ldexp(high, 15 - exponent)) > 32767 or round(math.ldexp(low, 15 - exponent)) < -32768:
        exponent += 1  # once, and once more where the peak rounds up to the next power of two
    scaled_T = np.multiply(wave_T, np.float32(math.ldexp(1.0, 15 - exponent)), dtype=np.float32)  # exact
    return Sound(np.rint(scaled_T).astype("<i2"), exponent)


class PcmCache:
    """Recordings as `read_audio` gives them, rounded to 16 bits, and kept in a store if there is one. For threads."""

    def __init__(self, store: Store | None, decode: Callable[..., np.ndarray] = read_audio) -> None:
        self._store, self._decode = store, decode

    def read(self, path: str, start_s: float, duration_s: float) -> np.ndarray:
        """Mono float32 (T,) at 16 kHz, exactly `duration_s` of it. Raises AudioError."""
        key = recording_key(path, start_s, duration_s) if self._store else b""
        if self._store and key and (found := self._store.get(key)):
            return Sound(np.frombuffer(found[0], "<i2"), found[1]).wave()
        sound = rounded(self._decode(path, start_s, duration_s))
        if self._store and key:
            self._store.put(key, sound.samples_T.tobytes(), sound.exponent)
        return sound.wave()


def recording_key(path: str, start_s: float, duration_s: float, *more: object) -> bytes:
    """The recording's identity; nothing where its file can't be asked: the decoder says what is wrong.

    `more` is what else the kept thing depends on.
    """
    size = time_ns = 0
    if not path.startswith("hf://"):  # such an address names its commit
        try:
            stat = os.stat(file_of(path))  # noqa: PTH116  # a Path costs more than the call
        except OSError:
            return b""
        size, time_ns = stat.st_size, stat.st_mtime_ns
    what = f"{VERSION}/{RATE}/{size}/{time_ns}/{start_s!r}/{duration_s!r}/{more!r}/{path}"
    return hashlib.blake2b(what.encode(errors="surrogateescape"), digest_size=16).digest()
