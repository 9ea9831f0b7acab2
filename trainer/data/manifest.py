"""From JSON Lines to rows in memory-mapped Arrow columns: ten million utterances open in a blink and cost no memory.

A manifest is read once; its index lies in the cache under a key of its path, size, time and how it was read. What
can't be used is named with its reason, never dropped in silence.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from remote.files import read_json, write_json
from trainer.data import hub
from trainer.data.audio import file_of, header
from trainer.data.plan import Part
from trainer.errors import AudioError, BadData
from trainer.recipe.data import Data
from trainer.recipe.source import Source, source_name
from trainer.task import Bad, Example

VERSION = 2  # of the index: another one is built anew
ROWS_A_BATCH = 20_000
TEXT_FIELDS = ("id", "audio", "text", "speaker", "language", "source", "sha256")
SCHEMA = pa.schema(
    [pa.field(n, pa.string()) for n in TEXT_FIELDS]
    + [pa.field("start_s", pa.float64()), pa.field("duration_s", pa.float64()), pa.field("meta", pa.string())]
    + [pa.field("group", pa.int32())]  # rows whose sound is read together; -1: a file of its own
    + [pa.field("key", pa.uint64())]  # a hash of the id: finds repeated ids without ten million strings in memory
)


@dataclass(frozen=True)
class Manifest:
    """Usable utterances of one or more manifests, by position; `sha256` is of the manifests' bytes."""

    tables: Sequence[pa.Table]
    rows: np.ndarray  # int64, position → row over all tables
    audio_rows: np.ndarray  # the same, or shuffled: whose audio a position has
    sha256: str
    bad: Sequence[Bad]
    source_of: np.ndarray | None = None  # int16, position → which source of several it is of

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Example:
        row = self._row(int(self.rows[position]))
        sound = row if self.rows is self.audio_rows else self._row(int(self.audio_rows[position]))
        return Example(
            id=row["id"],
            audio=sound["audio"],
            start_s=sound["start_s"],
            duration_s=sound["duration_s"],
            text=row["text"],
            speaker=row["speaker"],
            language=row["language"],
            source=row["source"],
            meta=json.loads(row["meta"]) if row["meta"] else {},
        )

    def column(self, name: str) -> np.ndarray:
        """One column of all usable rows: seconds as float64 (N,), strings as objects."""
        columns = [t.column(name).to_numpy() for t in self.tables]
        rows = self.audio_rows if name in ("audio", "start_s", "duration_s") else self.rows
        whole: np.ndarray = np.concatenate(columns)[rows] if columns else np.zeros(0)
        return whole

    @property
    def hours(self) -> float:
        return float(self.column("duration_s").sum()) / 3600 if len(self) else 0.0

    def subset(self, positions: np.ndarray) -> "Manifest":
        """These positions, in this order, as a manifest of their own."""
        same = self.rows is self.audio_rows
        rows = self.rows[positions]
        of = None if self.source_of is None else self.source_of[positions]
        return Manifest(self.tables, rows, rows if same else self.audio_rows[positions], self.sha256, self.bad, of)

    def parts(self, sources: Sequence[Source]) -> list[Part]:
        """Each source's positions, weight and groups; nothing where all are heard once and drawn one by one."""
        groups = self.column("group")
        if (self.source_of is None or all(s.weight == 1 for s in sources)) and (groups < 0).all():
            return []
        found = []
        for i, source in enumerate(sources if self.source_of is not None else sources[:1]):
            mine = np.arange(len(self)) if self.source_of is None else np.flatnonzero(self.source_of == i)
            found.append(Part(mine, source.weight, groups[mine] if (groups[mine] >= 0).any() else None))
        return found

    def sources_at(self, positions: np.ndarray) -> list[int]:
        """Which source each of these positions is of."""
        return [0] * len(positions) if self.source_of is None else self.source_of[positions].tolist()

    def shuffled_audio(self, seed: int) -> "Manifest":
        """A control: every utterance gets another's audio, none its own."""
        order = np.random.default_rng(seed).permutation(len(self))
        audio = np.empty_like(self.rows)
        audio[order] = self.rows[np.roll(order, 1)]  # one cycle, so nobody meets himself
        return Manifest(self.tables, self.rows, audio, self.sha256, self.bad, self.source_of)

    def _row(self, row: int) -> dict[str, Any]:
        for table in self.tables:
            if row < table.num_rows:
                return {name: table.column(name)[row].as_py() for name in SCHEMA.names}
            row -= table.num_rows
        raise IndexError(row)


