"""The loop, whole: draw a step, sum its losses, divide by its counts, step, look, save.

It never asks which task it has. What an optimiser step is does not depend on how it was cut into micro-batches or
dealt to ranks, and a resumed training goes on as if it had not stopped.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from remote.clock import duration
from trainer.checkpoint import Checkpoint
from trainer.data.loader import Step, StepLoader
from trainer.ema import Ema
from trainer.errors import Diverged, StopAsked
from trainer.gradient import Gradient
from trainer.logbook import Logbook, ProgressFile
from trainer.machine import Machine
from trainer.nf4 import n_weights
from trainer.nonfinite import Dumps, Unread, look_into
from trainer.optim import Optimiser
from trainer.phases import Span, describe, open_phase, rate_at, span_at, spans_of
from trainer.probe import try_memory, wants_trial
from trainer.recipe.base import Recipe
from trainer.task import Bad, Parts, Task

log = logging.getLogger(__name__)


@dataclass
class State:
    """Where a training stands: all that a resume needs beside the model and the optimiser."""

    step: int = 0  # optimiser steps done
    evaluated: int = -1  # the step dev was last measured at
    best_step: int = -1
    best_value: float = float("inf")
    since_best: int = 0  # evaluations
    values: list[float] = field(default_factory=list)  # dev's, of every evaluation after the first step
    skipped: int = 0  # steps with a loss or a gradient that is not finite
    skipped_in_a_row: int = 0
    scale_lowered: int = 0  # steps skipped while fp16 looks for the scale of its loss
    audio_s: float = 0.0  # trained on so far
    train_s: float = 0.0  # spent in steps so far
    metrics: dict[str, float] = field(default_factory=dict)  # dev's, at `evaluated`
    stopped_early: bool = False


@dataclass
class Training:
    """One training with all it needs; `run` goes from where the state is to the end."""

    task: Task[Any, Any]
    parts: Parts
    recipe: Recipe
    machine: Machine
    loader: StepLoader
    optimiser: Optimiser
    state: State
    book: Logbook | None  # rank 0's
    progress: ProgressFile | None
    evaluate: Callable[[], dict[str, float]]  # dev's metrics now; raises StopAsked
    save: Callable[[], Checkpoint | None]
    on_bad: Callable[[Sequence[Bad]], None]
    stop_asked: Callable[[], bool]
    ema: Ema | None = None
    dumps: Dumps | None = None

    def run(self) -> None:
        """Raises StopAsked with everything saved, Diverged after too many non-finite steps."""
        self.max_steps = self.loader.plan.max_steps
        self.spans = spans_of(self.recipe, self.optimiser.groups, self.loader.plan)
        for n in range(len(self.spans), len(self.recipe.phases)):
            log.warning("phase %d never opens: the training ends before its epoch", n + 1)
        self._span: Span | None = None
        self._gradient = Gradient(self.task, self.parts, self.recipe, self.machine, self.loader, self.optimiser)
        self._saved_at = time.monotonic()
        self._counts = dict.fromkeys(self.task.losses_of, 0)
        self._weights: Mapping[str, float] = {}
        self._logged = (self.state.audio_s, self.state.train_s)  # as of the last log line
        self._unread: Unread | None = None
        self._look()  # before the first step: the model as it came, or what a stop interrupted
        if self.state.step < self.max_steps and not self.state.stopped_early:
            self._open(span_at(self.spans, self.state.step))  # its cut is known before a step is made
        self._began = time.monotonic()
        for step in self.loader.steps(self.state.step, self.max_steps):
            if self.state.stopped_early:
                break
            self._open(span_at(self.spans, step.number))
            self._step(step)
            self._look()
            self._began = time.monotonic()  # waiting for data belongs to a step, looking at it does not
        self._read_skipped()

    def _open(self, span: Span) -> None:
        """Nothing where the phase is open already; else its groups, and gradients joined over just those."""
        if span is self._span:
            return
        self._span = span
        open_phase(self.parts.module, self.optimiser, span)
        if self.ema:
            self.ema.join(self.optimiser.named(span.rates))
        self._gradient.open()
        # where weights are dealt, a trial that fails on one rank would leave the others waiting inside it
        if wants_trial(self.recipe.loop, self.machine.device) and not self.optimiser.sharded:
            try_memory(self._gradient, self.loader, self.recipe, self.machine)
        log.info("%s", describe(span, n_weights(self.parts.module, trained=True)))

    def _step(self, step: Step) -> None:
        keys = list(self.task.losses_of)
        mine = [sum(m.batch.counts[k] for m in step.micros) for k in keys]
        told = [*mine, int(self.stop_asked()), round(step.audio_s * 1000), len(step.bad)]
        *counts, stop, audio_ms, n_bad = self.machine.summed(told)
        if stop:
            self._stop()
        if n_bad:
            self._tell_bad(step.bad)
        lr = rate_at(self.spans, step.number, self.max_steps, self.recipe.optim)
        self.optimiser.set_rates(lr, self._span.rates if self._span else {})
        count_of = {k: max(1, c) for k, c in zip(keys, counts, strict=True)}
        self._weights = self.task.weights(step.number / self.max_steps)
        made = self._gradient.of(step, count_of, self._weights)
        scale = self.optimiser.scale
        norm, skipped = self.optimiser.step(made.lost)
        if self.ema:
            self.ema.update(self.optimiser.named())
        for k in keys:
            self._counts[k] += count_of[k]
        self._read_skipped()  # of the step before: its work is done by now
        self._unread = Unread.start(step.number + 1, made, skipped, scale)
        self.state.step = step.number + 1
        self.state.audio_s += audio_ms / 1000
        self.state.train_s += time.monotonic() - self._began
        if self.state.step % self.recipe.log.every_steps == 0 or self.state.step == self.max_steps:
            self._log(lr, norm)
        elif self.progress:
            self.progress.update(step=self.state.step, phase="train")

    def _tell_bad(self, mine: Sequence[Bad]) -> None:
        """Those of all ranks, on the one that writes."""
        bad = self.machine.gathered(list(mine))
        if self.machine.is_first:
            self.on_bad(bad)

    def _look(self) -> None:
        """After a step, and before the first: measure, keep, save, stop."""
        s, how = self.state, self.recipe
        last = s.step == self.max_steps
        is_kept = False
        if s.evaluated != s.step and self._evaluates_at(s.step, last):
            is_kept = self._evaluate()
        due = [
            is_kept,
            last,
            s.stopped_early,
            bool(how.loop.save_every_steps and s.step % how.loop.save_every_steps == 0),
            self.machine.is_first and time.monotonic() - self._saved_at >= how.loop.save_every_s,
        ]
        asked = [int(any(due)), int(self.stop_asked())]
        save, stop = self.machine.summed(asked) if self.machine.world > 1 else asked
        if stop:
            self._stop()
        if save and s.step > 0:
            self._save()

    def _evaluates_at(self, step: int, last: bool) -> bool:
        if step == 0:
            return self.recipe.eval.before_training
        return last or step % self.recipe.eval.every_steps == 0

    def _evaluate(self) -> bool:
        """True where this is among the best so far, of which as many are kept as the recipe says."""
        s = self.state
        if self.progress:
            self.progress.update(step=s.step, phase="evaluate")
        try:
            metrics = self.evaluate()
        except StopAsked:
            self._stop()
        value = metrics[self.recipe.eval.metric]
        s.evaluated, s.metrics = s.step, metrics
        improved = value < s.best_value and s.step > 0
        if improved:
            s.best_step, s.best_value, s.since_best = s.step, value, 0
        elif s.step > 0:
            s.since_best += 1
        patience = self.recipe.stop.patience
        if patience is not None and s.since_best >= patience and not s.stopped_early:
            s.stopped_early = True
            log.info("no better %s in %d evaluations: training ends here", self.recipe.eval.metric, patience)
        if self.book:
            self.book.numbers(s.step, {f"dev/{k}": v for k, v in metrics.items()})
        if self.progress:
            best = {"step": s.best_step, "metric": self.recipe.eval.metric, "value": s.best_value}
            self.progress.update(phase="train", best=best if s.best_step >= 0 else None)
        if s.step > 0:
            s.values.append(value)
        return s.step > 0 and sum(v <= value for v in s.values) <= self.recipe.n_kept_best

    def _save(self) -> None:
        if self.progress:
            self.progress.update(step=self.state.step, phase="save")
        self._read_skipped()
        self.save()
        self._saved_at = time.monotonic()
        if self.progress:
            self.progress.update(phase="train")

    def _stop(self) -> None:
        """Save where there is something to save, and leave."""
        if self.state.step > 0:
            self._save()
            raise StopAsked(
                f"stopped after step {self.state.step} of {self.max_steps}; saved", "run it again to resume"
            )
        raise StopAsked("stopped before the first step", "run it again to start")

    def _log(self, lr: float, norm: Tensor) -> None:
        s = self.state
        values: dict[str, float] = {}
        # the only waits for the device between evaluations
        for k, total in self._gradient.taken().items():
            values[f"loss/{k}"] = self._mean_over_ranks(total, self._counts[k])
            self._counts[k] = 0
        loss = sum(self._weights.get(k, 1.0) * values[f"loss/{k}"] for k in self.task.losses_of)
        grad_norm = float(norm)
        audio_then, train_then = self._logged
        audio_per_s = (s.audio_s - audio_then) / max(1e-9, s.train_s - train_then)
        self._logged = (s.audio_s, s.train_s)
        eta_s = (self.max_steps - s.step) * (s.train_s / max(1, s.step))
        epoch = self.loader.plan.epoch_at(s.step)
        values |= {"lr": lr, "grad_norm": grad_norm, "audio_s_per_s": audio_per_s, "epoch": epoch}
        values |= {"skipped_steps": float(s.skipped), "audio_h": s.audio_s / 3600}
        if self.optimiser.scaler:
            values["scale_lowered"] = float(s.scale_lowered)
        if len(self.spans) > 1 and self._span:
            values["phase"] = float(self._span.number + 1)
        if self.book:
            self.book.numbers(s.step, values)
        if self.progress:
            self.progress.update(
                step=s.step, phase="train", epoch=epoch, loss=loss, eta_s=eta_s, audio_s_per_s=audio_per_s
            )
        log.info(
            "step %d/%d  loss %.4f  lr %.2e  grad norm %.2f  %.0f audio-s/s  epoch %.1f  %s left",
            *(s.step, self.max_steps, loss, lr, grad_norm, audio_per_s, epoch, duration(eta_s)),
        )

    def _mean_over_ranks(self, total: float, count: int) -> float:
        if self.machine.world > 1:
            total = sum(self.machine.gathered([total]))
        return total / max(1, count)

    def _read_skipped(self) -> None:
        """What became of the step before: counted, and given up on after too many in a row."""
        unread, self._unread = self._unread, None
        if unread is None:
            return
        what, is_lost = unread.read()
        s, step = self.state, unread.step
        if what == "taken":
            s.skipped_in_a_row = 0
        elif what == "searching":
            s.scale_lowered += 1
            log.info("step %d was skipped: its gradient overflowed in fp16, and the scale of the loss is halved", step)
        else:
            s.skipped += 1
            s.skipped_in_a_row += 1
            names = look_into(unread, self.machine, self.dumps) if is_lost else ""
            log.warning(
                "step %d was skipped: its %s is not finite%s",
                *(step, "loss" if is_lost else "gradient", f" ({names})" if names else ""),
            )
            if s.skipped_in_a_row >= self.recipe.stop.max_nonfinite:
                raise Diverged(
                    f"{s.skipped_in_a_row} steps in a row had a loss or a gradient that is not finite (up to step "
                    f"{step}{': ' if names else ''}{names})",
                    "lower train.optim.lr, or train in bf16 or fp32; the last checkpoint is whole",
                )
