"""`trainer plan`: what a training will take, told without a GPU and without weights: memory, steps, operations, hours.

What depends on the data is told where the data is at hand. Hours are an estimate, and say so.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.data.loader import StepLoader
from trainer.data.sets import open_data
from trainer.errors import BadData, BadRecipe
from trainer.nf4 import n_weights
from trainer.peaks import PEAKS
from trainer.phases import set_modes
from trainer.probe import MARGIN, LengthClass, length_classes, thinned
from trainer.recipe.base import Recipe
from trainer.recipe.phases import Phase
from trainer.task import Parts, Task, make_task
from trainer.weighing import META, Weight, bytes_of, weigh

log = logging.getLogger(__name__)

GPUS_GB = (8, 16, 24, 40, 48, 80, 141)
PLANNED_FOR = ("T4", "L4", "RTX 4090", "L40S", "A100", "H100", "B200")
REACHED = 0.4  # of that peak
CONTEXT_GB = 0.8  # CUDA's own, and its libraries' workspaces
WEIGHED = 5  # lengths: each takes some passes in Python through every layer
TOKENS_A_SECOND = 5  # where there are no transcripts


@dataclass(frozen=True)
class Fit:
    """What a GPU of so much memory takes at once of the longest utterances; 0 where not one fits."""

    gpu_gb: int
    utterances: int
    micro_s: float  # of all lengths, the most padded seconds


@dataclass(frozen=True)
class Length:
    """One padded length: its worst micro-batch under the recipe's cut."""

    padded_s: float
    utterances: int
    tokens: int
    activations_gb: float


@dataclass(frozen=True)
class PhasePlan:
    """A phase of the training: GB are 10^9 bytes."""

    number: int
    trained: Mapping[str, int]  # parameters that train, by group
    weights_gb: float
    gradients_gb: float
    optimiser_gb: float
    mean_gb: float  # the running mean of what trains
    lengths: Sequence[Length]
    fits: Sequence[Fit]

    @property
    def fixed_gb(self) -> float:
        return self.weights_gb + self.gradients_gb + self.optimiser_gb + self.mean_gb


@dataclass(frozen=True)
class Steps:
    """What only the data can say."""

    steps: int
    epochs: float
    utterances: int
    audio_s_a_step: float
    padded_share: float  # of what the device hears: silence that was added
    flops_a_step: float
    hours: Mapping[str, float]  # by GPU, at REACHED of its peak: an estimate; decoding of dev and test comes on top


@dataclass(frozen=True)
class TrainingPlan:
    task: str
    precision: str
    parameters: int
    phases: Sequence[PhasePlan]
    steps: Steps | None
    notes: Sequence[str] = field(default_factory=list)


def make_plan(recipe: Recipe) -> TrainingPlan:
    """Raises BadRecipe, and BadData where even the model's shape depends on transcripts that are not here."""
    notes: list[str] = []
    data = None
    try:
        data = open_data(recipe)
    except BadData as e:
        notes.append(f"without the data: {e.message.splitlines()[0]}; steps, epochs and hours are not known")
        missing = e

    def texts() -> Any:
        if data is None:
            raise missing
        return data.train.column("text")

    recipe = recipe.resolved(texts)
    task = make_task(recipe.model_copy(update={"data": recipe.data.model_copy(update={"frozen_gb": 0.0})}))
    with torch.device(META):
        parts = task.build()
    for module in parts.frozen.values():
        module.to(META).requires_grad_(False)
    precision = _precision(recipe)
    if precision == "fp64":
        parts.module.double()
    if data is not None:
        loader = StepLoader(task, data.train, recipe)
        classes = length_classes(task, loader, recipe)
    else:
        seconds = recipe.data.max_s
        classes = [LengthClass(seconds, round(seconds * TOKENS_A_SECOND), 0.0, 1 << 30)]
        notes.append(f"transcripts are taken to have {TOKENS_A_SECOND} tokens a second")
    by_name = dict(parts.module.named_parameters())
    groups = {g: [by_name[n] for n in names] for g, names in task.groups(parts.module).items()}
    phases: list[PhasePlan] = []
    weights: dict[float, Weight] = {}
    opened: set[str] = set()
    for n, trained in enumerate(_trained(recipe, groups)):
        opened |= set(trained)
        plan, weights = _phase(n, trained, opened, groups, task, parts, recipe, precision, classes)
        phases.append(plan)
    steps = None if data is None else _steps(recipe, loader, classes, weights, precision)
    return TrainingPlan(recipe.task, precision, n_weights(parts.module), phases, steps, notes)


def _precision(recipe: Recipe) -> str:
    """What a GPU would compute in."""
    return "bf16" if recipe.loop.precision == "auto" else recipe.loop.precision


def _trained(recipe: Recipe, groups: Mapping[str, Any]) -> list[list[str]]:
    """The groups that train, a phase each."""
    found = []
    for phase in recipe.phases or [Phase(from_epoch=0, train="all")]:
        rates = recipe.optim.rates if phase.rates is None else phase.rates
        asked = list(groups) if phase.train == "all" else phase.train
        found.append([g for g in asked if groups.get(g) and rates.get(g, 1.0) > 0])
        if not found[-1]:
            raise BadRecipe.one("train.phases" if recipe.phases else "train.optim.rates", "there is nothing to train")
    return found


