"""Recordings as mono float32 at 16 kHz, and the integer arithmetic of their lengths."""

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import AudioError

RATE = 16_000  # samples a second of everything behind this module
SILENCE = 1e-4  # a peak below this (-80 dBFS) is a dead microphone
SLACK_S = 0.1  # by how much a file may be shorter than its manifest says


IN_PARQUET = re.compile(r"(.*\.parquet)#([^/#]+)/(\d+)", re.DOTALL)  # file, column, row: a recording inside


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself, before it is decoded."""

    rate: int
    frames: int

    @property
    def duration_s(self) -> float:
        return self.frames / self.rate


def samples_of(seconds: float) -> int:
    """How many samples so many seconds are, to the nearest; back is division by RATE."""
    return round(seconds * RATE)


def padded_samples(n_samples: int, edge_s: float, multiple: int = 320) -> int:
    """The next edge at or above a length: a function of the utterance alone, whatever its neighbours.

    Edges lie `edge_s` apart, rounded to whole multiples of `multiple` samples.
    """
    edge = max(multiple, round(edge_s * RATE / multiple) * multiple)
    return max(1, math.ceil(n_samples / edge)) * edge


def header(path: str) -> Header:
    """Rate and length without decoding. Raises AudioError."""
    import soundfile

    opened = _opened(path)
    try:
        info = soundfile.info(opened)
    except Exception as e:
        raise AudioError(f"{path} is not audio that can be read ({_reason(e)})") from None
    if not info.frames:
        raise AudioError(f"{path} is empty")
    return Header(info.samplerate, info.frames)


def read_audio(path: str, start_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    """Mono float32 in about [-1, 1], shape (T,), at 16 kHz: exactly `duration_s` of it where that is given.

    Channels are averaged, other rates resampled (soxr, high quality). Raises AudioError where the file can't be read,
    is empty, silent, or ends before the span does.
    """
    wave_T, rate = decoded(_opened(path), path, start_s, duration_s)
    return resampled(wave_T, rate, path, start_s, duration_s)


def read_sound(path: str, start_s: float = 0.0, duration_s: float | None = None) -> tuple[np.ndarray, int]:
    """Samples as they are stored, float32 (T, channels), and their rate. Raises AudioError; silence is let be."""
    return _samples(_opened(path), path, start_s, duration_s)


def decoded(opened: Any, path: str, start_s: float = 0.0, duration_s: float | None = None) -> tuple[np.ndarray, int]:
    """Mono float32 (T,) at the recording's own rate, and that rate; `opened` is a path, or a file's bytes.

    Raises AudioError, as `read_audio` does but for the length.
    """
    sound_TC, rate = _samples(opened, path, start_s, duration_s)
    wave_T = sound_TC.mean(axis=1) if sound_TC.shape[1] > 1 else sound_TC[:, 0]
    if np.abs(wave_T).max() < SILENCE:
        raise AudioError(f"{path} is silent")
    return wave_T, rate


def resampled(wave_T: np.ndarray, rate: int, path: str, start_s: float, duration_s: float | None) -> np.ndarray:
    """At 16 kHz, exactly `duration_s` of it where that is given. Raises AudioError where it ends before."""
    import soxr

    if rate != RATE:
        wave_T = soxr.resample(wave_T, rate, RATE, quality="HQ")
    if duration_s is None:
        return np.ascontiguousarray(wave_T, dtype=np.float32)
    wanted = samples_of(duration_s)
    if len(wave_T) < wanted - SLACK_S * RATE:
        raise AudioError(f"{path} ends at {start_s + len(wave_T) / RATE:.2f} s, not {start_s + duration_s:.2f} s")
    return fit(wave_T, wanted)


def _samples(opened: Any, path: str, start_s: float, duration_s: float | None) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        with soundfile.SoundFile(opened) as f:
            rate = f.samplerate
            if start_s:
                f.seek(min(round(start_s * rate), len(f)))
            frames = -1 if duration_s is None else round(duration_s * rate)
            sound_TC = f.read(frames, dtype="float32", always_2d=True)
    except Exception as e:
        raise AudioError(f"{path} is not audio that can be read ({_reason(e)})") from None
    if not len(sound_TC):
        raise AudioError(f"{path} is empty" if not start_s else f"{path} ends before {start_s:.2f} s")
    if not np.isfinite(sound_TC).all():
        raise AudioError(f"{path} holds values that are not numbers")
    return sound_TC, rate


def fit(wave_T: np.ndarray, n_samples: int) -> np.ndarray:
    """Cut, or padded with silence, to exactly so many samples."""
    whole = np.zeros(n_samples, dtype=np.float32)
    n = min(n_samples, len(wave_T))
    whole[:n] = wave_T[:n]
    return whole


def file_of(path: str) -> str:
    """The file that holds a recording: the path itself, or what stands before `#COLUMN/ROW`."""
    inside = IN_PARQUET.fullmatch(path)
    return inside.group(1) if inside else path


def _opened(path: str) -> Any:
    """What soundfile opens: a path, or the bytes of a recording that lies in a Parquet file."""
    inside = IN_PARQUET.fullmatch(path)
    if inside is None:
        return path
    from trainer.data.parquet import sound_bytes

    return io.BytesIO(sound_bytes(inside.group(1), inside.group(2), int(inside.group(3))))


def _reason(e: Exception) -> str:
    text: Any = getattr(e, "error_string", "") or str(e)
    return str(text).splitlines()[0].strip().rstrip(".") if str(text).strip() else type(e).__name__
