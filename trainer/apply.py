"""`trainer evaluate` and `trainer predict`: a trained model meets other audio, on the path that training measured."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.files import read_json, write_atomic, write_json
from remote.rundir import RunDir
from trainer.before import known_before, measure_before
from trainer.checkpoint import complete_checkpoints
from trainer.chosen import build_chosen, chosen, describe_weights
from trainer.data.audio import header
from trainer.data.children import json_lines
from trainer.data.long import heard_whole
from trainer.data.manifest import Manifest, open_manifests
from trainer.data.places import cache_root, data_root
from trainer.desk import run_provenance
from trainer.errors import AudioError, BadData
from trainer.evaluate import evaluate as run_evaluation
from trainer.evaluate import predict as run_prediction
from trainer.machine import Machine, placed, start_machine
from trainer.pace import Pace
from trainer.recipe.base import Recipe
from trainer.recipe.load import parse_recipe, with_sets
from trainer.reporting import Evaluated, fresh_report, keep, lines_of, need_place
from trainer.results import BEFORE
from trainer.submission import (
    check_ids,
    competition_fields,
    empty_texts,
    read_format,
    write_submission,
)
from trainer.task import Parts, Report, Row, Task, make_task
from trainer.worst import keep_sounds, worst_rows

log = logging.getLogger(__name__)

KEPT = (
    "language",
    "task",
    "attention",
    "text",
    "prompt",
)  # of a recipe's model section, for its export: what decoding asks
LINES_FROM = 200  # utterances: fewer are soon done
FAMILIES = {  # by model_type; ctc is the rest
    "whisper": "whisper",
    "parakeet_tdt": "tdt",
    "parakeet_rnnt": "tdt",
    **dict.fromkeys(
        (
            "canary",
            "cohere_asr",
            "moonshine",
            "moonshine_streaming",
            "seamless_m4t",
            "seamless_m4t_v2",
            "speech-encoder-decoder",
            "speech_to_text",
            "speecht5",
        ),
        "seq2seq",
    ),
}


@dataclass(frozen=True)
class Trained:
    """A model with the recipe that made it, on this machine."""

    name: str
    recipe: Recipe
    task: Task[Any, Any]
    parts: Parts
    machine: Machine
    reports: Path | None  # a run's
    provenance: dict[str, Any]


def evaluate(args: argparse.Namespace) -> int:
    """Score manifests; the recipe's test set where none is named. The report is printed and kept.

    Of a run the model before training comes first: as it was measured already, or decoded too.
    """
    if args.out is not None:
        need_place(args.out / "summary.json")
    trained = load_trained(args)
    if trained.reports is not None and args.out is None:
        need_place(trained.reports / "summary.json")
    recipe, machine = trained.recipe, trained.machine
    names = args.inputs or recipe.data.test
    if not names:
        raise BadData("there is nothing to evaluate: the recipe names no test set", "name one or more manifests")
    if args.shuffle_audio:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shuffle_audio": True})})
    manifest = _manifest(names, recipe, need_text=True)
    if recipe.data.shuffle_audio:
        manifest = manifest.shuffled_audio(recipe.loop.seed)
    more: dict[str, Any] = {"manifests": [str(n) for n in names]}
    if manifest.bad:
        more["left_out"] = len(manifest.bad)
    what = next(iter(trained.task.final_decodes(recipe.eval.decode)))
    began, live = time.monotonic(), _live("evaluated", machine)
    result = run_evaluation(trained.task, trained.parts, manifest, recipe, machine, on_batch=live)
    took_s = time.monotonic() - began
    found = [Evaluated(what, result.report, trained.provenance, result.rows, manifest.audio_s, took_s, more)]
    path = fresh_report(args.out or trained.reports)
    if machine.is_first and path:
        keep(found, path)  # it may take as long again until the other line is there
    if args.run is not None and recipe.eval.before_training and not args.no_before:
        before = _before(trained, RunDir(args.run), recipe, manifest, more)
        found = [before, *found] if before else found
    if not machine.is_first:
        return 0
    title = "shuffled audio, " if recipe.data.shuffle_audio else ""
    title += f"{trained.name} on {', '.join(map(str, names))}, normaliser {recipe.eval.normaliser}"
    print("\n".join([e.as_line() for e in found] if args.json else lines_of(title, found, recipe.eval)))
    if manifest.bad:
        print(_left_out(manifest), file=sys.stderr if args.json else sys.stdout)
    if path:
        keep(found, path)
        if not recipe.data.shuffle_audio:  # the control has others' sound
            worst, sounds = worst_rows(result.rows, recipe.eval), path.parent / RunDir(path.parent).sounds.name
            keep_sounds(worst, manifest, sounds, recipe.eval.worst, f"{path.stem}.rows.jsonl")
        print(f"report: {path}", file=sys.stderr if args.json else sys.stdout)
    if args.out is not None:
        _write_summary(args.out, names, result.report, recipe)
    return 0


def _left_out(manifest: Manifest) -> str:
    """What no number is of: rows that never became utterances, with the first reasons."""
    some = "; ".join(f"{b.id}: {b.reason}" for b in manifest.bad[:3])
    more = f"; and {len(manifest.bad) - 3} more" if len(manifest.bad) > 3 else ""
    return f"left out, in no number: {len(manifest.bad)} of {len(manifest) + len(manifest.bad)} rows: {some}{more}"


def _write_summary(folder: Path, names: Sequence[str], report: Report, recipe: Recipe) -> None:
    """The last word of an evaluation that has a folder of its own, as a training's `reports/summary.json` says it.

    That of a training stays, should somebody name its folder.
    """
    path = folder / "summary.json"
    known = read_json(path)
    if known is not None and "evaluated" not in known:
        return
    m, metric = report.metrics, recipe.eval.metric
    headline = f"{metric.upper()} {100 * m[metric]:.2f} % on {', '.join(map(str, names))}"
    headline += f", {m['utterances']:.0f} utterances, normaliser {recipe.eval.normaliser}"
    write_json(path, {"headline": headline, "metrics": dict(m), "evaluated": [str(n) for n in names]})


def _before(
    trained: "Trained", run: RunDir, recipe: Recipe, manifest: Manifest, more: dict[str, Any]
) -> Evaluated | None:
    known = known_before(run, recipe, trained.machine, manifest)
    if known is not None:
        told, path = known
        report = Report(told.metrics, told.table, told.provenance)
        more = {**more, "measured_in": path.name}
        return Evaluated(BEFORE, report, told.provenance, told.read_rows() or None, manifest.audio_s, None, more)
    began = time.monotonic()
    live = _live("before training: evaluated", trained.machine)
    result = measure_before(recipe, trained.machine, manifest, trained.parts, live)
    if result is None:
        return None
    provenance = {**run_provenance(run), "weights": describe_weights(recipe, [0])}
    return Evaluated(BEFORE, result.report, provenance, result.rows, manifest.audio_s, time.monotonic() - began, more)


def predict(args: argparse.Namespace) -> int:
    """A JSON line an utterance: id, text, and a reason where its audio could not be used. 1 where that was so.

    With `--format`, the competition's file instead: its ids, its order, its fields.
    """
    if not args.inputs:
        raise BadData("there is nothing to transcribe", "name manifests (.jsonl) or sound files")
    odd = [name for name in args.inputs if not _is_text(name)]
    if odd:
        raise BadData(f"the name {odd[0]!a} is not UTF-8: no JSON can hold it", "rename the file")
    form = read_format(_existing(str(args.format))) if args.format else None
    if args.out is not None:
        need_place(args.out)
    trained = load_trained(args)
    manifest = _manifest(args.inputs, trained.recipe, need_text=False)
    told: list[str] = []
    if form is not None:  # before hours are spent
        ids = [*manifest.column("id"), *(b.id for b in manifest.bad)]
        told = check_ids(form, ids, ", ".join(map(str, args.inputs)))
    machine = trained.machine
    pace = Pace(float(manifest.column("duration_s").sum()), time.monotonic)
    live = _live("transcribed", machine, pace)
    rows, _ = run_prediction(trained.task, trained.parts, manifest, trained.recipe, machine, on_batch=live)
    found = {row["id"]: row for row in rows}
    again = sum(1 for b in manifest.bad if b.id in found)
    for b in manifest.bad:  # what never became an example still gets its line
        found.setdefault(b.id, {"id": b.id, "text": "", "reason": b.reason})
    unusable = sum("reason" in found[i] for i in (form.ids if form is not None else found))
    if not machine.is_first:
        return 1 if unusable else 0  # every rank says the same
    if again:
        told.append(f"{again} rows repeat an id: the first of each is transcribed")
    if form is not None:
        whole = write_submission(args.out, form, found)
        told += [
            f"{len(which)} texts are empty: {reason}: {', '.join(which[:5])}"
            + (f" and {len(which) - 5} more" if len(which) > 5 else "")
            for reason, which in empty_texts(form, found).items()
        ]
    else:
        keys = ("id", "text", "pieces", "reason")
        if manifest.bad:
            found = _as_asked(found, args.inputs, trained.recipe)
        lines = [json.dumps({k: r[k] for k in keys if k in r}, ensure_ascii=False) + "\n" for r in found.values()]
        whole = "".join(lines)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.out, whole.encode())
    if args.out is None:
        sys.stdout.write(whole)
    print(pace.line(len(rows)), *told, sep="\n", file=sys.stderr)
    if unusable:
        where = "their reason" if form is None else "above"
        print(
            f"{unusable} of {len(form.rows if form else found)} could not be transcribed: see {where}", file=sys.stderr
        )
    return 1 if unusable else 0


def _as_asked(found: Mapping[str, Row], names: Sequence[str], recipe: Recipe) -> dict[str, Row]:
    """In the order of manifests or sound files, also what could not be used."""
    places = {name: n for n, name in enumerate(names)}
    paths = [_existing(name) for name in names if name.endswith(".jsonl")]
    field = {**(competition_fields(paths[0]) if paths else {}), **recipe.data.fields}.get("id", "id")
    for path in paths:
        for number, raw in json_lines(path):
            id = "" if isinstance(raw, str) else str(raw.get(field) or "")
            places.setdefault(id or f"{path.name}:{number}", len(places))
    return {i: found[i] for i in sorted(found, key=lambda i: places.get(i, len(places)))}


def recipe_of(args: argparse.Namespace) -> Recipe:
    """What a run was trained with, or what a model is to be decoded with; changed as `--set` says."""
    if args.run is not None:
        found = complete_checkpoints(RunDir(args.run).checkpoints)
        if not found:
            raise BadData(f"{args.run} holds no complete checkpoint", "podctl ps shows which runs there are")
        raw = read_json(found[-1].state / "state.json")["recipe"]
    else:
        raw = read_json(args.model / "recipe.json") or _plain_recipe(args.model)
        raw["model"] = {**{k: v for k, v in raw["model"].items() if k in KEPT}, "name": str(args.model)}
        raw["adapters"] = None  # an export is merged
    return parse_recipe(_with_sets(raw, args.set), expand=True)


def load_trained(args: argparse.Namespace) -> Trained:
    """The model of `args.run` or `args.model`, on this machine, as its recipe and `args.set` say. Raises BadData."""
    recipe = recipe_of(args)
    if args.run is not None:
        return _load_run(RunDir(args.run), recipe)
    return _load_model(args.model, recipe)


def _load_run(run: RunDir, recipe: Recipe) -> Trained:
    found = complete_checkpoints(run.checkpoints)
    best = chosen(found, recipe) if any(c.metrics for c in found) else found[:1]
    machine = start_machine(recipe.loop)
    task = make_task(recipe)
    parts = placed(build_chosen(task, recipe, best), machine)
    weights = describe_weights(recipe, [c.step for c in best])
    provenance = {**run_provenance(run), "weights": weights}
    return Trained(f"{run.root.name} {weights}", recipe, task, parts, machine, run.reports, provenance)


def _load_model(model: Path, recipe: Recipe) -> Trained:
    machine = start_machine(recipe.loop)
    task = make_task(recipe)
    parts = placed(task.build(), machine)
    return Trained(str(model), recipe, task, parts, machine, None, read_json(model / "provenance.json") or {})


def _plain_recipe(model: Path) -> dict[str, Any]:
    """What is needed to decode with a model that this project did not make."""
    if not (model / "config.json").is_file():
        raise BadData(f"{model} is not a model: it holds no config.json", "name an export, or a model from the Hub")
    kind = (read_json(model / "config.json") or {}).get("model_type", "")
    return {
        "task": FAMILIES.get(kind, "ctc"),
        "model": {},
        "data": {"train": ["-"], "dev": ["-"]},
        "optim": {"lr": 1e-5},
        "loop": {"steps": 1, "step_utts": 1},
        "eval": {"normaliser": "basic", "every_steps": 1},
    }


def _with_sets(train: dict[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """`eval.decode.beams=5` put into a recipe's mapping; values are YAML."""
    result: dict[str, Any] = json.loads(json.dumps(train))
    # each recording is heard once, and nothing is done to it: noise may lie on another machine
    names = [t if isinstance(t, str) else t.get("manifest") or t["hub"] for t in result["data"]["train"]]
    result["data"] = {**result["data"], "train": names, "cache_gb": 0, "frozen_gb": 0}
    result["augment"] = {}
    result["loss"] = {}  # nor is a teacher asked
    return with_sets(result, sets)


