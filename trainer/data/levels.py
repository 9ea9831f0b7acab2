"""How loud a recording is, frame by frame, and how far what is loud stands above what is quiet.

T samples · F frames of 20 ms
"""

import numpy as np

FRAME_S = 0.02  # about a pitch period or two: shorter frames would call the valleys of a low voice quiet
FLOOR_DB = -96.0  # of 16 bits: nothing measured here is quieter
LOUD_SHARE = 0.95  # the level that 5 % of the frames exceed is that of speech: one click does not move it
QUIET_SHARE = 0.10  # and 10 % lie below that of the background, pauses between words being more than that


def frame_levels_db(wave_T: np.ndarray, rate: int) -> np.ndarray:
    """The level of every 20 ms, (F,), dB below full scale; what is left at the end counts where it is all there is."""
    size = max(1, round(FRAME_S * rate))
    n = len(wave_T) // size
    frames_FT = wave_T[: n * size].reshape(n, size) if n else wave_T[None, :]
    power_F = np.mean(np.square(frames_FT, dtype=np.float64), axis=1)
    return np.maximum(10 * np.log10(np.maximum(power_F, 1e-12)), FLOOR_DB)


def loud_and_quiet_db(levels_F: np.ndarray) -> tuple[float, float]:
    """The levels of speech and of what lies between the words; their difference is an estimate of the SNR.

    Where nobody pauses the quiet frames are speech, and it says too little.
    """
    loud, quiet = np.quantile(levels_F, (LOUD_SHARE, QUIET_SHARE))
    return float(loud), float(quiet)
