"""Recordings inside Parquet files, as data sets of the Hub keep them: a column of structs with `bytes`, or of bytes.

A row can't be read by itself, only its row group; the last few groups are kept, so rows near each other cost one read.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import Any

import pyarrow.parquet as pq

from trainer.errors import AudioError

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
