"""What an evaluation was worth, said and kept: a table or JSON on stdout, report and rows in a folder."""

import errno
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from remote.files import write_atomic
from trainer.errors import BadData
from trainer.recipe.eval import Eval
from trainer.results import BEFORE
from trainer.tables import report_json, speed_line, table_lines, worst_lines
from trainer.task import Report, Row
from trainer.worst import worst_rows

SHOWN = 5  # of the worst utterances


@dataclass(frozen=True)
class Evaluated:
    """One set, decoded in one way, by one model."""

    what: str  # before training, or the way of decoding
    report: Report
    provenance: Mapping[str, Any]  # of the run or model; the report has its own beside
    rows: Sequence[Row] | None  # None where only its numbers are known
    audio_s: float
    wall_s: float | None  # None where it was not decoded for this
    more: Mapping[str, Any] = field(default_factory=dict)  # what else its line says

    def as_line(self) -> str:
        """The line of a report, as reports/test.jsonl has them."""
        speed: dict[str, Any] = {"audio_s": round(self.audio_s, 3)}
        if self.wall_s is not None:
            speed |= {"wall_s": round(self.wall_s, 6), "rtfx": round(self.audio_s / max(self.wall_s, 1e-9), 3)}
        return report_json(self.report, self.provenance, what=self.what, **self.more, **speed)


def lines_of(title: str, found: Sequence[Evaluated], how: Eval) -> list[str]:
    """For people: a table whose first line is the model before training, speed, and the worst utterances."""
    last = found[-1]
    before = next((e for e in found if e.what == BEFORE), None)
    lines = [title, *table_lines(last.report, before.report if before else None)]
    if last.wall_s is not None:
        lines.append(speed_line(last.audio_s, last.wall_s))
    return lines + worst_of(last.rows or (), how)


def worst_of(rows: Sequence[Row], how: Eval) -> list[str]:
    """The worst of all, five at most, word by word; nothing where nothing is wrong."""
    worst = worst_rows(rows, how)[:SHOWN]
    return ["worst:", *worst_lines(worst, how)] if worst else []


def fresh_report(folder: Path | None) -> Path | None:
    """A name in this folder that no report has yet: evaluate-TIME.json, or …_2 behind it. None where there is none."""
    if folder is None:
        return None
    stem = f"evaluate-{time.strftime('%y%m%d-%H%M%S', time.gmtime())}"
    names = (stem if n == 1 else f"{stem}_{n}" for n in count(1))
    return next(p for p in (folder / f"{name}.json" for name in names) if not p.exists())


def keep(found: Sequence[Evaluated], path: Path) -> None:
    """A report, a line each, with rows beside it; the report last, so that its rows are there."""
    for e in found:
        if e.rows is not None:
            write_rows(path.with_suffix(f"{'.before' if e.what == BEFORE else ''}.rows.jsonl"), e.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(e.as_line() + "\n" for e in found).encode())


def need_place(path: Path) -> None:
    """A file can be written there. Raises BadData, before hours are spent on what goes into it."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise BadData(f"{path} can't be written: {e.strerror}", "name another place with --out") from None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Every row of an evaluation, so that it can be scored again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())
