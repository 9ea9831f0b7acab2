"""Recordings inside Parquet files, as data sets of the Hub keep them: a column of structs with `bytes`, or of bytes.

A row can't be read by itself, only its row group; the last few groups are kept, so rows near each other cost one read.
"""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import AudioError, BadData

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text", "raw_transcription")

GROUPS_KEPT = 8

_lock = threading.Lock()
_groups: "OrderedDict[tuple[str, str, int], Any]" = OrderedDict()
_firsts: dict[str, list[int]] = {}  # of each file: the first row of each group, and how many rows there are


def sound_bytes(file: str, column: str, row: int) -> bytes:
    """The sound file that a row holds. Raises AudioError."""
    try:
        group, first = _group_of(file, row)
        cell = _column(file, column, group)[row - first].as_py()
    except (OSError, ValueError, KeyError, IndexError) as e:
        raise AudioError(f"{file}#{column}/{row} can't be read ({str(e).splitlines()[0] if str(e) else e!r})") from None
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if not isinstance(cell, bytes) or not cell:
        raise AudioError(f"{file}#{column}/{row} holds no sound: its bytes are empty")
    return cell


def rows_of(file: Path, names: Mapping[str, str], *, relative_to: Path) -> Iterator[dict[str, Any]]:
    """A manifest row a row of the file, its sound left inside. `names`: our field → the column. Raises BadData.

    Only columns beside the sound are read here; of the sound the header, where no column says how long it is.
    """
    try:
        whole = pq.ParquetFile(file)
    except (OSError, ValueError) as e:
        raise BadData(f"{file} is not Parquet ({str(e).splitlines()[0]})", "leave it out, or fetch it again") from None
    schema = whole.schema_arrow
    audio = _audio_column(schema, names, file)
    text = names.get("text") or next((c for c in TEXT_COLUMNS if c in schema.names), "")
    if not text or text not in schema.names:
        raise BadData(f"{file} has no column with the text", f"say --set text=COLUMN: {', '.join(schema.names)}")
    rest = [n for n in schema.names if n != audio and not pa.types.is_struct(schema.field(n).type)]
    place, row = Path(os.path.relpath(file, relative_to)) if file != relative_to else Path(file.name), 0
    for batch in whole.iter_batches(columns=rest, batch_size=1000):
        for raw in batch.to_pylist():
            ours = {k: raw.pop(names.get(k, k), None) for k in ("id", "speaker", "language", "duration_s", "start_s")}
            said = raw.pop(text, None)
            found = {k: v if k.endswith("_s") else str(v) for k, v in ours.items() if v not in (None, "")}
            yield {
                "id": f"{place.with_suffix('').as_posix()}-{row}",
                "audio": f"{file.absolute()}#{audio}/{row}",
                **found,
                "text": said or "",
                "meta": {k: v for k, v in raw.items() if isinstance(v, str | int | float | bool)},
            }
            row += 1


def _audio_column(schema: Any, names: Mapping[str, str], file: Path) -> str:
    if "audio" in names and names["audio"] in schema.names:
        return names["audio"]

    def has_bytes(kind: Any) -> bool:
        return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    for name in ("audio", *schema.names):
        if name in schema.names and (has_bytes(schema.field(name).type) or pa.types.is_binary(schema.field(name).type)):
            return name
    raise BadData(f"{file} has no column with sound in it", f"say --set audio=COLUMN: {', '.join(schema.names)}")


def _group_of(file: str, row: int) -> tuple[int, int]:
    """Which row group, and its first row."""
    with _lock:
        if file not in _firsts:
            metadata = pq.read_metadata(file)
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            _firsts[file] = [0, *accumulate(sizes)]
        firsts = _firsts[file]
    if not 0 <= row < firsts[-1]:
        raise IndexError(f"it has {firsts[-1]} rows")
    group = bisect_right(firsts, row) - 1
    return group, firsts[group]


def _column(file: str, column: str, group: int) -> Any:
    key = (file, column, group)
    with _lock:  # threads that want the same group wait for one read of it
        if key in _groups:
            _groups.move_to_end(key)
            return _groups[key]
        table = pq.ParquetFile(file).read_row_group(group, columns=[column])
        values = table.column(column).combine_chunks()
        _groups[key] = values
        while len(_groups) > GROUPS_KEPT:
            _groups.popitem(last=False)
        return values
