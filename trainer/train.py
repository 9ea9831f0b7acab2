"""One training from an experiment file to a report: set up or resume, run the loop, test the best model, export it."""

import dataclasses
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from remote.fence import Fence, take_epoch
from remote.files import read_json
from remote.rundir import EPOCH_ENV, RunDir
from trainer.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from trainer.data.health import write_health
from trainer.data.loader import StepLoader
from trainer.data.places import say_cache
from trainer.data.sets import DataSets, open_data
from trainer.desk import Contents, Desk, write_contents, write_quarantine
from trainer.ema import Ema
from trainer.errors import BadData, BadRecipe
from trainer.gradient import LossModule
from trainer.logbook import Logbook, ProgressFile
from trainer.loop import State, Training
from trainer.machine import Machine, placed, start_machine
from trainer.nf4 import n_weights
from trainer.nonfinite import Dumps
from trainer.optim import Optimiser, make_optimiser
from trainer.pieces import Rescue, forget_pieces, joined_pieces, remembered
from trainer.recipe.base import Recipe
from trainer.recipe.load import changes, load_recipe, parse_recipe
from trainer.sharded import Sharded
from trainer.task import Parts, Task, make_task
from trainer.together import leave

log = logging.getLogger(__name__)


def train(file: Path, run: RunDir, *, debug: bool = False, stop: Callable[[], bool] | None = None) -> None:
    """Train what the file says, in this run directory, from its newest checkpoint if it has one.

    `stop` is asked once a step and a batch; SIGTERM and SIGINT are what it says by default.
    Raises StopAsked (saved), Superseded, BadRecipe, BadData, Diverged, NoSpace.
    """
    recipe = load_recipe(file)
    if debug:
        recipe = recipe.debugged()
    stop = stop or StopFlag().is_set
    machine = start_machine(recipe.loop)
    stop = machine.any_asked(stop)
    fence = _fence(run, machine)
    progress = ProgressFile(run.progress, recipe.loop.steps or 0) if machine.is_first else None
    if progress:
        progress.update(phase="load")
    _say_machine(machine)
    data = open_data(recipe)
    _say_data(data, run, machine)
    if machine.is_first:
        write_health(run, recipe, data)
    say_cache(recipe.data, [data.train, data.dev])
    recipe = recipe.resolved(lambda: data.train.column("text"))
    for line in recipe.exceptions():
        log.warning("exception: %s", line)
    task = make_task(recipe)
    if machine.is_first:
        _join_pieces(run, task, recipe, data, machine, fence)
    machine.wait()
    resumed = _newest(run, recipe, data)
    torch.manual_seed(recipe.loop.seed)
    parts = task.build(resumed.model if resumed else None)
    sharded = _sharded(task, parts, recipe, machine)
    if sharded is None:
        parts = placed(parts, machine)
    depths = task.depths(parts.module) if recipe.optim.layer_decay < 1 else None
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, machine.precision, depths)
    optimiser.sharded = sharded
    ema = Ema(recipe.averaging.ema) if recipe.averaging.ema is not None else None
    log.info("%.3f M weights", n_weights(parts.module) / 1e6)
    state = _restore(resumed, optimiser, ema, machine) if resumed else State()
    book = Logbook(run, state.step, recipe.log.tensorboard) if machine.is_first else None
    loader = StepLoader(task, data.train, recipe, machine.rank, machine.world)
    for padded_s, n in remembered(run.cut):
        loader.cut.learn(padded_s, n)
    progress = ProgressFile(run.progress, loader.plan.max_steps) if machine.is_first else None
    if resumed:
        log.info("resumed from step %d of %d", state.step, loader.plan.max_steps)
    desk = Desk(task, parts, recipe, machine, run, fence, data, optimiser, state, stop, ema)
    desk.forget_beyond(state.step)
    if sharded and machine.ranks:
        Rescue(run, machine.ranks, sharded, lambda: _held(sharded, optimiser, ema, state))
    try:
        Training(
            task=task,
            parts=parts,
            recipe=recipe,
            machine=machine,
            loader=loader,
            optimiser=optimiser,
            state=state,
            book=book,
            progress=progress,
            evaluate=desk.measure_dev,
            save=desk.save,
            on_bad=desk.quarantine,
            stop_asked=stop,
            ema=ema,
            dumps=Dumps(run.nonfinite, {"recipe": recipe.model_dump(mode="json")}),
        ).run()
        if progress:
            progress.update(phase="evaluate")
        desk.finish(book)
        leave()
    finally:
        if book:
            book.close()


