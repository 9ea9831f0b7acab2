"""What a training leaves behind: evaluations, checkpoints, the final report, the exported model."""

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remote.fence import Fence
from remote.files import read_json, write_atomic, write_json
from remote.rundir import RunDir
from trainer.checkpoint import Checkpoint, complete_checkpoints, prune, save_checkpoint
from trainer.chosen import build_chosen, chosen, describe_weights, is_mean_measured
from trainer.data.manifest import Manifest
from trainer.data.sets import DataSets
from trainer.ema import Ema
from trainer.evaluate import Evaluation, as_json, evaluate, table_lines, with_decode
from trainer.logbook import Logbook
from trainer.loop import State
from trainer.machine import Machine, placed
from trainer.optim import Optimiser
from trainer.recipe.base import Recipe
from trainer.reporting import write_rows as write_all
from trainer.task import Bad, Parts, Task, make_task
from trainer.worst import keep_sounds, worst_rows

log = logging.getLogger(__name__)


@dataclass
class Desk:
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
    ema: Ema | None = None

    def measure_dev(self) -> dict[str, float]:
        began = time.monotonic()
        with self._measured() as parts:
            result = evaluate(self.task, parts, self.data.dev, self.recipe, self.machine, stop=self.stop)
        metrics = dict(result.report.metrics)
        if self.machine.is_first:
            self.quarantine(result.bad)
            self._write_dev(result, describe_weights(self.recipe, [self.state.step]))
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
        contents = self._contents()
        if contents is not None:
            s = self.state
            metrics = s.metrics if s.evaluated == s.step else {}
            saved = save_checkpoint(
                self.run.checkpoints, s.step, lambda to: self._write(to, contents), self.fence, metrics
            )
            if s.best_step >= 0:
                best = {"step": s.best_step, "metric": self.recipe.eval.metric, "value": s.best_value}
                self.fence.check()
                write_json(self.run.best, best)
            prune(self.run.checkpoints, self.recipe.loop.keep_last, self.recipe.n_kept_best, self._better, self.fence)
            log.info("saved step %d", s.step)
        self.machine.wait()
        return saved

    def quarantine(self, bad: Sequence[Bad]) -> None:
        write_quarantine(self.run, bad)

    def forget_beyond(self, step: int) -> None:
        """A resumed run measures again what it measured after the checkpoint."""
        path = self.run.reports / "dev.jsonl"
        if self.machine.is_first and path.exists():
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # buckets may hold U+2028
            kept = [line for line in lines if _step_of(line) <= step and (step > 0 or _step_of(line) < 0)]
            write_atomic(path, "".join(line + "\n" for line in kept).encode())

    def finish(self, book: Logbook | None) -> None:
        """The best model, chosen on dev, meets the test set once; then it is exported."""
        best = chosen(complete_checkpoints(self.run.checkpoints), self.recipe)
        metrics, weights = best[0].metrics, describe_weights(self.recipe, [c.step for c in best])
        log.info("best on dev: step %d, %s %.2f %%", best[0].step, self.recipe.eval.metric, 100 * self._better(metrics))
        self.release()
        before = self._test_before() if self.recipe.eval.before_training else None
        parts = placed(build_chosen(self.task, self.recipe, best), self.machine)
        if len(best) > 1:
            metrics = self._dev_of_mean(parts, weights)
        headline, metrics = self._dev_headline(metrics, weights), {f"dev/{k}": v for k, v in metrics.items()}
        if self.data.test is not None:
            headline, test_metrics = self._test(parts, self.data.test, before, weights)
            metrics |= {f"test/{k}": v for k, v in test_metrics.items()}
        if not self.machine.is_first:
            return
        self._export(parts, best, metrics, weights)
        self.fence.check()
        summary = {"headline": headline, "best_step": best[0].step, "weights": weights, "metrics": metrics}
        write_json(self.run.summary, summary)
        if book:
            book.numbers(self.state.step, {k: v for k, v in metrics.items() if k.startswith("test/")})
            book.text(self.state.step, "summary", headline)
        log.info("%s", headline)
        log.info("model: %s", self.run.export)
        if self.recipe.log.report:
            self._show()

    def _show(self) -> None:
        """The page for a person. Whatever goes wrong with it is said, and the run is none the worse."""
        self.fence.check()
        try:
            from trainer.report.page import write_page

            write_page(self.run.root, self.run.page)
            log.info("report: %s", self.run.page)
        except Exception as e:
            log.warning("no report was written: %s", e)

    def release(self) -> None:
        """Give back what training needed: at the end one model at a time has to fit, as it did all along."""
        self.optimiser.forget()
        if self.ema:
            self.ema.forget()
        if not self.optimiser.sharded:  # which has given it back already
            self.parts.module.to("meta")

    def _dev_of_mean(self, parts: Parts, weights: str) -> dict[str, float]:
        """What a mean of checkpoints is worth, said beside the best of them."""
        result = evaluate(self.task, parts, self.data.dev, self.recipe, self.machine, stop=self.stop)
        metrics = dict(result.report.metrics)
        if self.machine.is_first:
            line = as_json(result, self._provenance(weights), step=self.state.step)
            write_atomic(self.run.reports / "dev-mean.json", (line + "\n").encode())
            write_rows(self.run.reports / "dev-mean.rows.jsonl", result)
            log.info("dev, %s: %s %.2f %%", weights, self.recipe.eval.metric, 100 * self._better(metrics))
        return metrics

    def _test(
        self, parts: Parts, test: Manifest, before: Evaluation | None, weights: str
    ) -> tuple[str, dict[str, float]]:
        lines, ways = [], self.task.final_decodes(self.recipe.eval.decode)
        first: Evaluation | None = None
        metrics: dict[str, float] = {}
        if before:
            lines.append(as_json(before, self._provenance(describe_weights(self.recipe, [0])), what="before training"))
            if self.machine.is_first:
                write_rows(self.run.reports / "test-before-training.rows.jsonl", before)
        for name, decode in ways.items():
            recipe = with_decode(self.recipe, decode)
            result = evaluate(make_task(recipe), parts, test, recipe, self.machine, stop=self.stop)
            lines.append(as_json(result, self._provenance(weights), what=name))
            if self.machine.is_first:
                log.info("test, %s", name)
                for line in table_lines(result.report):
                    log.info("%s", line)
                slug = name.replace(" ", "-")
                write_rows(self.run.reports / f"test-{slug}.rows.jsonl", result)
                self.quarantine(result.bad)
            if first is None:
                first, metrics = result, dict(result.report.metrics)
                self._keep_sounds(result, test, f"test-{name.replace(' ', '-')}.rows.jsonl")
            else:
                metrics[f"{self.recipe.eval.metric}/{name}"] = result.report.metrics[self.recipe.eval.metric]
        assert first is not None
        if self.machine.is_first:
            write_atomic(self.run.reports / "test.jsonl", "".join(line + "\n" for line in lines).encode())
        return _headline("test", first, before, self.recipe, weights), metrics

    def _keep_sounds(self, result: Evaluation, test: Manifest, rows_file: str) -> None:
        """Of the worst utterances, for whoever wants to know why."""
        how = self.recipe.eval
        if self.machine.is_first:
            keep_sounds(worst_rows(result.rows, how), test, self.run.sounds, how.worst, rows_file)

    def _test_before(self) -> Evaluation | None:
        if self.data.test is None:
            return None
        torch.manual_seed(self.recipe.loop.seed)
        fresh = placed(self.task.build(), self.machine)
        return evaluate(self.task, fresh, self.data.test, self.recipe, self.machine, stop=self.stop)

    def _export(self, parts: Parts, best: Sequence[Checkpoint], metrics: Mapping[str, float], weights: str) -> None:
        beside = self.run.root / f".export.{self.fence.epoch}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        self.task.export(parts.module, beside)
        write_json(beside / "recipe.json", self.recipe.model_dump(mode="json"))
        dev = {k.removeprefix("dev/"): v for k, v in metrics.items() if k.startswith("dev/")}
        made = {"step": best[0].step, "dev": dev, "device": self.machine.name, "data": self._data_told()}
        write_json(beside / "provenance.json", {**self._provenance(weights), **made})
        self.fence.check()
        if self.run.export.exists():
            shutil.rmtree(self.run.export)
        os.rename(beside, self.run.export)

    def _data_told(self) -> dict[str, Any]:
        train = self.data.train
        return {"sha256": self.data.sha256, "train_hours": train.hours, "train_utterances": len(train)}

    def _contents(self) -> "Contents | None":
        """What rank 0 saves; where it is dealt to all ranks, they gather it there. None on the others."""
        ema, sharded = self.ema.state_dict() if self.ema else None, self.optimiser.sharded
        state = dataclasses.asdict(self.state)
        contents = Contents(self.parts.module, self.optimiser.state_dict(), ema, state)
        if sharded:
            module = sharded.whole_on_first() or contents.module
            contents = Contents(module, sharded.gathered(contents.optimiser), sharded.gathered(ema), state)
        return contents if self.machine.is_first else None

    def _write(self, directory: Path, contents: "Contents") -> None:
        write_contents(directory, contents, self.task, self.recipe, self.data, self.machine)

    def _write_dev(self, result: Evaluation, weights: str) -> None:
        self.run.reports.mkdir(parents=True, exist_ok=True)
        with (self.run.reports / "dev.jsonl").open("a", encoding="utf-8") as f:
            f.write(as_json(result, self._provenance(weights), step=self.state.step) + "\n")
        write_rows(self.run.reports / "dev.rows.jsonl", result)

    def _better(self, metrics: dict[str, float]) -> float:
        return metrics[self.recipe.eval.metric]

    def _dev_headline(self, metrics: Mapping[str, float], weights: str) -> str:
        metric = self.recipe.eval.metric
        return f"dev {metric.upper()} {100 * metrics[metric]:.2f} % ({weights}); no test set was given"

    @contextmanager
    def _measured(self) -> Iterator[Parts]:
        """The model as it is measured: where the recipe says so, its running mean stands in for its weights."""
        ema = self.ema if is_mean_measured(self.recipe) else None
        sharded = self.optimiser.sharded
        if sharded:
            yield dataclasses.replace(self.parts, module=sharded.whole(ema.mean if ema else None))
            return
        with ema.in_place(self.optimiser.named()) if ema else nullcontext():
            yield self.parts

    def _provenance(self, weights: str) -> dict[str, Any]:
        return {**run_provenance(self.run), "weights": weights}


