"""The model before training: the first row of every report, measured once and not again (law 15)."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from remote.rundir import RunDir
from trainer.data.manifest import Manifest
from trainer.errors import StopAsked
from trainer.evaluate import Evaluation, evaluate
from trainer.machine import Machine, placed
from trainer.metrics.normalise import normaliser_named
from trainer.recipe.base import Recipe
from trainer.results import BEFORE, Told, told_in
from trainer.task import Parts, make_task

log = logging.getLogger(__name__)


def known_before(run: RunDir, recipe: Recipe, machine: Machine, manifest: Manifest) -> tuple[Told, Path] | None:
    """What this run has measured already, in the same way on the same utterances, and the report that says so."""
    reports = run.reports
    for path in (reports / "test.jsonl", *sorted(reports.glob("evaluate-*.json")), reports / "dev.jsonl"):
        for told in told_in(path):
            if (told.what == BEFORE or told.step == 0) and _same(told, recipe, machine, manifest):
                return told, path
    return None


def measure_before(
    recipe: Recipe, machine: Machine, manifest: Manifest, trained: Parts, on_batch: Callable[[int, int], None]
) -> Evaluation | None:
    """Decoded by fresh networks, as training began; `trained` gives its memory back, and is no model any more.

    None, with the reason in the log, where they can't be built here: a base model may lie on another machine.
    """
    trained.module.to("meta")
    task = make_task(recipe)
    torch.manual_seed(recipe.loop.seed)
    try:
        fresh = placed(task.build(), machine)
    except StopAsked:
        raise
    except Exception as e:  # whatever a library raises for weights that are not here: the other numbers are made
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        log.warning("the model before training can't be had here, and is left out: %s", reason)
        return None
    return evaluate(task, fresh, manifest, recipe, machine, on_batch=on_batch)


def _same(told: Told, recipe: Recipe, machine: Machine, manifest: Manifest) -> bool:
    wanted = {
        "decode": recipe.eval.decode.model_dump(mode="json"),
        "normaliser_sha256": normaliser_named(recipe.eval.normaliser).sha256,
        "precision": machine.precision,
        "data_sha256": manifest.sha256,
        "shuffled_audio": recipe.data.shuffle_audio,
    }
    fields = {str(line["set"]).partition("=")[0] for line in told.table} - {"all"}
    return (
        all(told.provenance.get(k) == v for k, v in wanted.items())
        and told.metrics.get("utterances") == len(manifest)  # dev may be a part of its manifest
        and fields == set(recipe.eval.buckets)
    )
