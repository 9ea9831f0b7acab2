"""Recordings inside Parquet files, as data sets of the Hub keep them: a column of structs with `bytes`, or of bytes.

A row can't be read by itself, only its row group; the last few groups are kept, so rows near each other cost one read.
"""

import logging
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import AudioError, BadData, TrainerError

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text", "raw_transcription")

log = logging.getLogger(__name__)

GROUPS_KEPT = 8

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between tries, where the Hub does not answer

_wait = time.sleep
_lock = threading.Lock()
_reading: "dict[tuple[str, str, int], threading.Lock]" = {}  # threads that want the same group wait for one read of it
_groups: "OrderedDict[tuple[str, str, int], Any]" = OrderedDict()
_n_kept = GROUPS_KEPT
_firsts: dict[str, tuple[list[int], Any]] = {}  # of each file: first row of each group, and behind the last; its footer


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


def rows_of(file: str, names: Mapping[str, str], *, name: str) -> Iterator[dict[str, Any]]:
    """A manifest row a row of the file, its sound left inside. `names`: our field → the column. Raises BadData.

    Only columns beside the sound are read here. `name` begins the ids of rows that have none; `group` is the row group.
    """
    try:
        whole = _patient(lambda: pq.ParquetFile(_source(file)), file)
    except (OSError, ValueError) as e:
        raise BadData(f"{file} is not Parquet ({str(e).splitlines()[0]})", "leave it out, or fetch it again") from None
    schema = whole.schema_arrow
    audio = _audio_column(schema, names, file)
    text = names.get("text") or next((c for c in TEXT_COLUMNS if c in schema.names), "")
    if not text or text not in schema.names:
        raise BadData(
            f"{file} has no column with the text",
            f"say text=COLUMN (--set, or columns), one of {', '.join(schema.names)}",
        )
    rest = [n for n in schema.names if n != audio and not pa.types.is_struct(schema.field(n).type)]
    row = 0
    for group in range(whole.num_row_groups):
        for raw in whole.read_row_group(group, columns=rest).to_pylist():
            ours = {k: raw.pop(names.get(k, k), None) for k in ("id", "speaker", "language", "duration_s", "start_s")}
            said = raw.pop(text, None)
            found = {k: v if k.endswith("_s") else str(v) for k, v in ours.items() if v not in (None, "")}
            yield {
                "id": f"{name}-{row}",
                "audio": f"{file}#{audio}/{row}",
                **found,
                "text": said or "",
                "group": group,
                "meta": {k: v for k, v in raw.items() if isinstance(v, str | int | float | bool)},
            }
            row += 1


def keep_groups(n: int) -> None:
    """How many row groups are held at once: two windows of what is shuffled among each other."""
    global _n_kept
    with _lock:
        _n_kept = max(GROUPS_KEPT, n)


def _audio_column(schema: Any, names: Mapping[str, str], file: str) -> str:
    if "audio" in names and names["audio"] in schema.names:
        return names["audio"]

    def has_bytes(kind: Any) -> bool:
        return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    for name in ("audio", *schema.names):
        if name in schema.names and (has_bytes(schema.field(name).type) or pa.types.is_binary(schema.field(name).type)):
            return name
    raise BadData(
        f"{file} has no column with sound in it",
        f"say audio=COLUMN (--set, or columns), one of {', '.join(schema.names)}",
    )


def _group_of(file: str, row: int) -> tuple[int, int]:
    """Which row group, and its first row."""
    with _lock:
        if file not in _firsts:
            metadata = _patient(lambda: pq.read_metadata(_source(file)), file)
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            _firsts[file] = ([0, *accumulate(sizes)], metadata)
        firsts = _firsts[file][0]
    if not 0 <= row < firsts[-1]:
        raise IndexError(f"it has {firsts[-1]} rows")
    group = bisect_right(firsts, row) - 1
    return group, firsts[group]


def _column(file: str, column: str, group: int) -> Any:
    key = (file, column, group)
    with _lock:
        if key in _groups:
            _groups.move_to_end(key)
            return _groups[key]
        reading = _reading.setdefault(key, threading.Lock())
    with reading:
        with _lock:
            if key in _groups:
                return _groups[key]
            footer = _firsts[file][1]
        table = _patient(
            lambda: pq.ParquetFile(_source(file), metadata=footer, pre_buffer=True).read_row_group(group, [column]),
            file,
        )
        values = table.column(column).combine_chunks()
        with _lock:
            _groups[key] = values
            _reading.pop(key, None)
            while len(_groups) > _n_kept:
                _groups.popitem(last=False)
        return values


def _source(file: str) -> Any:
    """What pyarrow reads: a path, or an open file of the Hub."""
    if not file.startswith("hf://"):
        return file
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(file, "rb", block_size=1 << 20, cache_type="readahead")


def _patient(read: Callable[[], Any], file: str) -> Any:
    """Tried again where the Hub does not answer; a network that stays away ends the run, it spoils no utterance."""
    if not file.startswith("hf://"):
        return read()
    waits = iter(WAITS_S)
    while True:
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception as e:  # of httpx, of huggingface_hub, of ssl: whatever a network does
            wait_s = next(waits, None)
            if wait_s is None:
                raise TrainerError(
                    f"{file} can't be read: {str(e).splitlines()[0] if str(e) else type(e).__name__}",
                    "when the network is back, the same command again: it resumes",
                ) from None
            log.warning("%s does not answer, again in %g s", file, wait_s)
            _wait(wait_s)
