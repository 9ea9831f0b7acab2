"""The index of a manifest: its usable rows as Arrow columns on the disk, its unusable ones with their reasons.

Made once, opened in a blink; lengths and keys lie apart as plain numbers, so that a plan over ten million utterances
costs no memory for them.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.audio import header
from trainer.data.characters import HALF, is_whole
from trainer.data.finder import AudioFinder
from trainer.errors import AudioError
from trainer.recipe.data import Data
from trainer.task import Bad

VERSION = 3  # of the index: another one is built anew
ROWS_A_BATCH = 20_000
TEXT_FIELDS = ("id", "audio", "text", "speaker", "language", "source", "sha256")
NUMBERS = {"duration_s": np.dtype("<f8"), "key": np.dtype("<u8")}  # kept apart as well
MAYBE_HALF = (b"\\ud", b"\\uD", b"\xed")  # in a line's bytes, as an escape or as it is: few lines are looked at closely
SCHEMA = pa.schema(
    [pa.field(n, pa.string()) for n in TEXT_FIELDS]
    + [pa.field("start_s", pa.float64()), pa.field("duration_s", pa.float64()), pa.field("meta", pa.string())]
    + [pa.field("group", pa.int32())]  # rows whose sound is read together; -1: a file of its own
    + [pa.field("key", pa.uint64())]  # a hash of the id: finds repeated ids without ten million strings in memory
)


@dataclass(frozen=True)
class Index:
    """The table, memory-mapped, and what is known of it as a whole."""

    table: pa.Table
    numbers: Mapping[str, np.ndarray]  # of NUMBERS, memory-mapped
    is_unique: bool  # no id stands in it twice
    has_groups: bool

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """All rows: numbers mapped where they lie apart, strings as objects."""
        if name in self.numbers:
            return self.numbers[name]
        if name == "group" and not self.has_groups:
            return np.broadcast_to(np.int32(-1), (len(self),))
        found: np.ndarray = self.table.column(name).to_numpy()
        return found


def write_index(
    lines: Iterable[tuple[int, bytes]], name: str, data: Data, finder: AudioFinder, arrow: Path, need_text: bool
) -> list[Bad]:
    """Rows into columns, beside their place until they are whole; what can't be used is returned. Raises BadData."""
    bad: list[Bad] = []
    arrow.parent.mkdir(parents=True, exist_ok=True)
    beside = arrow.with_name(f".{arrow.name}.{os.getpid()}")
    reader = _Reader(data, finder, need_text)
    numbers = {n: _beside(arrow, f"{n}.{os.getpid()}") for n in NUMBERS}
    files = {n: path.open("wb") for n, path in numbers.items()}
    try:
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            pending: list[tuple[Any, ...]] = []

            def flush() -> None:
                columns = [pa.array(c, field.type) for c, field in zip(zip(*pending, strict=True), SCHEMA, strict=True)]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
                for n, kind in NUMBERS.items():
                    at = SCHEMA.get_field_index(n)
                    files[n].write(np.array([row[at] for row in pending], kind).tobytes())
                pending.clear()

            for number, line in lines:
                try:
                    pending.append(reader.row(line))
                except Unusable as e:
                    bad.append(Bad(e.id or f"{name}:{number}", e.reason))
                if len(pending) >= ROWS_A_BATCH:
                    flush()
            if pending:
                flush()
        for f in files.values():
            f.close()
        for n, path in numbers.items():
            os.replace(path, _beside(arrow, n))
        os.replace(beside, arrow)  # the last: where it is, the others are
    finally:
        for f in files.values():
            f.close()
        for path in (*numbers.values(), beside):
            path.unlink(missing_ok=True)
    return bad


def open_index(arrow: Path, is_unique: bool) -> Index:
    """All of it stays on the disk until it is looked at."""
    table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
    empty = {n: np.zeros(0, kind) for n, kind in NUMBERS.items()}
    mapped = {n: np.memmap(_beside(arrow, n), kind, "r") for n, kind in NUMBERS.items()} if len(table) else empty
    highest = pc.max(table.column("group")).as_py()
    return Index(table, mapped, is_unique, highest is not None and highest >= 0)


