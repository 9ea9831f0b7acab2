"""A whole training step of each task under a mode that fails on whatever would make the host wait for a GPU.

Known exceptions are listed a task, with what they are: a new one is a defect, and one that is gone leaves the list.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import FAMILIES, SLOW
from support.seq2seq import KINDS
from support.speech import make_corpus, recipe_dict
from support.waits import Waits

from trainer.data.loader import StepLoader
from trainer.data.manifest import open_manifests
from trainer.loop import State, Training
from trainer.machine import placed, start_machine
from trainer.optim import make_optimiser
from trainer.recipe.load import parse_recipe
from trainer.task import make_task

SLOWER = SLOW - {"wav2vec2-mbart"}  # one whose encoder has the waits that are listed is quick
# Beside these the loop reads one number a step: whether the step before was skipped, when its work is done by then.
LOOP = {"_local_scalar_dense": 1}
# A micro-batch: transformers looks whether a mask masks anything before it takes sdpa, and writes `x[mask] = 0`, which
# is a masked_fill on a GPU.
A_MICRO = {
    "wav2vec2": {"_local_scalar_dense": 1, "boolean index": 2},
    "hubert": {"_local_scalar_dense": 1, "boolean index": 2},
    "wavlm": {"boolean index": 2},
}
A_MICRO |= {kind: A_MICRO[kind.partition("-")[0]] for kind in KINDS if kind.partition("-")[0] in A_MICRO}


def make_training(folder: Path, family: str) -> Training:
    make_corpus(folder, 24)
    augment = {"speed": [0.9, 1.0], "gain_db": 3, "spec": {"p": 1.0, "freq_width": 4}}
    loop = {**recipe_dict(folder)["loop"], "steps": 4, "step_utts": 6}
    recipe = parse_recipe(FAMILIES[family](folder, loop=loop, augment=augment, log={"every_steps": 1000}))
    manifest = open_manifests([folder / "train.jsonl"], recipe.data, folder, folder / "cache")
    machine, task = start_machine(recipe.loop), make_task(recipe)
    torch.manual_seed(0)
    parts = placed(task.build(), machine)
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, "fp32")
    return Training(
        task, parts, recipe, machine, StepLoader(task, manifest, recipe), optimiser, State(), None, None,
        evaluate=lambda: {"wer": 1.0}, save=lambda: None, on_bad=lambda bad: None, stop_asked=lambda: False,
    )  # fmt: skip


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOWER)) for f in FAMILIES])
def test_a_training_step_asks_the_device_nothing_but_what_is_listed(tmp_path: Path, family: str) -> None:
    training = make_training(tmp_path, family)
    found: list[tuple[int, dict[str, int]]] = []
    whole_step = training._step

    def watched(step: Any) -> None:
        with Waits() as waits:
            whole_step(step)
        found.append((len(step.micros), dict(waits.found)))

    training._step = watched  # type: ignore[method-assign]
    training.run()
    # not the first, which makes the optimiser's state, nor the last, which is logged
    for n_micros, waits in found[1:-1]:
        expected = dict(LOOP)
        for name, n in A_MICRO.get(family, {}).items():
            expected[name] = expected.get(name, 0) + n * n_micros
        assert waits == expected


def test_the_mode_sees_what_it_must_see() -> None:
    x, keep = torch.randn(4), torch.tensor([True, False, True, True])
    with Waits() as waits:
        float(x.sum())
        x[keep]
        x[keep] = 0.0
        x.nonzero()
        torch.where(keep)
        x.masked_select(keep)
    assert waits.found["_local_scalar_dense"] == 1
    assert waits.found["boolean index"] == 2
    assert waits.found["nonzero"] >= 2
    assert waits.found["masked_select"] == 1
