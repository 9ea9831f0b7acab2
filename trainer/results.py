"""What a run directory says of its quality, read back: for the report, the model card and comparisons.

Needs no torch and no model: a laptop reads what was fetched.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    def read_rows(self) -> list[Row]:
        return read_rows(self.rows) if self.rows else []


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


BEFORE = "before training"


def read_results(run: RunDir) -> RunResults:
    """Raises BadData where nothing was measured yet, or where there is no run."""
    reports = run.reports
    dev_rows = reports / "dev.rows.jsonl"  # of the last evaluation alone
    dev = _told(reports / "dev.jsonl", "dev", lambda _: None)
    if dev and dev_rows.exists():
        dev[-1] = Told(**{**vars(dev[-1]), "rows": dev_rows})
    test = _told(
        reports / "test.jsonl", "test", lambda what: _existing(reports / f"test-{what.replace(' ', '-')}.rows.jsonl")
    )
    evaluated = []
    for path in sorted(reports.glob("evaluate-*.json")):
        evaluated += _told(path, path.stem, lambda _, p=path: _existing(p.with_suffix(".rows.jsonl")))  # type: ignore[misc]
    if not (dev or test or evaluated):
        raise BadData(f"{run} has measured nothing yet", "wait for its first evaluation, or name another run")
    return RunResults(run, dev, test, evaluated, read_json(run.summary) or {}, read_json(run.receipt) or {})


def read_rows(path: Path) -> list[Row]:
    """Rows of `evaluate` or `predict`. Raises BadData."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as e:
        raise BadData(f"{path}: {e.strerror}", "name a rows file (….rows.jsonl) of an evaluation") from None
    except ValueError as e:
        raise BadData(f"{path} is not JSON Lines ({e})", "name a rows file (….rows.jsonl) of an evaluation") from None


def sound_name(id: str) -> str:
    """The file under `RunDir.sounds` that holds an utterance."""
    return f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.flac"


def _told(path: Path, name: str, rows_of: Any) -> list[Told]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if not isinstance(value, dict):
            continue
        what = str(value.get("what", ""))
        found.append(
            Told(
                set=name,
                what=what,
                step=value.get("step"),
                metrics=value.get("metrics", {}),
                table=value.get("table", []),
                provenance=value.get("provenance", {}),
                rows=rows_of(what),
            )
        )
    return found


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
