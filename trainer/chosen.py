"""Which weights of a training are measured and exported: a step's, their running mean, or the best steps' mean."""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.checkpoint import Checkpoint, best_first
from trainer.errors import BadData
from trainer.recipe.base import Recipe
from trainer.task import Parts, Task


def chosen(found: Sequence[Checkpoint], recipe: Recipe) -> list[Checkpoint]:
    """The checkpoints that the final model is made of, best on dev first. Raises BadData where none was measured."""
    ranked = best_first(found, lambda metrics: metrics[recipe.eval.metric])
    if not ranked:
        raise BadData("no checkpoint has a dev measurement: there is no best model", "lower eval.every_steps")
    return ranked[: recipe.averaging.best or 1]


def is_mean_measured(recipe: Recipe) -> bool:
    """Whether the running mean is what is evaluated and exported."""
    return recipe.averaging.ema is not None and recipe.averaging.evaluate == "ema"


def build_chosen(task: Task[Any, Any], recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> Parts:
    """One checkpoint's networks with the weights that were measured, or the mean of several checkpoints of one run.

    Within a run the factors of adapters may be averaged: they are on one path. The mean is float32 or wider; it and one
    model are in memory at a time.
    """
    parts = _build(task, recipe, checkpoints[0])
    if len(checkpoints) == 1:
        return parts
    mean = {name: t.clone().to(_wide(t)) for name, t in _trained(parts).items()}
    for n, checkpoint in enumerate(checkpoints[1:], start=2):
        parts = _build(task, recipe, checkpoint)
        for name, t in _trained(parts).items():
            mean[name].lerp_(t.to(mean[name].dtype), 1 / n)  # what is equal everywhere stays as it is
    for name, t in _trained(parts).items():
        t.copy_(mean[name])
    return parts


def describe_weights(recipe: Recipe, steps: Sequence[int]) -> str:
    """What a report says of the weights that it measured."""
    if list(steps) == [0]:
        return "as it came"
    one = f"step {steps[0]}" if len(steps) == 1 else f"mean of steps {', '.join(map(str, sorted(steps)))}"
    return f"{one}, running mean {recipe.averaging.ema:g}" if is_mean_measured(recipe) else one


def _build(task: Task[Any, Any], recipe: Recipe, checkpoint: Checkpoint) -> Parts:
    parts = task.build(checkpoint.model)
    if is_mean_measured(recipe):
        state = torch.load(checkpoint.state / "ema.pt", map_location="cpu", weights_only=True)
        weights = dict(parts.module.named_parameters())
        with torch.no_grad():
            for name, mean in state["mean"].items():
                weights[name].copy_(mean)
    return parts


def _trained(parts: Parts) -> dict[str, torch.Tensor]:
    """What differs between the checkpoints of a run: trained weights, and statistics that were gathered."""
    found = {n: p.data for n, p in parts.module.named_parameters() if p.requires_grad}
    return found | {n: b.detach() for n, b in parts.module.named_buffers() if b.is_floating_point()}


def _wide(t: torch.Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
