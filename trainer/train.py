"""One training from an experiment file to a report: set up or resume, run the loop, test the best model, export it."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remote.fence import Fence, take_epoch
from remote.files import read_json, write_atomic, write_json
from remote.rundir import EPOCH_ENV, RunDir, Volume
from trainer.checkpoint import Checkpoint, best_first, complete_checkpoints, latest_checkpoint, prune, save_checkpoint
from trainer.data.loader import StepLoader
from trainer.data.manifest import Manifest, open_manifests, split_off
from trainer.errors import BadData, BadRecipe
from trainer.evaluate import Evaluation, as_json, evaluate, table_lines, with_decode
from trainer.logbook import Logbook, ProgressFile
from trainer.loop import State, Training
from trainer.machine import Machine, start_machine
from trainer.optim import Optimiser, make_optimiser
from trainer.recipe.base import Recipe
from trainer.recipe.load import changes, load_recipe, parse_recipe
from trainer.task import Bad, Parts, Task, make_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSets:
    train: Manifest
    dev: Manifest
    test: Manifest | None

    @property
    def sha256(self) -> dict[str, str]:
        return {"train": self.train.sha256, "dev": self.dev.sha256, "test": self.test.sha256 if self.test else ""}


def data_root() -> Path:
    """Where relative data paths resolve: the volume's data/, or here where there is no volume."""
    volume = Volume.from_env()
    return volume.data if volume else Path.cwd()


def cache_root() -> Path:
    volume = Volume.from_env()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return volume.cache if volume else home / "podctl"


def open_data(recipe: Recipe) -> DataSets:
    """The recipe's sets, with dev taken out of train where it says so. Raises BadData."""
    d, root, cache = recipe.data, data_root(), cache_root()

    def opened(names: Sequence[str], limit: int | None) -> Manifest:
        return open_manifests([root / n for n in names], d, root, cache, limit=limit)

    if d.dev_from_train:
        whole = opened(d.train, None)
        rest, dev = split_off(whole, len(opened(d.train[:1], None)), d.dev_from_train, recipe.loop.seed)
        train = _limited(rest, d.limit_train)
        dev = _limited(dev, d.limit_dev)
    else:
        train, dev = opened(d.train, d.limit_train), opened(d.dev, d.limit_dev)
        both = np.flatnonzero(np.isin(dev.column("key"), train.column("key")))
        if len(both):
            raise BadData(f"{len(both)} ids stand in train and in dev, {dev[both[0]].id} among them", "keep dev apart")
    test = opened(d.test, d.limit_test) if d.test else None
    if d.shuffle_audio:
        seed = recipe.loop.seed
        test = test.shuffled_audio(seed) if test else None
        train, dev = train.shuffled_audio(seed), dev.shuffled_audio(seed)
    return DataSets(train, dev, test)


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
    fence = _fence(run, machine)
    progress = ProgressFile(run.progress, recipe.loop.steps or 0) if machine.is_first else None
    if progress:
        progress.update(phase="load")
    _say_machine(machine)
    data = open_data(recipe)
    _say_data(data, run, machine)
    resumed = _newest(run, recipe, data)
    task = make_task(recipe)
    torch.manual_seed(recipe.loop.seed)
    parts = placed(task.build(resumed.model if resumed else None), machine)
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, machine.precision)
    _say_size(parts)
    state = _restore(resumed, optimiser, machine) if resumed else State()
    book = Logbook(run, state.step, recipe.log.tensorboard) if machine.is_first else None
    loader = StepLoader(task, data.train, recipe, machine.rank, machine.world)
    progress = ProgressFile(run.progress, loader.plan.max_steps) if machine.is_first else None
    if resumed:
        log.info("resumed from step %d of %d", state.step, loader.plan.max_steps)
    desk = _Desk(task, parts, recipe, machine, run, fence, data, optimiser, state, stop)
    desk.forget_beyond(state.step)
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
        ).run()
        if progress:
            progress.update(phase="evaluate")
        desk.finish(book)
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


