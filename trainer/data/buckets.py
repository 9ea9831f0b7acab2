"""What rows of a manifest have in common: a field as numbers, whatever it is, without ten million rows in memory."""

import json
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.manifest import Manifest
from trainer.task import DURATIONS_S, duration_bucket

AT_ONCE = 100_000  # rows whose meta is parsed together
COLUMNS = ("speaker", "language", "source")


def codes_of(manifest: Manifest, name: str) -> tuple[np.ndarray, list[str]]:
    """`Example.bucket(name)` of every position as numbers (N,), and the values they stand for."""
    if name in COLUMNS:
        codes, values = manifest.codes(name)
        return codes, [str(v) for v in values]
    if name == "duration":
        codes = np.digitize(manifest.column("duration_s"), DURATIONS_S).astype(np.int32)
        return codes, [duration_bucket(edge) for edge in (0.0, *DURATIONS_S)]
    return _codes_of_meta(manifest, name)


def rows_with(manifest: Manifest, name: str, wanted: Collection[str]) -> np.ndarray:
    """Which positions have one of these values: bool (N,)."""
    return has_one_of(*codes_of(manifest, name), wanted)


def has_one_of(codes: np.ndarray, values: Sequence[str], wanted: Collection[str]) -> np.ndarray:
    """The same of a field whose codes are there already."""
    return np.array([v in wanted for v in values], bool)[codes] if len(codes) else np.zeros(0, bool)


def text_lengths(manifest: Manifest) -> np.ndarray:
    """Characters of every transcript: int32 (N,)."""
    whole = pa.concat_tables([t.table.select(["text"]) for t in manifest.tables]).column("text")
    lengths: np.ndarray = pc.utf8_length(whole).to_numpy().astype(np.int32)
    return lengths[manifest.rows]


def _codes_of_meta(manifest: Manifest, name: str) -> tuple[np.ndarray, list[str]]:
    known: dict[str, int] = {}
    parts = []
    for table in manifest.tables:
        for batch in table.table.select(["meta"]).to_batches(max_chunksize=AT_ONCE):
            found = (str(json.loads(m).get(name, "")) if m else "" for m in batch.column(0).to_pylist())
            parts.append(np.fromiter((known.setdefault(v, len(known)) for v in found), np.int32, len(batch)))
    codes = np.concatenate(parts)[manifest.rows] if parts else np.zeros(0, np.int32)
    return codes, list(known)