def _phase(
    number: int,
    trained: Sequence[str],
    opened: set[str],
    groups: Mapping[str, list[nn.Parameter]],
    task: Task[Any, Any],
    parts: Parts,
    recipe: Recipe,
    precision: str,
    classes: Sequence[LengthClass],
) -> tuple[PhasePlan, dict[float, Weight]]:
    for name, parameters in groups.items():
        for p in parameters:
            p.requires_grad_(name in trained)
    set_modes(parts.module)
    everything = {**dict(parts.module.named_parameters()), **dict(parts.module.named_buffers())}
    for name, module in parts.frozen.items():
        everything |= {f"{name}.{k}": v for k, v in module.state_dict(keep_vars=True).items()}
    gradients = sum(p.numel() * p.element_size() for g in trained for p in groups[g])
    mean = (
        sum(max(4, p.element_size()) * p.numel() for g in opened for p in groups[g])
        if recipe.averaging.ema is not None
        else 0
    )
    weights = {
        c.padded_s: weigh(task, parts, precision, c.padded_s, c.tokens, recipe.loop.gradient_checkpointing)
        for c in thinned(classes, WEIGHED)
    }
    lengths = []
    for c in thinned(classes, WEIGHED):
        n = max(1, min(c.most, int(recipe.loop.at_once_s / c.padded_s + 1e-9)))
        lengths.append(Length(c.padded_s, n, c.tokens, weights[c.padded_s].bytes_of(n) / 1e9))
    plan = PhasePlan(
        number=number + 1,
        trained={g: sum(p.numel() for p in groups[g]) for g in trained},
        weights_gb=bytes_of(everything) / 1e9,
        gradients_gb=gradients / 1e9,
        optimiser_gb=2 * gradients / 1e9,
        mean_gb=mean / 1e9,
        lengths=lengths,
        fits=[],
    )
    fits = [fit_of(gb, plan.fixed_gb, classes, weights) for gb in GPUS_GB]
    return PhasePlan(**{**vars(plan), "fits": fits}), weights


def fit_of(gb: int, fixed_gb: float, classes: Sequence[LengthClass], weights: Mapping[float, Weight]) -> Fit:
    """How much at once leaves the margin that a search would leave."""
    left = ((1 - MARGIN) * gb - CONTEXT_GB - fixed_gb) * 1e9
    fitting = {s: max(0, int((left - w.base_bytes) / max(1.0, w.bytes_an_utterance))) for s, w in weights.items()}
    most = {c.padded_s: c.most for c in classes}
    longest = max(weights)
    n = min(fitting[longest], most[longest])
    return Fit(gb, n, max(min(fitting[s], most[s]) * s for s in weights) if n else 0.0)


def _steps(
    recipe: Recipe,
    loader: StepLoader,
    classes: Sequence[LengthClass],
    weights: Mapping[float, Weight],
    precision: str,
) -> Steps:
    durations_s = loader.manifest.column("duration_s")
    n = sum(c.mean for c in classes)
    audio_s = n * float(durations_s.mean())
    padded_s = sum(c.mean * c.padded_s for c in classes)
    known = sorted(weights)
    flops = sum(c.mean * weights[min(known, key=lambda s: abs(s - c.padded_s))].flops_an_utterance for c in classes)
    steps = loader.plan.max_steps
    peaks = {name: PEAKS[name].half if precision in ("bf16", "fp16") else PEAKS[name].single for name in PLANNED_FOR}
    hours = {name: flops * steps / (REACHED * peak) / 3600 for name, peak in peaks.items()}
    share = max(0.0, 1 - audio_s / padded_s)
    return Steps(steps, loader.plan.epoch_at(steps), len(durations_s), audio_s, share, flops, hours)


def lines_of(plan: TrainingPlan) -> list[str]:
    """As a person reads it."""
    lines = [f"{plan.task}, {plan.parameters / 1e6:.2f} M parameters, {plan.precision}"]
    for p in plan.phases:
        groups = ", ".join(f"{g} {n / 1e6:.2f} M" for g, n in p.trained.items())
        lines.append(f"phase {p.number}: {groups} train" if len(plan.phases) > 1 else f"trained: {groups}")
        lines.append(
            f"  memory whatever the batch: {_size(p.fixed_gb)} (weights {_size(p.weights_gb)}, gradients "
            f"{_size(p.gradients_gb)}, optimiser {_size(p.optimiser_gb)}, running mean {_size(p.mean_gb)})"
        )
        lines += [
            f"  {x.utterances:4d} × {x.padded_s:5.1f} s of {x.tokens} tokens: activations {_size(x.activations_gb)}"
            for x in p.lengths
        ]
        lines += [
            f"  a GPU of {f.gpu_gb:3d} GB: "
            + (f"{f.utterances} of the longest at once, up to {f.micro_s:.0f} s" if f.utterances else "does not fit")
            for f in p.fits
        ]
    s = plan.steps
    if s is not None:
        lines.append(
            f"{s.steps} steps, {s.epochs:.1f} epochs of {s.utterances} utterances; a step is {s.audio_s_a_step:.0f} s "
            f"of audio, {100 * s.padded_share:.0f} % of what the device hears is padding"
        )
        lines.append(f"{s.flops_a_step / 1e12:.2f} · 10¹² operations a step")
        hours = ", ".join(f"{name} {_hours(h)}" for name, h in s.hours.items())
        lines.append(f"an estimate, at {100 * REACHED:.0f} % of each one's peak, without dev and test: {hours}")
    return [*lines, *plan.notes]


def _hours(h: float) -> str:
    return f"{h:.1f} h" if h >= 1 else f"{60 * h:.1f} min"


def _size(gb: float) -> str:
    return f"{gb:.2f} GB" if gb >= 0.1 else f"{1000 * gb:.1f} MB"
