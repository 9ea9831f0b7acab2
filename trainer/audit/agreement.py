"""What a first model heard, beside what is written: errors by words and by characters, an utterance each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.audited import Places, keys_of, text_columns
from trainer.errors import BadData
from trainer.metrics.normalise import Normaliser
from trainer.metrics.wer import count_errors

DISAGREES_WER = 0.9  # both beyond: the winners of children's speech kept WER up to 0.9 or CER up to 0.5
DISAGREES_CER = 0.5


@dataclass(frozen=True)
class Agreement:
    """Rates of one utterance: errors by reference length, so talk over nothing exceeds 1."""

    heard: str
    wer: float
    cer: float

    @property
    def disagrees(self) -> bool:
        return self.wer > DISAGREES_WER and self.cer > DISAGREES_CER


class Heard:
    """Transcripts by id, as columns: millions of them are no dictionary."""

    def __init__(self, tables: Sequence[pa.Table], name: str) -> None:
        whole = pa.concat_tables(tables) if tables else pa.table({"id": [], "text": []})
        self._text = whole.column("text")
        keys = [keys_of(t.column("id").to_pylist()) for t in tables]
        self._places = Places(np.concatenate([np.zeros(0, np.uint64), *keys]))
        if not self._places.are_unique:
            raise BadData(f"an id stands in {name} twice", "name rows of one evaluation, an utterance a line")

    def __len__(self) -> int:
        return len(self._text)

    def of(self, ids: Sequence[str]) -> list[str | None]:
        """What was heard, in order; None where it was not decoded."""
        return [self._text[int(p)].as_py() if p >= 0 else None for p in self._places.of(keys_of(ids))]


def read_heard(path: Path) -> Heard:
    """Rows of `trainer evaluate` or `predict`; what had a reason (no usable audio) was not heard. Raises BadData."""
    if not path.is_file():
        raise BadData(f"there are no rows {path}", "name the rows of an evaluation (….rows.jsonl), or of predict --out")
    tables = []
    for table in text_columns(path, ("id", "text", "reason")):
        if table.column("id").null_count:
            raise BadData(f"{path} holds rows without id", "name rows of trainer evaluate or predict")
        table = table.filter(pc.is_null(table.column("reason")))
        tables.append(table.select(["id", "text"]).filter(pc.is_valid(table.column("text"))))
    return Heard(tables, str(path))


def heard_of(rows: Iterable[Mapping[str, Any]]) -> Heard:
    """The same of rows that are here."""
    usable = [r for r in rows if not r.get("reason")]
    columns = {name: pa.array([r[name] for r in usable], pa.string()) for name in ("id", "text")}
    return Heard([pa.table(columns)], "the rows")


def compare(text: str, heard: str, normaliser: Normaliser) -> Agreement:
    """Both sides normalised as results are."""
    said, got = normaliser.apply(text), normaliser.apply(heard)
    words, letters = count_errors(said.split(), got.split()), count_errors(list(said), list(got))
    return Agreement(heard, words.rate, letters.rate)
