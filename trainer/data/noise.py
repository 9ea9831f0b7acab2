"""Noise from a folder of recordings: which file, which part of it and how loud are functions of the draw alone.

Every file is heard once, when the folder is first seen; what can't be read or is silent is told and never drawn.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from remote.files import read_json, write_json
from trainer.data.audio import RATE, read_audio
from trainer.data.places import cache_root, data_root
from trainer.data.pool import decoders
from trainer.errors import AudioError, BadData
from trainer.recipe.augment import Augment
from trainer.recipe.base import Recipe
from trainer.task import Bad

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
TRIES = 4  # parts that are looked at, where a recording of noise is silent in places


@dataclass(frozen=True)
class NoiseFolder:
    """What can be drawn: files (sorted, relative to the folder) and their seconds. `sha256` is of names and sizes."""

    folder: Path
    files: Sequence[str]
    seconds: Sequence[float]
    bad: Sequence[Bad]
    sha256: str

    def draw(self, n_samples: int, rng: np.random.Generator) -> np.ndarray | None:
        """So many samples (repeated where the recording is shorter); None where all that came was silence."""
        for _ in range(TRIES):
            pick, at = int(rng.integers(len(self.files))), rng.random()
            whole_s, wanted_s = self.seconds[pick], n_samples / RATE
            start_s = at * max(0.0, whole_s - wanted_s)
            try:
                wave_T = read_audio(str(self.folder / self.files[pick]), start_s, min(wanted_s, whole_s - start_s))
            except AudioError:  # silent just there
                continue
            return np.resize(wave_T, n_samples)
        return None


def open_noises(recipe: Recipe) -> dict[str, NoiseFolder]:
    """Every folder that some augmentation draws from, by the name it has there. Raises BadData."""
    names = {a.noise_dir for a in recipe.augments if a.noise_dir is not None}
    return {name: open_noise(data_root() / name, cache_root(), recipe.data.workers) for name in sorted(names)}


def noise_of(how: Augment, noises: dict[str, NoiseFolder]) -> NoiseFolder | None:
    """What this augmentation draws from; None: white noise."""
    return noises[how.noise_dir] if how.noise_dir is not None else None


def open_noise(folder: Path, cache: Path, workers: int = 2) -> NoiseFolder:
    """The usable files under a folder; every file is decoded once. Raises BadData where there are none."""
    if not folder.is_dir():
        raise BadData(f"{folder} is not a folder of noise", "check augment.noise_dir: relative ones lie in data/")
    found = sorted(
        (p.relative_to(folder).as_posix(), p.stat().st_size)
        for p in folder.rglob("*")
        if p.suffix.lower() in SOUNDS and p.is_file()
    )
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    side = cache / "noise" / f"{hashlib.sha256(f'{digest}/{os.path.realpath(folder)}'.encode()).hexdigest()[:24]}.json"
    known = read_json(side)
    if known is None:
        with decoders(workers, "noise") as pool:
            heard = list(pool.map(lambda f: _hear(folder / f[0]), found))
        known = [[name, *h] for (name, _), h in zip(found, heard, strict=True)]
        side.parent.mkdir(parents=True, exist_ok=True)
        write_json(side, known)
    good = [(name, seconds) for name, seconds, reason in known if not reason]
    bad = [Bad(f"noise:{name}", reason) for name, _, reason in known if reason]
    if not good:
        raise BadData(f"{folder} holds no noise that can be heard ({len(bad)} files)", "check augment.noise_dir")
    return NoiseFolder(folder, [n for n, _ in good], [s for _, s in good], bad, digest)


def _hear(path: Path) -> tuple[float, str]:
    """Its seconds, and why it can't be used."""
    try:
        return len(read_audio(str(path))) / RATE, ""
    except AudioError as e:
        return 0.0, e.message
