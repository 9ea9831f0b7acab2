"""The utterances that a model heard worst, and their sound, so that a person can listen before blaming the model."""

import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remote.files import read_json, write_atomic, write_json
from trainer.errors import AudioError
from trainer.metrics.normalise import normaliser_named
from trainer.metrics.wer import count_errors
from trainer.recipe.eval import Eval
from trainer.results import sound_name
from trainer.task import Row

if TYPE_CHECKING:
    from trainer.data.manifest import Manifest

log = logging.getLogger(__name__)

INDEX = "index.json"  # beside the sounds: which report each of them was kept for


def worst_rows(rows: Iterable[Row], how: Eval) -> list[Row]:
    """At most `how.worst` rows with errors: most of them first, then the highest rate; without usable audio last."""
    apply = normaliser_named(how.normaliser).apply
    found = []
    for row in rows:
        e = count_errors(apply(row["reference"]).split(), apply(row["text"]).split())
        if e.total:
            found.append(((bool(row.get("reason")), -e.total, -e.rate, row["id"]), row))
    return [row for _, row in sorted(found, key=lambda f: f[0])[: how.worst]]


def keep_sounds(rows: Sequence[Row], manifest: "Manifest", folder: Path, n: int, report: str) -> int:
    """FLAC files, 16 kHz mono, of the first `n` rows that can be read; how many were kept. Never raises for a file.

    `report` is the rows file that names them (`test-greedy.rows.jsonl`): sounds that no rows file beside the folder
    stands for any more are removed.
    """
    place = {id: at for at, id in enumerate(manifest.column("id"))}
    known = read_json(folder / INDEX)
    kept: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows[:n]:
            if not row.get("reason") and row["id"] in place and _keep(manifest, place[row["id"]], folder):
                kept.append(sound_name(row["id"]))
        index = {r: names for r, names in _whole(known).items() if (folder.parent / r).exists()} | {report: kept}
        write_json(folder / INDEX, index)
        if known is not None:  # without an index nobody knows what the others were kept for
            wanted = {name for names in index.values() for name in names}
            for path in folder.glob("*.flac"):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
    except OSError as e:
        log.warning("the sound of the worst utterances could not be kept (%s)", e)
    return len(kept)


def _keep(manifest: "Manifest", at: int, folder: Path) -> bool:
    import numpy as np
    import soundfile

    from trainer.data.audio import RATE, read_audio

    example = manifest[at]
    sound = io.BytesIO()
    try:
        wave_T = read_audio(example.audio, example.start_s, example.duration_s)
        soundfile.write(sound, np.clip(wave_T, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    except (AudioError, RuntimeError) as e:
        log.warning("%s has no sound to listen to: %s", example.id, e)
        return False
    write_atomic(folder / sound_name(example.id), sound.getvalue(), durable=False)
    return True


def _whole(index: object) -> dict[str, list[str]]:
    """The index, or nothing where someone else wrote it."""
    if not isinstance(index, dict):
        return {}
    return {str(k): [str(n) for n in v] for k, v in index.items() if isinstance(v, list)}