@dataclass(frozen=True)
class Contents:
    """Of a checkpoint, whole."""

    module: nn.Module
    optimiser: Mapping[str, Any]
    ema: Mapping[str, Any] | None
    state: Mapping[str, Any]


def write_contents(
    directory: Path, contents: Contents, task: Task[Any, Any], recipe: Recipe, data: DataSets, machine: Machine
) -> None:
    task.save(contents.module, directory / "model")
    torch.save(contents.optimiser, directory / "state" / "optimizer.pt")
    if contents.ema is not None:
        torch.save(contents.ema, directory / "state" / "ema.pt")
    write_json(
        directory / "state" / "state.json",
        {
            "state": dict(contents.state),
            "recipe": recipe.model_dump(mode="json"),
            "data_sha256": data.sha256,
            "world": machine.world,
        },
    )


def run_provenance(run: RunDir) -> dict[str, Any]:
    """Whose numbers these are: the run, and the commit of the code it was started with."""
    source = read_json(run.source) or {}
    return {"run": run.root.name, "commit": source.get("commit", ""), "dirty": source.get("dirty")}


def write_rows(path: Path, result: Evaluation) -> None:
    """Every row of an evaluation, so that it can be scored again."""
    write_all(path, result.rows)


def write_quarantine(run: RunDir, bad: Sequence[Bad]) -> None:
    """Adds what is new to quarantine.jsonl."""
    if not bad:
        return
    known = set(run.quarantine.read_text(encoding="utf-8").split("\n")) if run.quarantine.exists() else set()
    lines = [json.dumps({"id": b.id, "reason": b.reason}, ensure_ascii=False) for b in bad]
    fresh = [line for line in dict.fromkeys(lines) if line not in known]
    if fresh:
        run.root.mkdir(parents=True, exist_ok=True)
        with run.quarantine.open("a", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in fresh))
        log.warning("%d more utterances in %s; the first: %s", len(fresh), run.quarantine, fresh[0])


def _headline(name: str, result: Evaluation, before: Evaluation | None, recipe: Recipe, weights: str) -> str:
    m, metric = result.report.metrics, recipe.eval.metric
    text = f"{name} {metric.upper()} {100 * m[metric]:.2f} %"
    if metric == "wer" and recipe.eval.bootstrap:
        text += f" (95 % {100 * m['wer_low']:.1f}–{100 * m['wer_high']:.1f})"
    text += f", {m['utterances']:.0f} utterances, normaliser {recipe.eval.normaliser}"
    if recipe.averaging.best or recipe.averaging.ema:
        text += f"; {weights}"
    if before:
        text += f"; before training {100 * before.report.metrics[metric]:.1f} %"
    return text


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62  # torn by a kill