def open_manifests(
    paths: Sequence[Path], data: Data, root: Path, cache: Path, *, need_text: bool = True, limit: int | None = None
) -> Manifest:
    """The usable rows of these manifests; the rest is in `.bad`.

    Audio folders are relative to `root`. Raises BadData where a manifest is absent, nothing in it can be used, more
    than `data.max_bad_share` of it can't, or an audio path fits two files.
    """
    tables, bad, total = [], [], 0
    digest = hashlib.sha256()
    for path in paths:
        index = _index(path, data, root, cache, need_text)
        tables.append(index.table)
        bad += index.bad
        total += index.table.num_rows + len(index.bad)
        digest.update(index.sha256.encode())
    return _checked(tables, bad, total, digest.hexdigest(), ", ".join(str(p) for p in paths), data, limit)


def open_hub(source: Source, data: Data, cache: Path, *, need_text: bool = True) -> Manifest:
    """The usable rows of a set of the Hub; what is indexed once is not read again. Raises BadData as open_manifests."""
    files = hub.files_of(source)
    how = [VERSION, hub.identity(files), source.columns, data.min_s, data.max_s, need_text]
    key = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:24]
    arrow, side = cache / "manifests" / f"{key}.arrow", cache / "manifests" / f"{key}.json"
    known = read_json(side)
    if known is None or not arrow.exists():
        lines = ((n, json.dumps(row).encode()) for n, row in enumerate(hub.hub_rows(source, files)))
        ours = data.model_copy(update={"fields": {}})
        bad = _write(lines, str(source.hub), ours, AudioFinder([]), arrow, need_text)
        known = {"hub": files, "sha256": key, "bad": [{"id": b.id, "reason": b.reason} for b in bad]}
        write_json(side, known)
    table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
    found = [Bad(**b) for b in known["bad"]]
    return _checked([table], found, table.num_rows + len(found), known["sha256"], source_name(source), data, None)


def _checked(
    tables: list[pa.Table], bad: list[Bad], total: int, sha256: str, names: str, data: Data, limit: int | None
) -> Manifest:
    rows, repeated = _first_of_each_id(tables)
    bad += repeated
    if not len(rows):
        raise BadData(f"{names}: no utterance can be used{_reasons(bad)}", "look at the reasons, mend the manifest")
    if len(bad) > data.max_bad_share * total:
        raise BadData(
            f"{names}: {len(bad)} of {total} utterances can't be used ({100 * len(bad) / total:.1f} %), "
            f"data.max_bad_share allows {100 * data.max_bad_share:g} %{_reasons(bad)}",
            "mend them, or raise train.data.max_bad_share if that is what the data is like",
        )
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:limit])
    return Manifest(tables, rows, rows, sha256, bad)


def split_off(manifest: Manifest, among: int, n: int, seed: int) -> tuple[Manifest, Manifest]:
    """(the rest, `n` of the first `among` utterances), chosen by a hash of seed and id, so that adding rows moves few.

    Raises BadData where there are too few.
    """
    if n >= among:
        raise BadData(f"data.dev_from_train asks for {n} utterances, the first manifest has {among}", "ask for fewer")
    keys = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in manifest.column("id")[:among]]
    chosen = np.array(sorted(sorted(range(among), key=keys.__getitem__)[:n]))
    rest = np.setdiff1d(np.arange(len(manifest)), chosen)
    return manifest.subset(rest), manifest.subset(chosen)