class StopFlag:
    """Set by SIGTERM and SIGINT; the loop looks at it once a step."""

    def __init__(self) -> None:
        self._set = False
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, self._on_signal)

    def is_set(self) -> bool:
        return self._set

    def _on_signal(self, *_: object) -> None:
        self._set = True


def _sharded(task: Task[Any, Any], parts: Parts, recipe: Recipe, machine: Machine) -> Sharded | None:
    """The parts on this machine with their weights dealt to all ranks, where the recipe asks for it."""
    if not recipe.loop.shard or machine.world == 1:
        return None
    if machine.precision == "fp64":
        parts.module.double()
    for module in parts.frozen.values():
        machine.place(module).eval().requires_grad_(False)
    return Sharded(LossModule(task, parts.module), parts.module, machine)


def _held(sharded: Sharded, optimiser: Optimiser, ema: Ema | None, state: State) -> Mapping[str, Any]:
    """All that a checkpoint is made of, as far as this rank has it."""
    held = {"weights": sharded.tensors, "optimiser": optimiser.state_dict(), "state": dataclasses.asdict(state)}
    return {**held, "ema": ema.state_dict() if ema else None}


def _join_pieces(
    run: RunDir, task: Task[Any, Any], recipe: Recipe, data: DataSets, machine: Machine, fence: Fence
) -> None:
    """What ranks held when the memory of one ran out becomes the newest checkpoint."""
    held = joined_pieces(run.pieces)
    if held is not None and held["state"]["step"] > 0:
        module = task.build().module
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, t in held["weights"].items():
                own[name].data = t.clone()
        state = held["state"]
        contents = Contents(module, held["optimiser"], held["ema"], state)
        metrics = state["metrics"] if state["evaluated"] == state["step"] else {}
        save_checkpoint(
            run.checkpoints,
            state["step"],
            lambda to: write_contents(to, contents, task, recipe, data, machine),
            fence,
            metrics,
        )
        log.info("saved step %d, out of what the ranks held", state["step"])
    forget_pieces(run.pieces)


def _fence(run: RunDir, machine: Machine) -> Fence:
    """The epoch that the runner took for this attempt; one of our own where there is no runner."""
    epoch = os.environ.get(EPOCH_ENV, "")
    if epoch:
        return Fence(run.writer, int(epoch))
    return Fence(run.writer, take_epoch(run.writer) if machine.is_first else 0)


def _newest(run: RunDir, recipe: Recipe, data: DataSets) -> Checkpoint | None:
    """The checkpoint to go on from. Raises BadRecipe or BadData where going on would be another training."""
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return None
    saved = read_json(checkpoint.state / "state.json")
    differs = changes(parse_recipe(saved["recipe"]), recipe)
    if differs:
        raise BadRecipe.one("train", "differs from what this run was trained with: " + "; ".join(differs))
    if saved["data_sha256"] != data.sha256:
        names = [k for k, v in data.sha256.items() if saved["data_sha256"].get(k) != v]
        raise BadData(
            f"the manifests of {', '.join(names)} changed since this run began: going on would be another training",
            "start a new run with --force-restart, or put the old manifests back",
        )
    return checkpoint


def _restore(checkpoint: Checkpoint, optimiser: Optimiser, ema: Ema | None, machine: Machine) -> State:
    def read(name: str) -> Any:
        if optimiser.sharded:  # from the disk, this rank's part alone
            return optimiser.sharded.dealt(torch.load(checkpoint.state / name, mmap=True, weights_only=True))
        return torch.load(checkpoint.state / name, map_location=machine.device, weights_only=True)

    optimiser.load_state_dict(read("optimizer.pt"))
    if ema:
        ema.load_state_dict(read("ema.pt"))
    return State(**read_json(checkpoint.state / "state.json")["state"])


def _say_machine(machine: Machine) -> None:
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else machine.device.type
    log.info("on %s, %s, %d rank(s), %d CPU threads", name, machine.precision, machine.world, torch.get_num_threads())


def _say_data(data: DataSets, run: RunDir, machine: Machine) -> None:
    for name, m in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        if m is not None:
            log.info("%s: %d utterances, %.2f h, %d unusable", name, len(m), m.hours, len(m.bad))
            if machine.is_first:
                write_quarantine(run, m.bad)
    for name, noise in data.noises.items():
        log.info("noise %s: %d recordings, %d unusable", name, len(noise.files), len(noise.bad))
        if machine.is_first:
            write_quarantine(run, noise.bad)
