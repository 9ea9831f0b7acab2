"""Decode a set of utterances and say what it is worth: one path for dev, test, and rows that are only predicted."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trainer.data.loader import evaluation_batches, evaluation_cut
from trainer.data.long import in_pieces
from trainer.data.manifest import Manifest
from trainer.errors import StopAsked
from trainer.halves import predicted
from trainer.machine import Machine
from trainer.recipe.base import Recipe
from trainer.recipe.eval import Decode
from trainer.tables import report_json
from trainer.tables import table_lines as table_lines  # as others know it
from trainer.task import Bad, Example, Parts, Report, Row, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Rows in the manifest's order, their report, and what could not be heard."""

    rows: Sequence[Row]
    report: Report
    bad: Sequence[Bad]


def evaluate(
    task: Task[Any, Any],
    parts: Parts,
    manifest: Manifest,
    recipe: Recipe,
    machine: Machine,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Every utterance decoded and scored, on all ranks. Raises StopAsked between two batches."""
    rows, bad = predict(task, parts, manifest, recipe, machine, stop=stop, on_batch=on_batch)
    report = task.score(rows)
    provenance = {
        **report.provenance,
        "decode": recipe.eval.decode.model_dump(),
        "precision": machine.precision,
        "data_sha256": manifest.sha256,
        "shuffled_audio": recipe.data.shuffle_audio,
    }
    return Evaluation(rows, replace(report, provenance=provenance), bad)


def predict(
    task: Task[Any, Any],
    parts: Parts,
    manifest: Manifest,
    recipe: Recipe,
    machine: Machine,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Row], list[Bad]]:
    """A row an utterance, in order, with its reference and buckets; unusable ones have a `reason` and no text.

    One that is longer than `data.max_s` is decoded in pieces: its row has their number, `pieces`.
    """
    how = recipe.eval
    micro_s = how.micro_s or recipe.loop.at_once_s
    heard = in_pieces([manifest[i] for i in range(len(manifest))], recipe.data.max_s, machine)
    # whole batches are dealt, the same that one rank would make: neighbours and roundings are its own, to the bit
    batches = evaluation_cut(task, heard.examples, micro_s)[machine.rank :: machine.world]
    examples = [e for batch in batches for e in batch]
    answers: dict[str, Row] = {}
    bad: list[Bad] = []
    with _in_eval(parts.module), torch.inference_mode(), machine.autocast():
        for loaded in evaluation_batches(task, batches, recipe.data.workers, stop):
            bad += loaded.bad
            if loaded.micro is not None:
                answers |= {row["id"]: row for row in predicted(task, parts, loaded.micro, how.decode, machine)}
            on_batch(len(answers) + len(bad), len(examples))
    if machine.summed([int(stop())])[0]:  # of one mind, or some would wait for the rows of others
        raise StopAsked("stopped while evaluating")
    reasons = {b.id: b.reason for b in bad}
    rows = machine.gathered([_row(e, answers, reasons, how.buckets) for e in examples])
    whole = heard.joined(rows)  # on every rank: pieces of one utterance come from several
    rows += [{**_row(e, {}, {}, how.buckets), **said} for e, said in whole]
    bad = [b for b in machine.gathered(bad) if b.id not in heard.pieces]
    bad += [Bad(said["id"], said["reason"]) for _, said in whole if "reason" in said]
    order = {i: n for n, i in enumerate(manifest.column("id"))}
    return sorted((r for r in rows if r["id"] in order), key=lambda r: order[r["id"]]), sorted(
        bad, key=lambda b: order[b.id]
    )


def with_decode(recipe: Recipe, decode: Decode) -> Recipe:
    """The same recipe, decoding in another way."""
    return recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"decode": decode})})


def as_json(evaluation: Evaluation, provenance: Mapping[str, Any], **more: Any) -> str:
    """One line: metrics, table and provenance, to which that of the run is added."""
    return report_json(evaluation.report, provenance, **more)


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in its own: a training may hold some of them frozen."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def _row(example: Example, answers: Mapping[str, Row], reasons: Mapping[str, str], buckets: Sequence[str]) -> Row:
    row: Row = {"id": example.id, "text": "", **answers.get(example.id, {})}
    row |= {"reference": example.text, "speaker": example.speaker, "duration_s": example.duration_s}
    row["buckets"] = {name: example.bucket(name) for name in buckets}
    if example.id in reasons:
        row["reason"] = reasons[example.id]
    return row