class AudioFinder:
    """Where a manifest's audio paths lie: each folder is tried with the whole path, without its first part, by name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._names: dict[str, frozenset[str]] = {}

    def find(self, path: str) -> str:
        """The one file. Raises AudioError where there is none, BadData naming both where there are two.

        `FILE.parquet#COLUMN/ROW` is a recording inside a file, which is looked for in the same way.
        """
        if path.startswith("hf://"):
            return path
        inside = file_of(path)
        if inside != path:
            return self.find(inside) + path[len(inside) :]
        if os.path.isabs(path):
            if not self._is_there(path):
                raise AudioError(f"{path} does not exist")
            return path
        parts = path.split("/")
        for tail in dict.fromkeys(("/".join(parts), "/".join(parts[1:]) or path, parts[-1])):
            hits = [hit for f in self.folders if self._is_there(hit := os.path.join(f, tail))]
            if len({os.path.realpath(h) for h in hits}) > 1:
                raise BadData(
                    f"{path} fits two files: {hits[0]} and {hits[1]}", "name fewer folders in data.audio_dirs"
                )
            if hits:
                return hits[0]
        raise AudioError(f"{path} is in none of {', '.join(map(str, self.folders))}")

    def _is_there(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:  # one listing a folder, not one look-up a file
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._names[folder] = frozenset()
        return name in self._names[folder]


def joined(manifests: Sequence[Manifest]) -> Manifest:
    """Several manifests as one that knows which source each utterance is of; the first of equal ids stays."""
    tables = [t for m in manifests for t in m.tables]
    offsets = np.cumsum([0, *(sum(t.num_rows for t in m.tables) for m in manifests)])[:-1]
    rows = np.concatenate([m.rows + offset for m, offset in zip(manifests, offsets, strict=True)])
    source_of = np.repeat(np.arange(len(manifests), dtype=np.int16), [len(m) for m in manifests])
    digest = hashlib.sha256("".join(m.sha256 for m in manifests).encode()).hexdigest()
    bad = [b for m in manifests for b in m.bad]
    whole = Manifest(tables, rows, rows, digest, bad, source_of)
    first = np.unique(whole.column("key"), return_index=True)[1]
    if len(first) < len(rows):
        again = np.setdiff1d(np.arange(len(rows)), first)
        bad += [Bad(whole[int(i)].id, "this id stands in two sources; the first one is used") for i in again]
        whole = whole.subset(np.sort(first))
    return whole


@dataclass(frozen=True)
class _Index:
    table: pa.Table
    bad: list[Bad]
    sha256: str


def _index(path: Path, data: Data, root: Path, cache: Path, need_text: bool) -> _Index:
    try:
        stat = path.stat()
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder, not a manifest")
    except OSError as e:
        raise BadData(f"{path}: {e.strerror}", "check train.data; relative paths lie in the volume's data/") from None
    how = [VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, data.fields, data.audio_dirs, str(root)]
    key = hashlib.sha256(json.dumps([*how, data.min_s, data.max_s, need_text]).encode()).hexdigest()[:24]
    arrow, side = cache / "manifests" / f"{key}.arrow", cache / "manifests" / f"{key}.json"
    known = read_json(side)
    if known is None or not arrow.exists():
        known = _build(path, data, root, arrow, need_text)
        write_json(side, known)
    table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()  # stays on disk
    return _Index(table, [Bad(**b) for b in known["bad"]], known["sha256"])


def _build(path: Path, data: Data, root: Path, arrow: Path, need_text: bool) -> dict[str, Any]:
    folders = [root / d for d in data.audio_dirs] or [path.parent]
    for folder in folders:
        if not folder.is_dir():
            raise BadData(f"data.audio_dirs: {folder} is not a folder", "relative folders lie in the volume's data/")
    digest = hashlib.sha256()
    bad = _write(_lines(path, digest), path.name, data, AudioFinder(folders), arrow, need_text)
    return {"manifest": str(path), "sha256": digest.hexdigest(), "bad": [{"id": b.id, "reason": b.reason} for b in bad]}


def _write(
    lines: Iterable[tuple[int, bytes]], name: str, data: Data, finder: AudioFinder, arrow: Path, need_text: bool
) -> list[Bad]:
    """Rows into Arrow columns; what can't be used is returned."""
    bad: list[Bad] = []
    arrow.parent.mkdir(parents=True, exist_ok=True)
    beside = arrow.with_name(f".{arrow.name}.{os.getpid()}")
    with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        pending: list[dict[str, Any]] = []
        for number, line in lines:
            where = f"{name}:{number}"
            try:
                pending.append(_row(line, where, data, finder, need_text))
            except _Unusable as e:
                bad.append(Bad(e.id or where, e.reason))
            if len(pending) >= ROWS_A_BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, SCHEMA))
                pending = []
        if pending:
            writer.write_batch(pa.RecordBatch.from_pylist(pending, SCHEMA))
    os.replace(beside, arrow)
    return bad


