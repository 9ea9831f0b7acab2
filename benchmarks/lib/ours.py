"""Our side of a comparison: the trainer's own loop, data path and decoding, with nothing of them left out.

What is left out is what a comparison of steps does not ask for: evaluations and checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.data.loader import StepLoader
from trainer.data.manifest import Manifest, open_manifests
from trainer.data.places import cache_root, data_root
from trainer.data.sets import DataSets, open_data
from trainer.evaluate import predict
from trainer.loop import State, Training
from trainer.machine import placed, start_machine
from trainer.optim import make_optimiser
from trainer.recipe.base import Recipe
from trainer.recipe.load import parse_recipe
from trainer.task import Example, Parts, make_task


def recipe_of(name: Path, train: Path, dev: Path | None = None, **sections: Mapping[str, Any]) -> Recipe:
    """As shipped, but for what `sections` say. Sound is decoded anew in every round, as the other side does.

    `dev` is the manifest of that name beside `train`, where none is given.
    """
    raw: dict[str, Any] = {
        "task": "whisper",
        "model": {"name": str(name)},
        "data": {"train": [str(train)], "dev": [str(dev or train.with_name("dev.jsonl"))], "cache_gb": 0},
        "optim": {"lr": 1e-3},
        "loop": {"device": "cpu"},
        "eval": {"normaliser": "basic", "every_steps": 1_000_000, "before_training": False, "bootstrap": 0},
        "log": {"every_steps": 25, "tensorboard": False},
    }
    for key, section in sections.items():
        raw[key] = {**raw.get(key, {}), **section}
    return parse_recipe(raw)


@dataclass(frozen=True)
class Decoding:
    """With what one decodes, beside the window."""

    max_tokens: int = 48
    micro_s: float = 160.0
    precision: str = "fp32"
    threads: int = 2


class Ours:
    """One training at a time, set up as trainer/train.py does."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.machine = start_machine(recipe.loop)
        self.data: DataSets = open_data(recipe)

    def set_up(self) -> Training:
        """Fresh weights, nothing trained yet."""
        recipe, machine = self.recipe, self.machine
        task = make_task(recipe)
        torch.manual_seed(recipe.loop.seed)
        parts = placed(task.build(), machine)
        optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, machine.precision)
        return Training(
            task=task,
            parts=parts,
            recipe=recipe,
            machine=machine,
            loader=StepLoader(task, self.data.train, recipe),
            optimiser=optimiser,
            state=State(),
            book=None,
            progress=None,
            evaluate=lambda: {recipe.eval.metric: 1.0},
            save=lambda: None,
            on_bad=_refuse,
            stop_asked=lambda: False,
        )

    def features(self) -> None:
        """All that a training does before its first layer: sound decoded, batches, log-mel."""
        task = make_task(self.recipe)
        parts = Parts(torch.nn.Linear(1, 1))
        for step in StepLoader(task, self.data.train, self.recipe).steps(0, self.n_steps):
            for micro in step.micros:
                task.prepare(micro.batch, parts, True)

    @property
    def n_steps(self) -> int:
        return StepLoader(make_task(self.recipe), self.data.train, self.recipe).plan.max_steps

    def padding_share(self) -> float:
        """Of all seconds that the model hears in training, those that nobody spoke."""
        task = make_task(self.recipe)
        loader = StepLoader(task, self.data.train, self.recipe)
        audio_s = padded_s = 0.0
        for n in range(self.n_steps):
            for examples, draws in loader.micros_of(n)[1]:
                sizes = [task.size(e, d) for e, d in zip(examples, draws, strict=True)]
                audio_s += sum(s.audio_s for s in sizes)
                padded_s += sum(s.padded_s for s in sizes)
        return 1 - audio_s / padded_s


class Decoder:
    """A model in the Hub's layout, loaded, and a manifest that it decodes as `trainer evaluate` does, greedily."""

    def __init__(self, model: Path, manifest: Path, window: str, how: Decoding) -> None:
        loop = {"steps": 1, "step_utts": 1, "precision": how.precision, "threads": how.threads, "micro_s": how.micro_s}
        decode = {"window": window, "max_new_tokens": how.max_tokens}
        self.recipe = recipe_of(model, manifest, loop=loop, eval={"normaliser": "none", "decode": decode})
        self.manifest = _opened(manifest, self.recipe)
        self.machine = start_machine(self.recipe.loop)
        self.task = make_task(self.recipe)
        self.parts = placed(self.task.build(), self.machine)

    def rows(self, first: int | None = None) -> list[dict[str, Any]]:
        """All of them, or so many of the first."""
        some = self.manifest if first is None else self.manifest.subset(np.arange(min(first, len(self.manifest))))
        rows, bad = predict(self.task, self.parts, some, self.recipe, self.machine)
        if bad:
            _refuse(bad)
        return rows


def examples_of(model: Path, manifest: Path) -> list[Example]:
    """What a manifest holds, its audio found, in its order."""
    recipe = recipe_of(model, manifest, loop={"steps": 1, "step_utts": 1})
    return list(_opened(manifest, recipe))


def _opened(manifest: Path, recipe: Recipe) -> Manifest:
    return open_manifests([manifest.absolute()], recipe.data, data_root(), cache_root())


def _refuse(bad: Any) -> None:
    raise RuntimeError(f"a benchmark's own sound can't be used: {bad}")