def ids_are_unique(arrow: Path) -> bool:
    """Asked once, when it is made: a sort of all keys."""
    path = _beside(arrow, "key")
    keys = np.sort(np.fromfile(path, NUMBERS["key"])) if path.stat().st_size else np.zeros(0)
    return not bool((keys[1:] == keys[:-1]).any())


def _beside(arrow: Path, name: str) -> Path:
    return arrow.with_suffix(f".{name}")


class Unusable(Exception):
    """A row, and why."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(reason)
        self.id, self.reason = id, reason


class _Reader:
    """A manifest's line → a row of SCHEMA's columns, in their order."""

    def __init__(self, data: Data, finder: AudioFinder, need_text: bool) -> None:
        self.theirs = {ours: data.fields.get(ours, ours) for ours in (*TEXT_FIELDS, "start_s", "duration_s")}
        self.known = {*self.theirs.values(), "group", "meta"}
        self.min_s, self.max_s = data.min_s, data.max_s
        self.finder, self.need_text = finder, need_text

    def row(self, line: bytes) -> tuple[Any, ...]:
        """Raises Unusable with the row's reason, BadData where its audio fits two files."""
        try:
            raw = json.loads(line)
        except ValueError as e:
            raise Unusable("", f"not JSON ({e})") from None
        if not isinstance(raw, dict):
            raise Unusable("", "not a JSON object")
        if any(sign in line for sign in MAYBE_HALF) and not is_whole(raw):
            raise Unusable("", HALF)
        get, theirs = raw.get, self.theirs
        id = str(get(theirs["id"]) or "")
        if not id:
            raise Unusable("", f"has no {theirs['id']!r}: name the field in train.data.fields")
        text = get(theirs["text"])
        if self.need_text and (not isinstance(text, str) or not text.strip()):
            raise Unusable(id, "empty transcript" if theirs["text"] in raw else f"has no {theirs['text']!r}")
        audio = get(theirs["audio"])
        if not isinstance(audio, str) or not audio:
            raise Unusable(id, f"has no {theirs['audio']!r}")
        try:
            found = self.finder.find(audio)
            start_s = _seconds(get(theirs["start_s"]), theirs["start_s"])
            duration_s = _seconds(get(theirs["duration_s"]), theirs["duration_s"])
            if duration_s is None:
                duration_s = header(found).duration_s - (start_s or 0.0)
        except (AudioError, ValueError) as e:
            raise Unusable(id, str(e)) from None
        if duration_s < self.min_s:
            raise Unusable(id, f"{duration_s:.2f} s is shorter than data.min_s ({self.min_s:g} s)")
        if duration_s > self.max_s:
            raise Unusable(id, f"{duration_s:.2f} s is longer than data.max_s ({self.max_s:g} s)")
        group = get("group", -1)
        return (
            id,
            found,
            text if isinstance(text, str) else "",
            str(get(theirs["speaker"]) or ""),
            str(get(theirs["language"]) or ""),
            str(get(theirs["source"]) or ""),
            str(get(theirs["sha256"]) or ""),
            start_s or 0.0,
            duration_s,
            self._meta(raw),
            group if type(group) is int and 0 <= group < 1 << 31 else -1,
            int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little"),
        )

    def _meta(self, raw: Mapping[str, Any]) -> str:
        """All other fields, beside those of `meta`."""
        rest = {k: v for k, v in raw.items() if k not in self.known}
        own = raw.get("meta")
        if isinstance(own, Mapping):
            rest = {**own, **rest}
        elif own is not None and "meta" not in self.theirs.values():
            rest["meta"] = own
        return json.dumps(rest, ensure_ascii=False) if rest else ""


def _seconds(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e7:
        raise ValueError(f"{field} is {value!r}, not seconds")
    return float(value)
