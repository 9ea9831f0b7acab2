"""Where words end: CTC says a token somewhere within its sound, the sound itself says where it is quiet.

F frames of 10 ms · T samples
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainer.aligned import Spoken
from trainer.data.audio import RATE

FRAME = RATE // 100
LOUD_SHARE = 0.95  # of all frames lie below the level of speech
PAUSE_DB = 15.0  # a pause lies at least so far below speech: less is a soft consonant, or all of it is noise
RISE_DB = 6.0  # above its quietest frame a pause is over: its own noise varies by less
SMOOTH = 3  # frames that are averaged: the valleys of a low voice are no pauses


def levels_db(wave_T: np.ndarray) -> np.ndarray:
    """The level of every 10 ms, (F,), a little smoothed."""
    n = len(wave_T) // FRAME
    if not n:
        return np.zeros(0)
    power_F = np.mean(np.square(wave_T[: n * FRAME].reshape(n, FRAME), dtype=np.float64), axis=1)
    ends = np.pad(power_F, SMOOTH // 2, mode="edge")
    return 10 * np.log10(np.maximum(np.convolve(ends, np.ones(SMOOTH) / SMOOTH, mode="valid"), 1e-12))


def with_pauses(words: Sequence[Spoken], wave_T: np.ndarray) -> list[Spoken]:
    """The words with their ends moved to where the sound between two of them becomes quiet, if it does.

    Never beyond a neighbour's tokens: words keep their order, and none overlaps another.
    """
    levels_F = levels_db(wave_T)
    if not len(levels_F):
        return list(words)
    loud = float(np.quantile(levels_F, LOUD_SHARE))
    found = list(words)
    sounding = [n for n, w in enumerate(words) if w.end_s > w.start_s]
    for before, behind in zip([None, *sounding], [*sounding, None], strict=True):
        first_s = words[before].end_s if before is not None else 0.0
        end_s = words[behind].start_s if behind is not None else len(wave_T) / RATE
        pause = _pause(levels_F, loud, first_s, end_s)
        if pause is None:
            continue
        if before is not None:
            found[before] = replace(found[before], end_s=max(first_s, pause[0]))
        if behind is not None:
            found[behind] = replace(found[behind], start_s=min(end_s, pause[1]))
    return _with_silent(found)


def _pause(levels_F: np.ndarray, loud: float, first_s: float, end_s: float) -> tuple[float, float] | None:
    """The quiet run around the quietest frame between two times, in seconds; None where all of it is speech."""
    first, end = round(first_s * RATE / FRAME), min(round(end_s * RATE / FRAME), len(levels_F))
    if end <= first:
        return None
    part = levels_F[first:end]
    quietest = int(part.argmin())
    over = max(float(part[quietest]) + RISE_DB, loud - 2 * PAUSE_DB)
    if part[quietest] > loud - PAUSE_DB:
        return None
    is_loud = part > over
    left, right = np.flatnonzero(is_loud[:quietest]), np.flatnonzero(is_loud[quietest:])
    start = first + (int(left[-1]) + 1 if len(left) else 0)
    stop = first + (quietest + int(right[0]) if len(right) else len(part))
    return start * FRAME / RATE, stop * FRAME / RATE


def _with_silent(words: Sequence[Spoken]) -> list[Spoken]:
    """What has no sound, a dash by itself, stands where the word before it now ends, or the first one begins."""
    found: list[Spoken] = []
    at = next((w.start_s for w in words if w.end_s > w.start_s), 0.0)
    for word in words:
        if word.end_s <= word.start_s:
            word = replace(word, start_s=at, end_s=at)
        at = word.end_s
        found.append(word)
    return found
