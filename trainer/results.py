"""What a run directory says of its quality, read back: for the report, the model card and comparisons.

Needs no torch and no model: a laptop reads what was fetched.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote.files import read_json
from remote.rundir import RunDir
from trainer.errors import BadData
from trainer.task import Row


@dataclass(frozen=True)
class Told:
    """One evaluation as it was written down (`trainer.evaluate.as_json`)."""

    set: str  # dev, test, or the name of a file of `trainer evaluate`
    what: str  # before training, greedy, padded to the full window, …
    step: int | None
    metrics: Mapping[str, float]
    table: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]
    rows: Path | None  # its rows, where they are kept

    @property
    def weights(self) -> str:
        """`step 90`, `mean of steps 80, 90`; empty where that is not known."""
        return str(self.provenance.get("weights") or "")

    def read_rows(self) -> list[Row]:
        return read_scored(self.rows) if self.rows else []


@dataclass(frozen=True)
class RunResults:
    """All that a run measured, in the order in which it was measured."""

    run: RunDir
    dev: Sequence[Told]  # an evaluation a line, step 0 first
    test: Sequence[Told]  # before training first, where it was measured
    evaluated: Sequence[Told]  # by hand, the newest last
    summary: Mapping[str, Any]
    receipt: Mapping[str, Any]  # what podctl wrote about its end; {} before

    @property
    def headline(self) -> Told | None:
        """The evaluation whose number is the run's: the first way of decoding test; dev's last where there is none."""
        after = [t for t in self.test if t.what != BEFORE]
        return after[0] if after else (self.dev[-1] if self.dev else None)

    @property
    def before(self) -> Told | None:
        """The same set before training."""
        if any(t.what != BEFORE for t in self.test):
            return next((t for t in self.test if t.what == BEFORE), None)
        return self.dev[0] if self.dev and self.dev[0].step == 0 else None

    def of_weights(self, weights: str) -> "RunResults | None":
        """The same, with a headline that was measured on these weights: of dev that need not be the last evaluation.

        None where they were not measured.
        """
        told = self.headline
        if told is None or not weights:
            return self
        if told.set != "dev":
            return self if told.weights in ("", weights) else None
        mean = told_in(self.run.reports / "dev-mean.json")
        dev = [*self.dev, *(replace(t, set="dev", step=None, what=weights) for t in mean)]
        found = [n for n, t in enumerate(dev) if t.weights in ("", weights)]
        return replace(self, dev=dev[: found[-1] + 1]) if found else None


BEFORE = "before training"


def read_results(run: RunDir) -> RunResults:
    """Raises BadData where nothing was measured yet, or where there is no run."""
    reports = run.reports
    dev, test = told_in(reports / "dev.jsonl"), told_in(reports / "test.jsonl")
    evaluated = [told for path in sorted(reports.glob("evaluate-*.json")) for told in told_in(path)]
    if not (dev or test or evaluated):
        raise BadData(f"{run} has measured nothing yet", "wait for its first evaluation, or name another run")
    return RunResults(run, dev, test, evaluated, read_json(run.summary) or {}, read_json(run.receipt) or {})


def told_in(path: Path) -> list[Told]:
    """The evaluations that a report holds, a line each, with the rows that lie beside it; [] where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # alone: texts may hold U+2028, U+0085
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if isinstance(value, dict) and "metrics" in value:
            found.append(_told(path, value))
    if path.name == "dev.jsonl":  # the rows are of the last evaluation alone
        found[:-1] = [replace(t, rows=None) for t in found[:-1]]
    return found


def read_rows(path: Path) -> list[Row]:
    """Rows of `evaluate` or `predict`. Raises BadData."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except OSError as e:
        raise BadData(f"{path}: {e.strerror}", "name a rows file (….rows.jsonl) of an evaluation") from None
    except ValueError as e:
        raise BadData(f"{path} is not JSON Lines ({e})", "name a rows file (….rows.jsonl) of an evaluation") from None


def read_scored(path: Path) -> list[Row]:
    """Rows that can be scored again: each with id, text and reference. Raises BadData."""
    rows = read_rows(path)
    for n, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("id", "text", "reference")):
            raise BadData(f"{path}, row {n}: no id, text and reference", "name a rows file of `trainer evaluate`")
        wrong = _not_as_ours(row)
        if wrong:
            raise BadData(
                f"{path}, row {n}: its {wrong}", "write it as `trainer evaluate` does, or leave the field out"
            )
    if not rows:
        raise BadData(f"{path} holds no rows", "name a rows file of `trainer evaluate`")
    return rows


def _not_as_ours(row: Row) -> str:
    """Which field of a row can't be read, and what it must be; buckets come as text, a speaker too."""
    buckets = row.get("buckets", {})
    if not isinstance(buckets, dict) or not all(isinstance(v, str) for v in buckets.values()):
        return "buckets are no names with texts"
    if not isinstance(row.get("speaker", ""), str):
        return "speaker is no text"
    seconds = row.get("duration_s", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        return "duration_s is no number of seconds"
    return "" if isinstance(row.get("reason", ""), str) else "reason is no text"


def sound_name(id: str) -> str:
    """The file under `RunDir.sounds` that holds an utterance."""
    return f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.flac"


def _told(path: Path, value: Mapping[str, Any]) -> Told:
    what = str(value.get("what", ""))
    return Told(
        set=path.stem,
        what=what,
        step=value.get("step"),
        metrics=value["metrics"],
        table=value.get("table", []),
        provenance=value.get("provenance", {}),
        rows=_existing(path.with_name(f"{_rows_stem(path.stem, what)}.rows.jsonl")),
    )


def _rows_stem(report: str, what: str) -> str:
    if report == "test":
        return f"test-{what.replace(' ', '-')}"
    return f"{report}.before" if what == BEFORE and report != "dev" else report


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
