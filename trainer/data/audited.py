"""What `trainer audit` measured, read back as columns: ten million utterances without ten million objects."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from remote.files import read_json
from trainer.errors import BadData

MEASURES = ("wer", "cer", "align", "chars", "chars_per_s", "silence", "clipping", "snr_db")  # that a rule may go by
BLOCK_BYTES = 32 << 20  # of JSON that is parsed at once


@dataclass(frozen=True)
class Audit:
    """One audit, an entry an utterance in the file's order."""

    path: Path
    sha256: str  # of its rows
    facts: Mapping[str, Any]  # its summary and provenance
    keys: np.ndarray  # uint64 (N,): of the ids, as an index has them
    measures: Mapping[str, np.ndarray]  # float64 (N,), NaN where it was not measured
    flags: Mapping[str, np.ndarray]  # bool (N,)


def side_of(path: Path) -> Path:
    """Where an audit's summary and provenance lie: NAME.audit.json beside NAME.audit.jsonl."""
    return path.with_suffix(".json")


def read_facts(path: Path, manifest: str) -> Mapping[str, Any]:
    """The summary of an audit. Raises BadData where it is absent, or not of these rows."""
    again = f"trainer audit {manifest} writes both"
    if not path.is_file():
        raise BadData(f"there is no audit {path}", again)
    facts = read_json(side_of(path))
    if not isinstance(facts, dict) or "provenance" not in facts:
        raise BadData(f"{side_of(path)} is absent or not whole, so nothing says what {path.name} is about", again)
    return facts


def read_audit(path: Path, manifest: str, measures: Sequence[str], flags: Sequence[str]) -> Audit:
    """These measures and flags of every utterance. Raises BadData where the file is not what its summary is about."""
    facts = read_facts(path, manifest)
    digest = hashlib.sha256()
    parts = [_columns(block, measures, flags) for block in _blocks(path, digest)]
    if digest.hexdigest() != facts.get("audit_sha256"):
        raise BadData(
            f"{path} is not the file that {side_of(path).name} is about", f"trainer audit {manifest} writes both"
        )

    def joined(kind: Any, of: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *of]).astype(kind, copy=False)

    return Audit(
        path,
        digest.hexdigest(),
        facts,
        joined(np.uint64, [k for k, _, _ in parts]),
        {m: joined(np.float64, [found[m] for _, found, _ in parts]) for m in measures},
        {f: joined(bool, [found[f] for _, _, found in parts]) for f in flags},
    )


def text_columns(path: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    """Text fields of a JSON Lines file, some rows at a time; null where a row lacks one. Raises BadData."""
    for block in _blocks(path, hashlib.sha256()):
        yield _parsed(block, pa.schema([pa.field(n, pa.string()) for n in names]), path)


def keys_of(ids: Sequence[str]) -> np.ndarray:
    """uint64 (N,): as trainer.data.index hashes an id."""
    found = (int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "little") for i in ids)
    return np.fromiter(found, np.uint64, len(ids))


class Places:
    """Where in a list of keys each wanted one stands."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def of(self, wanted: np.ndarray) -> np.ndarray:
        """int64 (n,), -1 where it stands nowhere."""
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)

    @property
    def are_unique(self) -> bool:
        return not bool((self._sorted[1:] == self._sorted[:-1]).any())


def _blocks(path: Path, digest: Any) -> Iterator[bytes]:
    """Whole lines, some MB at a time."""
    with path.open("rb") as f:
        while block := _block(f):
            digest.update(block)
            if block.strip():
                yield block


def _block(f: IO[bytes]) -> bytes:
    block = f.read(BLOCK_BYTES)
    return block + f.readline() if block and not block.endswith(b"\n") else block


def _parsed(block: bytes, schema: Any, path: Path) -> pa.Table:
    how = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        return pj.read_json(pa.BufferReader(block), pj.ReadOptions(block_size=2 * BLOCK_BYTES), how)
    except pa.ArrowInvalid as e:
        raise BadData(f"{path} is not what it should be ({str(e).splitlines()[0]})", "write it anew") from None


def _columns(
    block: bytes, measures: Sequence[str], flags: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    fields = [pa.field("id", pa.string()), pa.field("flags", pa.list_(pa.string()))]
    table = _parsed(block, pa.schema([*fields, *(pa.field(m, pa.float64()) for m in measures)]), Path("the audit"))
    told = table.column("flags").combine_chunks()
    values, rows = pc.list_flatten(told), pc.list_parent_indices(told).to_numpy()
    found = {}
    for flag in flags:
        found[flag] = np.zeros(len(table), bool)
        found[flag][rows[pc.fill_null(pc.equal(values, flag), False).to_numpy(zero_copy_only=False)]] = True
    numbers = {m: table.column(m).to_numpy().astype(np.float64) for m in measures}
    return keys_of(table.column("id").to_pylist()), numbers, found
