"""From JSON Lines to rows in memory-mapped Arrow columns: ten million utterances open in a blink and cost no memory.

A manifest is read once; its index lies in the cache under a key of its path, size, time and how it was read. What
can't be used is named with its reason, never dropped in silence.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from remote.files import read_json, write_json
from trainer.data import hub
from trainer.data.finder import AudioFinder
from trainer.data.index import SCHEMA, VERSION, Index, ids_are_unique, open_index, write_index
from trainer.data.plan import Part
from trainer.errors import BadData
from trainer.recipe.data import Data
from trainer.recipe.source import Source, source_name
from trainer.task import Bad, Example

REPEATED = "this id stands in the manifests twice; the first one is used"


@dataclass(frozen=True)
class Manifest:
    """Usable utterances of one or more manifests, by position; `sha256` is of the manifests' bytes."""

    tables: Sequence[Index]
    rows: np.ndarray  # position → row over all tables
    audio_rows: np.ndarray  # the same, or shuffled: whose audio a position has
    sha256: str
    bad: Sequence[Bad]
    source_of: np.ndarray | None = None  # int16, position → which source of several it is of
    is_whole: bool = False  # one table, every row, in its order: columns are taken as they lie

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
        columns = [t.column(name) for t in self.tables]
        if self.is_whole:
            return columns[0]
        rows = self.audio_rows if name in ("audio", "start_s", "duration_s") else self.rows
        whole: np.ndarray = np.concatenate(columns)[rows] if columns else np.zeros(0)
        return whole

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A text column as numbers (N,) and what they stand for: ten million names in forty megabytes."""
        whole = pa.concat_tables([t.table.select([name]) for t in self.tables]).column(name)
        coded = whole.dictionary_encode().unify_dictionaries()
        if not coded.num_chunks:
            return np.zeros(0, np.int32), []
        values = coded.chunk(0).dictionary.to_pylist()
        codes = np.concatenate([c.indices.to_numpy() for c in coded.chunks])
        return codes if self.is_whole else codes[self.rows], values

    @property
    def audio_s(self) -> float:
        return float(self.column("duration_s").sum()) if len(self) else 0.0

    @property
    def hours(self) -> float:
        return self.audio_s / 3600

    def subset(self, positions: np.ndarray) -> "Manifest":
        """These positions, in this order, as a manifest of their own."""
        same = self.rows is self.audio_rows
        rows = self.rows[positions]
        of = None if self.source_of is None else self.source_of[positions]
        return Manifest(self.tables, rows, rows if same else self.audio_rows[positions], self.sha256, self.bad, of)

    def parts(self, sources: Sequence[Source]) -> list[Part]:
        """Each source's positions, weight and groups; nothing where all are heard once and drawn one by one."""
        is_plain = self.source_of is None or all(s.weight == 1 for s in sources)
        if is_plain and not any(t.has_groups for t in self.tables):
            return []
        groups = self.column("group")
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
            if row < len(table):
                return {name: table.table.column(name)[row].as_py() for name in SCHEMA.names}
            row -= len(table)
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
        total += len(index.table) + len(index.bad)
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
        bad = write_index(lines, str(source.hub), ours, AudioFinder([]), arrow, need_text)
        known = {"hub": files, **_facts(arrow, bad, key)}
        write_json(side, known)
    it = _known(arrow, known)
    return _checked([it.table], it.bad, len(it.table) + len(it.bad), it.sha256, source_name(source), data, None)


def _checked(
    tables: list[Index], bad: list[Bad], total: int, sha256: str, names: str, data: Data, limit: int | None
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
    is_whole = len(tables) == 1 and len(rows) == len(tables[0])
    return Manifest(tables, rows, rows, sha256, bad, is_whole=is_whole)


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


def joined(manifests: Sequence[Manifest]) -> Manifest:
    """Several manifests as one that knows which source each utterance is of; the first of equal ids stays."""
    tables = [t for m in manifests for t in m.tables]
    offsets = np.cumsum([0, *(sum(len(t) for t in m.tables) for m in manifests)])[:-1]
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
class _Known:
    table: Index
    bad: list[Bad]
    sha256: str


def _index(path: Path, data: Data, root: Path, cache: Path, need_text: bool) -> _Known:
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
    return _known(arrow, known)


def _known(arrow: Path, known: Mapping[str, Any]) -> _Known:
    return _Known(open_index(arrow, known["is_unique"]), [Bad(**b) for b in known["bad"]], known["sha256"])


def _facts(arrow: Path, bad: Sequence[Bad], sha256: str) -> dict[str, Any]:
    """What is kept beside an index."""
    told = [{"id": b.id, "reason": b.reason} for b in bad]
    return {"sha256": sha256, "is_unique": ids_are_unique(arrow), "bad": told}


def _build(path: Path, data: Data, root: Path, arrow: Path, need_text: bool) -> dict[str, Any]:
    folders = [root / d for d in data.audio_dirs] or [path.parent]
    for folder in folders:
        if not folder.is_dir():
            raise BadData(f"data.audio_dirs: {folder} is not a folder", "relative folders lie in the volume's data/")
    digest = hashlib.sha256()
    bad = write_index(_lines(path, digest), path.name, data, AudioFinder(folders), arrow, need_text)
    return {"manifest": str(path), **_facts(arrow, bad, digest.hexdigest())}


def _lines(path: Path, digest: Any) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            digest.update(line)
            if line.strip():
                yield number, line


def _first_of_each_id(tables: Sequence[Index]) -> tuple[np.ndarray, list[Bad]]:
    n = sum(map(len, tables))
    if len(tables) == 1 and tables[0].is_unique:
        return np.arange(n, dtype=np.int32 if n < 1 << 31 else np.int64), []
    keys = np.concatenate([t.column("key") for t in tables]) if tables else np.zeros(0, np.uint64)
    _, first = np.unique(keys, return_index=True)
    rows = np.sort(first).astype(np.int64)
    repeated = np.setdiff1d(np.arange(len(keys)), rows)
    if not len(repeated):
        return rows, []
    ids = pa.concat_tables([t.table for t in tables]).column("id")
    return rows, [Bad(ids[int(i)].as_py(), REPEATED) for i in repeated]


def _reasons(bad: Sequence[Bad]) -> str:
    shown = "".join(f"\n  {b.id}: {b.reason}" for b in bad[:3])
    return shown + (f"\n  … and {len(bad) - 3} more" if len(bad) > 3 else "")
