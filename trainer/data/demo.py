"""A small spoken corpus out of nothing: espeak-ng says one to three of eighteen words in many voices.

The "age buckets" are pitches and rates of a synthetic voice, not ages of people: they show how reports are split.
"""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.audio import RATE
from trainer.errors import BadData, TrainerError

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("up", "down", "left", "right", "stop", "go", "yes", "no"),
)
ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland")
BUCKETS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[str, ...]]] = {
    # pitch (0-99), words a minute, voice variants
    "3-4": ((85, 99), (120, 150), ("f1", "f2", "f3", "f4", "f5")),
    "5-7": ((75, 90), (130, 165), ("f1", "f2", "f3", "f4", "f5")),
    "8-11": ((60, 78), (145, 180), ("f1", "f3", "m1", "m3")),
    "12+": ((35, 60), (150, 190), ("m1", "m3", "f2", "f4")),
}


@dataclass(frozen=True)
class Spoken:
    """One utterance to be synthesised."""

    id: str
    text: str
    bucket: str
    voice: str
    pitch: int
    words_per_minute: int


def prepare_demo(out: Path, *, n_train: int, n_dev: int, n_test: int, seed: int, max_s: float = 3.0) -> None:
    """Write train, dev and test manifests with their audio under `out`, all or nothing.

    Raises TrainerError where espeak-ng is missing or fails.
    """
    if shutil.which("espeak-ng") is None:
        raise TrainerError("espeak-ng is not installed", "apt-get install espeak-ng (macOS: brew install espeak-ng)")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for number, (name, n) in enumerate((("train", n_train), ("dev", n_dev), ("test", n_test))):
            _write_set(beside, name, draw(name, n, seed * 1000 + number), max_s)
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def draw(name: str, n: int, seed: int) -> list[Spoken]:
    """What will be said: words, voices, pitches and rates drawn evenly, buckets in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        bucket = list(BUCKETS)[i % len(BUCKETS)]
        pitch, rate, variants = BUCKETS[bucket]
        found.append(
            Spoken(
                id=f"{name}-{i:04d}",
                text=" ".join(rng.choice(WORDS, size=rng.integers(1, 4))),
                bucket=bucket,
                voice=f"{rng.choice(ACCENTS)}+{rng.choice(variants)}",
                pitch=int(rng.integers(*pitch)),
                words_per_minute=int(rng.integers(*rate)),
            )
        )
    return found


def _write_set(folder: Path, name: str, utterances: Sequence[Spoken], max_s: float) -> None:
    (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        rows = list(pool.map(lambda u: _write_one(folder, name, u, max_s), utterances))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _write_one(folder: Path, name: str, u: Spoken, max_s: float) -> dict[str, object]:
    import soundfile

    wave_T = synthesise(u)[: int(max_s * RATE)]
    path = f"{name}/{u.id}.wav"
    soundfile.write(folder / path, wave_T, RATE, subtype="PCM_16")
    return {
        "id": u.id,
        "audio": path,
        "duration_s": len(wave_T) / RATE,
        "text": u.text,
        "speaker": f"{u.voice}/{u.bucket}",
        "language": "en",
        "age_bucket": u.bucket,
    }


def synthesise(u: Spoken) -> np.ndarray:
    """Mono float32 at 16 kHz, silence cut off at both ends. Raises TrainerError."""
    import soundfile
    import soxr

    argv = ["espeak-ng", "--stdout", "-v", u.voice, "-p", str(u.pitch), "-s", str(u.words_per_minute), u.text]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    if done.returncode or not done.stdout:
        raise TrainerError(f"espeak-ng could not say {u.text!r} as {u.voice}: {done.stderr.decode(errors='replace')}")
    wave_T, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    loud = np.flatnonzero(np.abs(wave_T) > 1e-3)
    if not len(loud):
        raise BadData(f"espeak-ng said {u.text!r} without a sound", "check its voices: espeak-ng --voices=en")
    wave_T = wave_T[loud[0] : loud[-1] + 1]
    return np.asarray(soxr.resample(wave_T, rate, RATE, quality="HQ"), dtype=np.float32)