@dataclass
class _Desk:
    """What the loop hands over to be written down: evaluations, checkpoints, the final report."""

    task: Task[Any, Any]
    parts: Parts
    recipe: Recipe
    machine: Machine
    run: RunDir
    fence: Fence
    data: DataSets
    optimiser: Optimiser
    state: State
    stop: Callable[[], bool]

    def measure_dev(self) -> dict[str, float]:
        began = time.monotonic()
        result = evaluate(self.task, self.parts, self.data.dev, self.recipe, self.machine, stop=self.stop)
        metrics = dict(result.report.metrics)
        if self.machine.is_first:
            self.quarantine(result.bad)
            self._write_dev(result)
            before = " (before training)" if self.state.step == 0 else ""
            took = time.monotonic() - began
            log.info("dev at step %d%s, %.1f s", self.state.step, before, took)
            for line in table_lines(result.report):
                log.info("%s", line)
            for row in result.rows[:3]:
                log.info("    said %r, heard %r", row["reference"], row["text"])
        return metrics

    def save(self) -> Checkpoint | None:
        saved = None
        if self.machine.is_first:
            s = self.state
            metrics = s.metrics if s.evaluated == s.step else {}
            saved = save_checkpoint(self.run.checkpoints, s.step, self._write, self.fence, metrics)
            if s.best_step >= 0:
                best = {"step": s.best_step, "metric": self.recipe.eval.metric, "value": s.best_value}
                self.fence.check()
                write_json(self.run.best, best)
            prune(
                self.run.checkpoints, self.recipe.loop.keep_last, self.recipe.loop.keep_best, self._better, self.fence
            )
            log.info("saved step %d", s.step)
        self.machine.wait()
        return saved

    def quarantine(self, bad: Sequence[Bad]) -> None:
        write_quarantine(self.run, bad)

    def forget_beyond(self, step: int) -> None:
        """A resumed run measures again what it measured after the checkpoint."""
        path = self.run.reports / "dev.jsonl"
        if self.machine.is_first and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step and (step > 0 or _step_of(line) < 0)]
            write_atomic(path, "".join(line + "\n" for line in kept).encode())

    def finish(self, book: Logbook | None) -> None:
        """The best model, chosen on dev, meets the test set once; then it is exported."""
        best = self._best()
        if best is None:
            raise BadData("no checkpoint has a dev measurement: there is no best model", "lower eval.every_steps")
        log.info(
            "best on dev: step %d, %s %.2f %%", best.step, self.recipe.eval.metric, 100 * self._better(best.metrics)
        )
        parts = placed(self.task.build(best.model), self.machine)
        headline, metrics = self._dev_headline(best), {f"dev/{k}": v for k, v in best.metrics.items()}
        if self.data.test is not None:
            headline, test_metrics = self._test(parts, self.data.test)
            metrics |= {f"test/{k}": v for k, v in test_metrics.items()}
        if not self.machine.is_first:
            return
        self._export(parts, best)
        self.fence.check()
        write_json(self.run.summary, {"headline": headline, "best_step": best.step, "metrics": metrics})
        if book:
            book.numbers(self.state.step, {k: v for k, v in metrics.items() if k.startswith("test/")})
            book.text(self.state.step, "summary", headline)
        log.info("%s", headline)
        log.info("model: %s", self.run.export)

    def _test(self, parts: Parts, test: Manifest) -> tuple[str, dict[str, float]]:
        lines, ways = [], self.task.final_decodes(self.recipe.eval.decode)
        first: Evaluation | None = None
        metrics: dict[str, float] = {}
        before = self._test_before(test) if self.recipe.eval.before_training else None
        if before:
            lines.append(as_json(before, self._provenance(), what="before training"))
        for name, decode in ways.items():
            recipe = with_decode(self.recipe, decode)
            result = evaluate(make_task(recipe), parts, test, recipe, self.machine, stop=self.stop)
            lines.append(as_json(result, self._provenance(), what=name))
            if self.machine.is_first:
                log.info("test, %s", name)
                for line in table_lines(result.report):
                    log.info("%s", line)
                slug = name.replace(" ", "-")
                write_rows(self.run.reports / f"test-{slug}.rows.jsonl", result)
                self.quarantine(result.bad)
            if first is None:
                first, metrics = result, dict(result.report.metrics)
            else:
                metrics[f"{self.recipe.eval.metric}/{name}"] = result.report.metrics[self.recipe.eval.metric]
        assert first is not None
        if self.machine.is_first:
            write_atomic(self.run.reports / "test.jsonl", "".join(line + "\n" for line in lines).encode())
        return _headline("test", first, before, self.recipe), metrics

    def _test_before(self, test: Manifest) -> Evaluation:
        torch.manual_seed(self.recipe.loop.seed)
        fresh = placed(self.task.build(), self.machine)
        return evaluate(self.task, fresh, test, self.recipe, self.machine, stop=self.stop)

    def _export(self, parts: Parts, best: Checkpoint) -> None:
        beside = self.run.root / f".export.{self.fence.epoch}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        self.task.export(parts.module, beside)
        write_json(beside / "recipe.json", self.recipe.model_dump(mode="json"))
        write_json(beside / "provenance.json", {**self._provenance(), "step": best.step, "dev": best.metrics})
        self.fence.check()
        if self.run.export.exists():
            shutil.rmtree(self.run.export)
        os.rename(beside, self.run.export)

    def _write(self, directory: Path) -> None:
        self.task.save(self.parts.module, directory / "model")
        torch.save(self.optimiser.state_dict(), directory / "state" / "optimizer.pt")
        write_json(
            directory / "state" / "state.json",
            {
                "state": dataclasses.asdict(self.state),
                "recipe": self.recipe.model_dump(mode="json"),
                "data_sha256": self.data.sha256,
                "world": self.machine.world,
            },
        )

    def _write_dev(self, result: Evaluation) -> None:
        self.run.reports.mkdir(parents=True, exist_ok=True)
        with (self.run.reports / "dev.jsonl").open("a", encoding="utf-8") as f:
            f.write(as_json(result, self._provenance(), step=self.state.step) + "\n")
        write_rows(self.run.reports / "dev.rows.jsonl", result)

    def _better(self, metrics: dict[str, float]) -> float:
        return metrics[self.recipe.eval.metric]

    def _best(self) -> Checkpoint | None:
        ranked = best_first(complete_checkpoints(self.run.checkpoints), self._better)
        return ranked[0] if ranked else None

    def _dev_headline(self, best: Checkpoint) -> str:
        metric = self.recipe.eval.metric
        return f"dev {metric.upper()} {100 * best.metrics[metric]:.2f} % at step {best.step}; no test set was given"

    def _provenance(self) -> dict[str, Any]:
        return run_provenance(self.run)