def _lines(path: Path, digest: Any) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            digest.update(line)
            if line.strip():
                yield number, line


class _Unusable(Exception):
    def __init__(self, id: str, reason: str) -> None:
        super().__init__(reason)
        self.id, self.reason = id, reason


def _row(line: bytes, where: str, data: Data, finder: AudioFinder, need_text: bool) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except ValueError as e:
        raise _Unusable("", f"not JSON ({e})") from None
    if not isinstance(raw, dict):
        raise _Unusable("", "not a JSON object")
    theirs = {ours: data.fields.get(ours, ours) for ours in (*TEXT_FIELDS, "start_s", "duration_s")}
    id = str(raw.get(theirs["id"]) or "")
    if not id:
        raise _Unusable("", f"has no {theirs['id']!r}: name the field in train.data.fields")
    text = raw.get(theirs["text"])
    if need_text and (not isinstance(text, str) or not text.strip()):
        raise _Unusable(id, "empty transcript" if theirs["text"] in raw else f"has no {theirs['text']!r}")
    audio = raw.get(theirs["audio"])
    if not isinstance(audio, str) or not audio:
        raise _Unusable(id, f"has no {theirs['audio']!r}")
    try:
        found = finder.find(audio)
        start_s = _seconds(raw, theirs["start_s"], 0.0)
        duration_s = _seconds(raw, theirs["duration_s"], None)
        if duration_s is None:
            duration_s = header(found).duration_s - start_s
    except (AudioError, ValueError) as e:
        raise _Unusable(id, str(e)) from None
    if duration_s < data.min_s:
        raise _Unusable(id, f"{duration_s:.2f} s is shorter than data.min_s ({data.min_s:g} s)")
    if duration_s > data.max_s:
        raise _Unusable(id, f"{duration_s:.2f} s is longer than data.max_s ({data.max_s:g} s)")
    group = raw.pop("group", -1)
    rest = {k: v for k, v in raw.items() if k not in theirs.values()}
    meta = {**(rest.pop("meta", None) or {}), **rest} if isinstance(rest.get("meta", {}), Mapping) else rest
    row = {name: str(raw.get(theirs[name]) or "") for name in TEXT_FIELDS}
    return {
        **row,
        "id": id,
        "audio": found,
        "text": text if isinstance(text, str) else "",
        "start_s": start_s,
        "duration_s": duration_s,
        "meta": json.dumps(meta, ensure_ascii=False) if meta else "",
        "group": group if type(group) is int and 0 <= group < 1 << 31 else -1,
        "key": int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big"),
    }


def _seconds(raw: Mapping[str, Any], field: str, default: float | None) -> Any:
    value = raw.get(field, default)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e7:
        raise ValueError(f"{field} is {value!r}, not seconds")
    return float(value)


def _first_of_each_id(tables: Sequence[pa.Table]) -> tuple[np.ndarray, list[Bad]]:
    keys = np.concatenate([t.column("key").to_numpy() for t in tables]) if tables else np.zeros(0, np.uint64)
    _, first = np.unique(keys, return_index=True)
    rows = np.sort(first).astype(np.int64)
    repeated = np.setdiff1d(np.arange(len(keys)), rows)
    if not len(repeated):
        return rows, []
    ids = pa.concat_tables(tables).column("id")
    reason = "this id stands in the manifests twice; the first one is used"
    return rows, [Bad(ids[int(i)].as_py(), reason) for i in repeated]


def _reasons(bad: Sequence[Bad]) -> str:
    shown = "".join(f"\n  {b.id}: {b.reason}" for b in bad[:3])
    return shown + (f"\n  … and {len(bad) - 3} more" if len(bad) > 3 else "")
