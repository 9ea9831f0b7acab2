"""`trainer push`: which model, which figures, which words: all that is known before a Hub is asked."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.files import read_json
from remote.rundir import STALE_S, RunDir, read_status
from trainer.errors import BadData
from trainer.model_card import Facts
from trainer.parcel import Parcel, pack
from trainer.results import RunResults, read_results


@dataclass(frozen=True)
class Wanted:
    """A push as it was asked for."""

    facts: Facts
    parcel: Parcel
    message: str  # of the commit


def make_push(args: argparse.Namespace) -> Wanted:
    """Raises BadData where the model is not whole, its run not over, or nothing says what it is worth."""
    run = RunDir(args.run) if args.run is not None else None
    results = _results(run) if run else None
    what: str = args.what
    more: dict[str, bytes] = {}
    weights = ""
    if what == "adapters":
        if args.model is not None:
            raise BadData("adapters are taken from a run's best step, not from a folder", "leave --model out")
        folder, more, weights = _adapters(run)
    elif args.model is not None:
        folder = args.model
    else:
        assert run is not None
        folder = run.export if what == "export" else run.root / "export-ct2"
        if what == "ct2" and not folder.is_dir():
            raise BadData(
                f"{run.root} has no export for faster-whisper",
                f"trainer export --run {run.root} --format ct2 --out {folder}, then push again",
            )
    parcel = pack(folder, what, more)
    made = read_json(folder / "provenance.json") or {}
    _refuse_refused(folder, made)
    provenance = made or {**(_exported(run) if run else {}), **({"weights": weights} if weights else {})}
    if run and results:
        results = _of_this_model(results, run, folder, made or provenance)
    facts = Facts(
        repo=args.repo,
        what=what,
        recipe=_recipe(folder, run),
        provenance=provenance,
        results=results,
        decode=read_json(folder / "decode.json"),
    )
    return Wanted(facts, parcel, _message(facts))


def _results(run: RunDir) -> RunResults:
    if not run.root.is_dir():
        raise BadData(f"{run.root} is not there", "podctl ps names the runs; name the folder of one")
    status = read_status(run.status)
    if status is not None and not status.is_final and time.time() - status.heartbeat_at < STALE_S:
        raise BadData(f"{run.root.name} is still going: its best may change", "wait for its end: podctl attach")
    return read_results(run)


def _refuse_refused(folder: Path, made: Mapping[str, Any]) -> None:
    parity = made.get("parity") or {}
    if parity.get("holds") is False:
        raise BadData(
            f"{folder} did not pass its comparison: WER {100 * parity['wer_theirs']:.2f} % through faster-whisper, "
            f"{100 * parity['wer_ours']:.2f} % before",
            "trainer export again: --quantisation float32 loses nothing, --max-wer-difference allows more",
        )


def _of_this_model(results: RunResults, run: RunDir, folder: Path, made: Mapping[str, Any]) -> RunResults:
    """The figures of the weights that are sent. Raises BadData where they were not measured, or elsewhere."""
    told = results.headline
    names = {run.root.name, _exported(run).get("run"), told.provenance.get("run") if told else None}
    whose, weights = str(made.get("run") or ""), str(made.get("weights") or "")
    found = results.of_weights(weights) if not whose or whose in names else None
    if found is None:
        measured = f" ({told.weights})" if told and told.weights else ""
        raise BadData(
            f"{folder} holds {whose or 'a model'} ({weights or 'unknown weights'}), and the figures are of "
            f"{run.root.name}{measured}: the card would be wrong",
            f"trainer export --run {run.root} --format hf --out DIR, then --model DIR; or leave --run out: a card "
            "without figures",
        )
    return found


def _adapters(run: RunDir | None) -> tuple[Path, dict[str, bytes], str]:
    """The adapters of a run's best step, what says how they were made, and which weights they are."""
    from trainer.checkpoint import complete_checkpoints
    from trainer.chosen import chosen, describe_weights
    from trainer.recipe.load import parse_recipe

    if run is None:
        raise BadData("adapters are pushed from a run", "trainer push --run RUN --what adapters …")
    found = complete_checkpoints(run.checkpoints)
    if not found:
        raise BadData(f"{run.root} holds no complete checkpoint", "push the export: --what export")
    recipe = parse_recipe(read_json(found[-1].state / "state.json")["recipe"])
    best = chosen(found, recipe)
    if recipe.adapters is None:
        raise BadData(f"{run.root.name} trained all weights: there are no adapters", "--what export")
    if len(best) > 1 or recipe.averaging.ema is not None:
        raise BadData(
            f"what {run.root.name} measured is a mean of weights: no step's adapters are that model", "--what export"
        )
    names = ("recipe.json", "provenance.json")
    beside = {n: (run.export / n).read_bytes() for n in names if (run.export / n).is_file()}
    return best[0].model, beside, describe_weights(recipe, [best[0].step])


def _recipe(folder: Path, run: RunDir | None) -> Mapping[str, Any]:
    """How it was trained; of a converted or merged model that its folder does not say, its run's export does."""
    places = [folder, *([run.export] if run else [])]
    return next((r for p in places if (r := read_json(p / "recipe.json"))), {})


def _exported(run: RunDir) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_json(run.export / "provenance.json") or {}
    return found


def _message(facts: Facts) -> str:
    run = facts.provenance.get("run") or "a model"
    told = facts.results.headline if facts.results else None
    worth = f": {told.set} WER {100 * told.metrics['wer']:.2f} %" if told and "wer" in told.metrics else ""
    form = f" ({facts.what})" if facts.what != "export" else ""
    return " ".join(f"{run}{worth}{form}".split())[:200]