def _manifest(names: Sequence[str], recipe: Recipe, *, need_text: bool) -> Manifest:
    """Manifests relative to the volume's data/ or to here; sound files become a manifest of their own."""
    sounds = [n for n in names if not n.endswith(".jsonl")]
    lists = [_existing(n) for n in names if n.endswith(".jsonl")]
    data = heard_whole(recipe)
    if not need_text:
        data = data.model_copy(update={"max_bad_share": 1.0})
    if not sounds:
        if lists and lists[0].is_file():
            data = data.model_copy(update={"fields": {**competition_fields(lists[0]), **data.fields}})
        return open_manifests(lists, data, data_root(), cache_root(), need_text=need_text)
    if need_text or lists:
        raise BadData(f"{sounds[0]} is not a manifest (.jsonl)", "name only manifests, or only sound files")
    return _manifest_of_sounds(sounds, data)


def _manifest_of_sounds(sounds: Sequence[str], data: Any) -> Manifest:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sounds.jsonl"
        rows = []
        for name in dict.fromkeys(sounds):
            row: dict[str, Any] = {"id": name, "audio": str(Path(name).absolute())}
            try:
                row["duration_s"] = header(name).duration_s
            except AudioError:
                pass  # the manifest's reader says so, with this reason
            rows.append(json.dumps(row))
        path.write_text("\n".join(rows), encoding="utf-8")
        plain = data.model_copy(update={"fields": {}, "audio_dirs": []})
        return open_manifests([path], plain, Path(folder), Path(folder), need_text=False)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file's name, as Python carries them about
        return False
    return True


def _existing(name: str) -> Path:
    path = Path(name)
    return path.absolute() if path.exists() else data_root() / name


def _live(verb: str, machine: Machine, pace: Pace | None = None) -> Any:
    """One line that counts, on a terminal; without one a line at every tenth. Of several ranks the first tells its
    own share."""
    tenths = 0

    def show(done: int, total: int) -> None:
        nonlocal tenths
        if not machine.is_first:
            return
        left = pace.left(done, total) if pace else ""
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r\033[K{verb} {done} of {total}{left}" + end, end="", file=sys.stderr, flush=True)
        elif pace and 10 * done // max(1, total) > tenths and total >= LINES_FROM:
            tenths = 10 * done // max(1, total)
            print(f"{verb} {done} of {total}{left}", file=sys.stderr, flush=True)

    return show
