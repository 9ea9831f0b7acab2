"""A small training put together from its pieces, and things that go wrong in it on purpose.

Run as a program it is one rank of several: `python -m support.training CASE.json`, under torchrun.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from support.speech import ctc_dict, recipe_dict, tdt_dict
from torch import nn

from trainer.data.loader import StepLoader
from trainer.data.manifest import open_manifests
from trainer.ema import Ema
from trainer.loop import State, Training
from trainer.machine import start_machine
from trainer.nonfinite import Dumps
from trainer.optim import make_optimiser
from trainer.recipe.load import parse_recipe
from trainer.task import make_task

FAMILIES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "whisper": recipe_dict,
    "parakeet": lambda corpus, **s: ctc_dict(corpus, "parakeet", **s),
    "wav2vec2": lambda corpus, **s: ctc_dict(corpus, "wav2vec2", **s),
    "tdt": lambda corpus, **s: tdt_dict(corpus, "tdt", **s),
}


class Book:
    """A logbook in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **values})


class Spoilt:
    """A task, but `after` sees what `losses` says of each batch, and may answer something else."""

    def __init__(self, task: Any, after: Callable[[Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        self._task, self._after = task, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def losses(self, module: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return self._after(batch, self._task.losses(module, batch))


def nan_for(ids: Sequence[str]) -> Callable[[Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Their loss is not a number, whatever the gradient."""

    def after(batch: Any, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bad = torch.tensor([float("nan") if i in ids else 0.0 for i in batch.ids])
        return {k: v + bad.to(v) for k, v in losses.items()}

    return after


class SmallMemory:
    """Runs out at the k-th pass through a module (forward or backward) of a micro-batch of more than `n` utterances."""

    def __init__(self, module: nn.Module, n: int, at: int, direction: str) -> None:
        self.n, self.at, self.passes, self.times = n, at, 0, 0
        self.most = 0  # passes of one micro-batch that is too large
        self.utterances = 0
        leaves = [m for m in module.modules() if not list(m.children())]
        # a module's own backward hooks forbid what some models do in place
        hook = self._on_output if direction == "backward" else self._pass
        self.hooks = [m.register_forward_hook(hook) for m in leaves]

    def begin(self, utterances: int) -> None:
        self.utterances, self.passes = utterances, 0

    def _on_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.requires_grad:
            first.register_hook(lambda gradient: self._pass())

    def _pass(self, *_: Any) -> None:
        if self.utterances <= self.n:
            return
        self.passes += 1
        self.most = max(self.most, self.passes)
        if self.passes == self.at:
            self.times += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")


def watch(training: Training, memory: SmallMemory) -> None:
    """The memory learns how large each micro-batch is, before anything is computed of it."""
    task = training.task
    inner = task.prepare

    def prepare(batch: Any, parts: Any, train: bool) -> Any:
        memory.begin(len(batch.ids))
        return inner(batch, parts, train)

    task.prepare = prepare  # type: ignore[method-assign]


def make_training(
    folder: Path,
    family: str = "whisper",
    *,
    precision: str = "fp64",
    spoil: Callable[..., Any] | None = None,
    ema: float | None = None,
    dumps: Path | None = None,
    **sections: Any,
) -> Training:
    """On the corpus in `folder`: some steps of eight utterances, nothing evaluated, nothing saved."""
    loop = {"precision": precision, "micro_s": 1000.0, "steps": 3, "step_utts": 8, **sections.pop("loop", {})}
    phases = sections.pop("phases", [])
    train = FAMILIES[family](folder, loop=loop, log={"every_steps": 1}, **sections)
    recipe = parse_recipe({**train, "phases": phases})
    manifest = open_manifests([folder / "train.jsonl"], recipe.data, folder, folder / "cache")
    machine = start_machine(recipe.loop)
    task: Any = make_task(recipe)
    if spoil:
        task = Spoilt(task, spoil)
    torch.manual_seed(0)
    parts = task.build()
    machine.place(parts.module)
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, precision)
    return Training(
        task=task,
        parts=parts,
        recipe=recipe,
        machine=machine,
        loader=StepLoader(task, manifest, recipe, machine.rank, machine.world),
        optimiser=optimiser,
        state=State(),
        book=Book(),  # type: ignore[arg-type]
        progress=None,
        evaluate=lambda: {"wer": 1.0},
        save=lambda: None,
        on_bad=lambda bad: None,
        stop_asked=lambda: False,
        ema=Ema(ema) if ema else None,
        dumps=Dumps(dumps) if dumps else None,
    )


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in training.parts.module.named_parameters()}


def furthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def main(case: Path) -> None:
    """One rank: what went wrong only on rank 1, what became of it, and the weights, are left beside the case."""
    how = json.loads(case.read_text())
    torch.use_deterministic_algorithms(True)
    import os

    rank = int(os.environ["RANK"])
    mine = rank == how.get("on_rank", 1)
    training = make_training(
        Path(how["corpus"]),
        how.get("family", "whisper"),
        spoil=nan_for(how["nan"]) if how.get("nan") and mine else None,
        dumps=case.parent / "nonfinite",
        **how.get("sections", {}),
    )
    memory = None
    if how.get("memory") and mine:
        memory = SmallMemory(training.parts.module, **how["memory"])
        watch(training, memory)
    ended = ""
    try:
        training.run()
    except Exception as e:
        ended = f"{type(e).__name__}: {e}"
    s = training.state
    said = {"ended": ended, "step": s.step, "skipped": s.skipped, "times": memory.times if memory else 0}
    (case.parent / f"rank-{rank}.json").write_text(json.dumps(said))
    torch.save(weights_of(training), case.parent / f"rank-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
