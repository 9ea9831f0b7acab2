"""What trains in which step, at which rate: pure functions of the recipe and the step. Nothing of it needs saving.

A training without `phases` is one phase. A step's rate is its phase's peak × the phase's own warm-up × the schedule,
which falls once over the whole training × the group's factor × the layer's.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from remote.mistakes import Mistake
from trainer.data.plan import Plan
from trainer.errors import BadRecipe
from trainer.optim import Optimiser, schedule_at
from trainer.recipe.base import Recipe
from trainer.recipe.optim import Optim
from trainer.recipe.phases import Phase


@dataclass(frozen=True)
class Span:
    """One phase in steps: `first` is its first, `end` the first that is not its own any more."""

    number: int
    first: int
    end: int
    lr: float  # its peak
    warmup_steps: int
    rates: Mapping[str, float]  # of every group that trains; the others are frozen


def spans_of(recipe: Recipe, groups: Mapping[str, Collection[str]], plan: Plan) -> list[Span]:
    """All phases that have a step, in order. `groups` are the task's. Raises BadRecipe with every mistake at once."""
    phases = recipe.phases or [Phase(from_epoch=0, train="all")]
    firsts = [*_firsts(phases, plan), plan.max_steps]
    wrong, spans = [], []
    for n, phase in enumerate(phases):
        first, end = firsts[n], min(firsts[n + 1], plan.max_steps)
        rates = recipe.optim.rates if phase.rates is None else phase.rates
        asked = list(groups) if phase.train == "all" else phase.train
        trained = {g: rates.get(g, 1.0) for g in asked if groups.get(g) and rates.get(g, 1.0) > 0}
        if not trained:
            where = f"train.phases.{n}" if recipe.phases else "train.optim.rates"
            wrong.append(Mistake(where, f"there is nothing to train: {_frozen(asked, groups)}"))
        if first < plan.max_steps:
            peak = phase.lr or recipe.optim.lr
            spans.append(Span(n, first, end, peak, _warmup(phase, end - first, recipe.optim), trained))
    if wrong:
        raise BadRecipe(wrong)
    return spans


def span_at(spans: Sequence[Span], step: int) -> Span:
    """The phase that a step (from 0) belongs to."""
    return next(s for s in reversed(spans) if s.first <= step)


def rate_at(spans: Sequence[Span], step: int, max_steps: int, how: Optim) -> float:
    """The step's learning rate for a group and a layer of factor 1."""
    span = span_at(spans, step)
    done = step - span.first + 1
    warm = min(1.0, done / span.warmup_steps) if span.warmup_steps else 1.0
    return span.lr * warm * schedule_at(step, spans[0].warmup_steps, max_steps, how)


def open_phase(module: nn.Module, optimiser: Optimiser, span: Span) -> None:
    """Train what the phase trains and nothing else: no gradient, no optimiser state and no dropout elsewhere."""
    for name, parameters in optimiser.groups.items():
        is_open = name in span.rates
        for p in parameters.values():
            p.requires_grad_(is_open)
            if not is_open:
                optimiser.adamw.state.pop(p, None)  # a group that opens again begins anew
    set_modes(module)


def set_modes(module: nn.Module) -> None:
    """Training mode, but eval mode for what holds only frozen weights: no dropout there, no statistics gathered.

    A layer of a stack is one whole: where something in it trains (an adapter), all of its dropout is on.
    """
    module.train()
    _still(module)


def _still(module: nn.Module) -> None:
    for child in module.children():
        weights = list(child.parameters())
        if weights and not any(p.requires_grad for p in weights):
            child.eval()
        elif not isinstance(module, nn.ModuleList):
            _still(child)


def describe(span: Span, n_trained: int) -> str:
    """A line for the log."""
    groups = ", ".join(g if factor == 1 else f"{g} × {factor:g}" for g, factor in span.rates.items())
    return (
        f"phase {span.number + 1}, steps {span.first + 1} to {span.end}: {n_trained / 1e6:.3f} M weights of {groups} "
        f"train, at most at {span.lr:.2e}, after {span.warmup_steps} steps of warm-up"
    )


def _firsts(phases: Sequence[Phase], plan: Plan) -> list[int]:
    """Where each phase opens: with the epoch that it names, and not before the phase before it had a step."""
    firsts: list[int] = []
    for phase in phases:
        firsts.append(max(plan.step_at(phase.from_epoch), firsts[-1] + 1 if firsts else 0))
    return firsts


def _warmup(phase: Phase, n_steps: int, how: Optim) -> int:
    if phase.warmup_steps is not None:
        return phase.warmup_steps
    return round((how.warmup_share if phase.warmup_share is None else phase.warmup_share) * n_steps)


def _frozen(asked: Sequence[str], groups: Mapping[str, Collection[str]]) -> str:
    empty = [g for g in asked if not groups.get(g)]
    if empty:
        return f"{' and '.join(empty)} {'has' if len(empty) == 1 else 'have'} no trainable weight in this model"
    return "the rate of every group is 0"
