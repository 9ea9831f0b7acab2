"""A few optimiser steps of a very small model of any family in float64, on as many ranks as there are."""

from pathlib import Path
from typing import Any

import torch
from support.families import FAMILIES

from trainer.data.loader import StepLoader
from trainer.data.manifest import open_manifests
from trainer.gradient import LossModule
from trainer.loop import State, Training
from trainer.machine import Machine, placed, start_machine
from trainer.optim import make_optimiser
from trainer.recipe.load import parse_recipe
from trainer.sharded import Sharded
from trainer.task import make_task


def trained(
    folder: Path,
    micro_s: float,
    steps: int = 3,
    family: str = "whisper",
    machine: Machine | None = None,
    **sections: Any,
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Whole parameters after the steps, and how many micro-batches this rank had in each."""
    sections = dict(sections)
    loop = {"precision": "fp64", "micro_s": micro_s, "steps": steps, "step_utts": 8, **sections.pop("loop", {})}
    phases = sections.pop("phases", [])
    recipe = parse_recipe({**FAMILIES[family](folder, loop=loop, **sections), "phases": phases})
    manifest = open_manifests([folder / "train.jsonl"], recipe.data, folder, folder / "cache")
    machine = machine or start_machine(recipe.loop)
    task = make_task(recipe)
    torch.manual_seed(0)
    parts = placed(task.build(), machine)
    sharded = None
    if recipe.loop.shard and machine.world > 1:
        sharded = Sharded(LossModule(task, parts.module), parts.module, machine)
    loader = StepLoader(task, manifest, recipe, machine.rank, machine.world)
    depths = task.depths(parts.module) if recipe.optim.layer_decay < 1 else None
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, "fp64", depths)
    optimiser.sharded = sharded
    training = Training(
        task, parts, recipe, machine, loader, optimiser, State(), None, None,
        evaluate=lambda: {"wer": 1.0}, save=lambda: None, on_bad=lambda bad: None, stop_asked=lambda: False,
    )  # fmt: skip
    training.run()
    n_micros = [len(loader.micros_of(s)[1]) for s in range(steps)]
    module = sharded.whole() if sharded else parts.module
    return {n: p.detach().clone() for n, p in module.named_parameters()}, n_micros


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)
