"""Saved rows scored again: by another normaliser, into other buckets. No model, no GPU, no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote.files import write_atomic
from trainer.compare import side_of
from trainer.errors import BadRecipe
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.eval import Eval
from trainer.recipe.load import parse_recipe, with_sets
from trainer.reporting import need_place, worst_of
from trainer.tables import report_json, table_lines
from trainer.task import DURATIONS_S, Example, Report, Row


@dataclass(frozen=True)
class Rescored:
    """A rows file, scored again: for people, for programs, and where that was written, if anywhere."""

    lines: Sequence[str]
    json_line: str
    kept: Path | None


def rescore(files: Sequence[Path], sets: Sequence[str], out: Path | None) -> Iterator[Rescored]:
    """`trainer evaluate --rows`: by the normaliser each was measured with, unless a setting names another.

    Reports go to the folder `out`, named by rows file and normaliser. Raises BadData, BadRecipe.
    """
    chosen = any(s.removeprefix("train.").startswith("eval.buckets=") for s in sets)
    if out is not None:
        _one_each(files, out)
        need_place(out / "report.json")
    for path in files:
        side = side_of(path)
        how = eval_of(sets, str(side.provenance.get("normaliser") or "basic"))
        report, rows = score_again(side.rows, how, chosen=chosen)
        line = report_json(report, side.provenance, what="scored again", rows=str(path))
        lines = [f"{path}, normaliser {how.normaliser}", *table_lines(report), *worst_of(rows, how)]
        kept = None
        if out is not None:
            kept = out / f"{_stem(path)}.{how.normaliser}.json"
            write_atomic(kept, (line + "\n").encode())
        yield Rescored(lines, line, kept)


def _one_each(files: Sequence[Path], out: Path) -> None:
    """Raises BadRecipe where the report of one would take the place of another's: runs name their rows alike."""
    first: dict[str, Path] = {}
    for path in files:
        other = first.setdefault(_stem(path), path)
        if other != path:
            raise BadRecipe.one(
                "--out", f"{other} and {path} would both be {_stem(path)}.… in {out}: a folder for each"
            )


def _stem(path: Path) -> str:
    return path.name.removesuffix(".jsonl").removesuffix(".rows")


def eval_of(sets: Sequence[str], normaliser: str) -> Eval:
    """The recipe's `eval` section as these settings make it. Raises BadRecipe for a setting of anything else."""
    wrong = [s for s in sets if not s.removeprefix("train.").startswith("eval.")]
    if wrong:
        raise BadRecipe.one("--set", f"{wrong[0]!r} says nothing to saved rows: only eval.… does")
    plain = {
        "task": "ctc",
        "model": {"name": "-"},
        "data": {"train": ["-"], "dev": ["-"]},
        "optim": {"lr": 1e-5},
        "loop": {"steps": 1, "step_utts": 1},
        "eval": {"normaliser": normaliser, "every_steps": 1},
    }
    return parse_recipe(with_sets(plain, sets)).eval


def score_again(rows: Sequence[Row], how: Eval, *, chosen: bool) -> tuple[Report, list[Row]]:
    """A report on rows, in the buckets they were measured in, or those that `how` names where they are `chosen`.

    Buckets that a row does not hold are known of its speaker and its duration alone; others are empty.
    """
    if chosen:
        rows = [{**r, "buckets": {name: _bucket(r, name) for name in how.buckets}} for r in rows]
    return score_transcripts(rows, how), list(rows)


def _bucket(row: Row, name: str) -> str:
    known = row.get("buckets", {})
    if name in known:
        return str(known[name])
    example = Example(row["id"], "", 0.0, float(row.get("duration_s", DURATIONS_S[-1])), "", row.get("speaker", ""))
    return example.bucket(name)
