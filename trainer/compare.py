"""Two results as they lie on disk (runs, reports, rows files), found, read and compared: no torch, no model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.rundir import RunDir
from trainer.errors import BadData
from trainer.metrics.normalise import NORMALISERS, normaliser_named
from trainer.metrics.paired import Comparison, Pair, compare_pairs, pairs_of
from trainer.recipe.eval import Eval
from trainer.results import BEFORE, Told, read_results, read_scored, told_in
from trainer.task import Row

RESAMPLES = 2000  # behind each interval
NAMED = "name a run, a report (….json, ….jsonl) or a rows file (….rows.jsonl) of an evaluation"
TOLD = (  # what makes two numbers differ, beside the model; weights and commit are what is compared
    "decode",
    "normaliser",
    "normaliser_sha256",
    "data_sha256",
    "precision",
    "shuffled_audio",
    "weights",
    "run",
    "commit",
)


@dataclass(frozen=True)
class Side:
    """One of the two: its rows, and what was written about how they came to be."""

    name: str
    set: str  # test, dev, or the name of a report
    rows: Sequence[Row]
    provenance: Mapping[str, Any]  # {} where nothing beside the rows says


@dataclass(frozen=True)
class Differing:
    """A line of provenance that is not the same in both, as text; "unknown" where it was not written."""

    what: str
    a: str
    b: str


def comparison_of(
    a: Path | str,
    b: Path | str,
    *,
    set: str | None = None,
    normaliser: str | None = None,
    resamples: int = RESAMPLES,
) -> tuple[Comparison, list[Row], list[Row]]:
    """`trainer.metrics.paired.compare_rows` of two things on disk, with the rows of each.

    Each is a run (`set` picks test, dev or a report's name; its headline's by default), a report of `trainer evaluate`,
    or a rows file. `normaliser`: that of the first where none is named, `basic` where nothing says. Raises BadData.
    """
    one, other = sides_of(a, b, set=set)
    return compare_sides(one, other, normaliser, resamples)[0], list(one.rows), list(other.rows)


def sides_of(a: Path | str, b: Path | str, *, set: str | None = None) -> tuple[Side, Side]:
    """Both, found and read. Raises BadData, also where one's headline is of test and the other's of dev."""
    one, other = side_of(Path(a), set), side_of(Path(b), set)
    if set is None and {one.set, other.set} == {"test", "dev"}:
        raise BadData(
            f"{one.name} was last measured on {one.set}, {other.name} on {other.set}",
            "--set dev compares both on dev; or evaluate both on one manifest, and name the reports",
        )
    return one, other


def compare_sides(
    a: Side, b: Side, normaliser: str | None = None, resamples: int = RESAMPLES
) -> tuple[Comparison, list[Pair]]:
    """The comparison, and the pairs of utterances that it is of. Raises BadData."""
    name = normaliser or a.provenance.get("normaliser") or b.provenance.get("normaliser") or "basic"
    if name not in NORMALISERS:
        raise BadData(f"there is no normaliser {name!r}", f"one of {', '.join(NORMALISERS)}")
    how = Eval.model_validate({"normaliser": name, "every_steps": 1, "bootstrap": resamples})
    pairs = pairs_of(a.rows, b.rows, normaliser_named(name))
    left_out = len(a.rows) - len(pairs), len(b.rows) - len(pairs)
    return compare_pairs(pairs, how, (a.name, b.name), left_out), pairs


def side_of(path: Path, set: str | None = None) -> Side:
    """What this path holds. Raises BadData."""
    if path.is_dir():
        return _of_run(path, set)
    if not path.exists():
        raise BadData(f"{path} is not there", NAMED)
    if path.name.endswith(".rows.jsonl"):
        return Side(path.name, set or _set_of(path), read_scored(path), _beside(path))
    if path.suffix in (".json", ".jsonl"):
        reports = [t for t in told_in(path) if t.what != BEFORE]
        if reports:
            return _of_told(path.name, reports[-1 if path.name.startswith("dev") else 0])
        return Side(path.name, path.stem, read_scored(path), {})  # `predict` writes rows under any name
    raise BadData(f"{path} is neither a run nor a file of rows", NAMED)


def differing(a: Side, b: Side) -> list[Differing]:
    """What their provenance says that is not the same in both: how fair the comparison is."""
    found = []
    for key in TOLD:
        x, y = a.provenance.get(key), b.provenance.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            keys = dict.fromkeys([*x, *y])
            found += [Differing(f"{key}.{k}", _text(x.get(k)), _text(y.get(k))) for k in keys if x.get(k) != y.get(k)]
        elif x != y:
            found.append(Differing(key, _text(x), _text(y)))
    return found


def _of_run(folder: Path, set: str | None) -> Side:
    run = RunDir(folder)
    results = read_results(run)
    if set is None:
        if results.headline is None:
            raise BadData(f"{folder} has no headline yet", "--set names one of its reports")
        return _of_told(folder.resolve().name, results.headline)
    after = [*[t for t in results.test if t.what != BEFORE], *results.dev[-1:], *results.evaluated]
    named = [t for t in after if t.set == set and t.what != BEFORE]
    if not named:
        known = dict.fromkeys(t.set for t in after)
        raise BadData(f"{folder} holds no report on {set!r}", f"it has: {', '.join(known)}")
    return _of_told(folder.resolve().name, named[0])


def _of_told(name: str, told: Told) -> Side:
    if told.rows is None:
        raise BadData(f"{name}: the rows of its report on {told.set} are not there", "fetch them, or evaluate it again")
    return Side(name, told.set, told.read_rows(), told.provenance)


def _beside(rows: Path) -> Mapping[str, Any]:
    """The provenance of a rows file, from the report that names it."""
    stem = rows.name.removesuffix(".rows.jsonl").removesuffix(".before")
    for report in (rows.with_name(f"{stem}.json"), *(rows.with_name(f"{s}.jsonl") for s in ("test", "dev"))):
        for told in told_in(report):
            if told.rows is not None and told.rows.name == rows.name:
                return told.provenance
    return {}


def _set_of(rows: Path) -> str:
    stem = rows.name.removesuffix(".rows.jsonl")
    return stem.split("-")[0] if stem.startswith(("test-", "dev")) else stem


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:12] if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else text