def run_provenance(run: RunDir) -> dict[str, Any]:
    """Whose numbers these are: the run, and the commit of the code it was started with."""
    source = read_json(run.source) or {}
    return {"run": run.root.name, "commit": source.get("commit", ""), "dirty": source.get("dirty")}


def write_rows(path: Path, result: Evaluation) -> None:
    """Every row of an evaluation, so that it can be scored again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in result.rows).encode())


def write_quarantine(run: RunDir, bad: Sequence[Bad]) -> None:
    """Adds what is new to quarantine.jsonl."""
    if not bad:
        return
    known = set(run.quarantine.read_text(encoding="utf-8").splitlines()) if run.quarantine.exists() else set()
    lines = [json.dumps({"id": b.id, "reason": b.reason}, ensure_ascii=False) for b in bad]
    fresh = [line for line in dict.fromkeys(lines) if line not in known]
    if fresh:
        run.root.mkdir(parents=True, exist_ok=True)
        with run.quarantine.open("a", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in fresh))
        log.warning("%d more utterances in %s; the first: %s", len(fresh), run.quarantine, fresh[0])


def _headline(name: str, result: Evaluation, before: Evaluation | None, recipe: Recipe) -> str:
    m, metric = result.report.metrics, recipe.eval.metric
    text = f"{name} {metric.upper()} {100 * m[metric]:.2f} %"
    if metric == "wer" and recipe.eval.bootstrap:
        text += f" (95 % {100 * m['wer_low']:.1f}–{100 * m['wer_high']:.1f})"
    text += f", {m['utterances']:.0f} utterances, normaliser {recipe.eval.normaliser}"
    if before:
        text += f"; before training {100 * before.report.metrics[metric]:.1f} %"
    return text


def _limited(manifest: Manifest, limit: int | None) -> Manifest:
    if limit is None or limit >= len(manifest):
        return manifest
    return manifest.subset(np.sort(np.random.default_rng(0).permutation(len(manifest))[:limit]))


def placed(parts: Parts, machine: Machine) -> Parts:
    """The parts on the machine: the module to be trained or used, the frozen ones in eval mode and without gradient."""
    for module in parts.frozen.values():
        machine.place(module).eval().requires_grad_(False)
    return dataclasses.replace(parts, module=machine.place(parts.module))


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
        names = [k for k, v in data.sha256.items() if saved["data_sha256"][k] != v]
        raise BadData(
            f"the manifests of {', '.join(names)} changed since this run began: going on would be another training",
            "start a new run with --force-restart, or put the old manifests back",
        )
    return checkpoint


def _restore(checkpoint: Checkpoint, optimiser: Optimiser, machine: Machine) -> State:
    state = torch.load(checkpoint.state / "optimizer.pt", map_location=machine.device, weights_only=True)
    optimiser.load_state_dict(state)
    return State(**read_json(checkpoint.state / "state.json")["state"])


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62  # torn by a kill


def _say_machine(machine: Machine) -> None:
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else machine.device.type
    log.info("on %s, %s, %d rank(s), %d CPU threads", name, machine.precision, machine.world, torch.get_num_threads())


def _say_data(data: DataSets, run: RunDir, machine: Machine) -> None:
    for name, m in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        if m is not None:
            log.info("%s: %d utterances, %.2f h, %d unusable", name, len(m), m.hours, len(m.bad))
            if machine.is_first:
                write_quarantine(run, m.bad)


def _say_size(parts: Parts) -> None:
    sizes = [(p.numel(), p.requires_grad) for p in parts.module.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, t in sizes if t)
    log.info("%.3f M parameters, %.3f M trained", total / 1e6, trained / 1e6)
