"""Recordings out of nothing, with words in them that can be learnt: sixteen of them, each a pair of tones, in noise.

A word is its first tone, then its second, each one of four, a little off in pitch, length and loudness every time.
"""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
ONSETS = {"ba": 300.0, "di": 520.0, "gu": 900.0, "ko": 1560.0}
ENDS = {"la": 360.0, "me": 640.0, "no": 1100.0, "su": 1900.0}
WORDS = [a + b for a in ONSETS for b in ENDS]


def clips_of_one_length(folder: Path, n: int, seconds: float, seed: int = 0, name: str = "train") -> Path:
    """`n` recordings of just so many seconds, two words in every three; returns the manifest."""
    rng = np.random.default_rng([seed, 1])
    rows = []
    for i in range(n):
        words = [str(w) for w in rng.choice(WORDS, size=max(1, round(seconds * 2 / 3)))]
        wave_T = spoken(words, rng, snr_db=20)
        whole_T = rng.normal(0, 0.005, round(seconds * RATE)).astype(np.float32)
        at = len(whole_T) - len(wave_T)
        whole_T[at // 2 : at // 2 + len(wave_T)] += wave_T
        rows.append(_written(folder, name, i, whole_T, words))
    return _manifest(folder, name, rows)


def sentences(folder: Path, n: int, seed: int, name: str, snr_db: float = 20.0) -> Path:
    """`n` recordings of one to four words, as long as they are."""
    rng = np.random.default_rng([seed, 2])
    rows = []
    for i in range(n):
        words = [str(w) for w in rng.choice(WORDS, size=rng.integers(1, 5))]
        rows.append(_written(folder, name, i, spoken(words, rng, snr_db), words))
    return _manifest(folder, name, rows)


def spoken(words: list[str], rng: np.random.Generator, snr_db: float) -> np.ndarray:
    """The words one after the other: float32 (T,)."""
    parts = [rng.normal(0, 1e-3, int(rng.uniform(0.02, 0.1) * RATE))]
    for word in words:
        for pitch in (ONSETS[word[:2]], ENDS[word[2:]]):
            t = np.arange(int(rng.uniform(0.09, 0.16) * RATE)) / RATE
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.95, 1.05) * t)
            parts.append(rng.uniform(0.05, 0.15) * tone * np.hanning(len(t)) ** 0.25)
        parts.append(rng.normal(0, 1e-3, int(rng.uniform(0.03, 0.08) * RATE)))
    wave_T = np.concatenate(parts)
    level = np.sqrt(np.mean(wave_T**2)) / 10 ** (snr_db / 20)
    return (wave_T + rng.normal(0, level, len(wave_T))).astype(np.float32)


def _written(folder: Path, name: str, i: int, wave_T: np.ndarray, words: list[str]) -> dict[str, object]:
    (folder / name).mkdir(parents=True, exist_ok=True)
    path = f"{name}/{name}-{i}.wav"
    soundfile.write(folder / path, wave_T, RATE, subtype="PCM_16")
    return {"id": f"{name}-{i}", "audio": path, "duration_s": len(wave_T) / RATE, "text": " ".join(words)}


def _manifest(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
