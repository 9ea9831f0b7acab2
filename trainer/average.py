"""`trainer average`: the mean of several models' weights, as one model that loads like any other.

What has adapters is merged first. Factors of low rank are never averaged here: the mean of two products is not the
product of two means, and the factors of two runs need not even point the same way.
"""

import argparse
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from remote.files import read_json, write_json
from remote.rundir import RunDir
from trainer.checkpoint import COMPLETE, Checkpoint, complete_checkpoints, verify
from trainer.chosen import build_chosen, chosen, describe_weights
from trainer.desk import run_provenance
from trainer.errors import BadData
from trainer.recipe.load import parse_recipe
from trainer.task import make_task

log = logging.getLogger(__name__)

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ALIKE = "average models that began as the same one"
WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx")  # all formats: another would hold other weights
VOCABULARY = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Model:
    """A whole model on disk, in the Hub's layout, and where it came from."""

    name: str
    path: Path
    provenance: dict[str, Any]

    def files(self) -> dict[str, str]:
        """Tensor → the file that holds it."""
        index = read_json(self.path / INDEX)
        if index:
            return dict(index["weight_map"])
        with safe_open(self.path / WHOLE, "pt") as f:
            return dict.fromkeys(f.keys(), WHOLE)


def average(args: argparse.Namespace) -> int:
    """Write the mean of the sources: runs, checkpoints, exports, or other models of one architecture."""
    out: Path = args.out.absolute()
    if len(args.sources) < 2:
        raise BadData("one model is its own mean", "name two or more: runs, checkpoints (step-…), or exports")
    if out.exists():
        raise BadData(f"{out} is there already", "name a folder that is not")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        models = [whole_model(path, Path(folder) / f"source-{n}") for n, path in enumerate(args.sources)]
        beside = Path(folder) / "mean"
        mean_of(models, beside)
        os.rename(beside, out)
    print(f"{out}: the mean of {', '.join(m.name for m in models)}")
    return 0


def mean_of(models: Sequence[Model], out: Path) -> None:
    """The mean, tensor by tensor, in float64, saved in the sources' dtype; side files are the first one's.

    Raises BadData, in a sentence, where the models are not of one architecture and vocabulary.
    """
    files = [m.files() for m in models]
    _check_alike(models, files)
    weights = set(files[0].values())
    shutil.copytree(models[0].path, out, ignore=lambda at, names: [n for n in names if Path(n).suffix in WEIGHTS])
    with ExitStack() as stack:
        opened = [_Reader(stack, m.path) for m in models]
        for shard in sorted(weights):
            means = {}
            for name in (n for n, f in files[0].items() if f == shard):
                tensors = [reader.get(of[name], name) for reader, of in zip(opened, files, strict=True)]
                means[name] = _mean(name, tensors, models)
            save_file(means, out / shard, {"format": "pt"})
    of = [{"name": m.name, **m.provenance} for m in models]
    write_json(out / "provenance.json", {"weights": f"mean of {len(models)} models", "of": of})


class _Reader:
    """Tensors of one model, read when they are asked for."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._stack, self._path = stack, path
        self._open: dict[str, Any] = {}

    def get(self, file: str, name: str) -> Tensor:
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(self._path / file, "pt"))
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor


def _mean(name: str, tensors: Sequence[Tensor], models: Sequence[Model]) -> Tensor:
    shapes = [list(t.shape) for t in tensors]
    for model, shape in zip(models, shapes, strict=True):
        if shape != shapes[0]:
            raise BadData(f"{models[0].name} and {model.name} differ in {name}: {shapes[0]} and {shape}", ALIKE)
    if not tensors[0].is_floating_point():
        return tensors[0]  # counters and positions
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    total = torch.zeros(shapes[0], dtype=torch.float64)  # one tensor at a time; the mean of equals is they
    for model, t in zip(models, tensors, strict=True):
        if not bool(torch.isfinite(t).all()):
            raise BadData(f"{name} of {model.name} holds numbers that are not finite", "leave that model out")
        total += t
    return (total / len(tensors)).to(dtype)


def _check_alike(models: Sequence[Model], files: Sequence[dict[str, str]]) -> None:
    first = models[0]
    kind = (read_json(first.path / "config.json") or {}).get("model_type", "")
    for model, there in zip(models[1:], files[1:], strict=True):
        other = (read_json(model.path / "config.json") or {}).get("model_type", "")
        if other != kind:
            raise BadData(f"{first.name} is a {kind}, {model.name} a {other}: they have no mean", ALIKE)
        only = sorted(files[0].keys() ^ there.keys())
        if only:
            raise BadData(f"{first.name} and {model.name} do not both have {only[0]}", ALIKE)
        for name in VOCABULARY:
            one, two = (m.path / name for m in (first, model))
            if one.is_file() and two.is_file() and one.read_bytes() != two.read_bytes():
                raise BadData(f"{first.name} and {model.name} write with different vocabularies ({name})", ALIKE)


def whole_model(path: Path, room: Path) -> Model:
    """A source as a whole model: itself, or what is made of a run's or a checkpoint's weights in `room`.

    Raises BadData where there is none.
    """
    if (path / "checkpoints").is_dir():
        found = complete_checkpoints(path / "checkpoints")
        if not found:
            raise BadData(f"{path} holds no complete checkpoint", "let it train until it has saved")
        recipe = parse_recipe(read_json(found[-1].state / "state.json")["recipe"])
        return _exported(path.name, chosen(found, recipe), room)
    if (path / "adapter_config.json").is_file():
        if not (path.parent / COMPLETE).is_file():
            raise BadData(
                f"{path} holds adapters without the training that they belong to", "name its run, or export it first"
            )
        path = path.parent  # a checkpoint's model/
    if (path / COMPLETE).is_file():
        mark = read_json(path / COMPLETE)
        checkpoint = Checkpoint(path, int(mark["step"]), dict(mark["metrics"]))
        verify(checkpoint)
        return _exported(f"{path.absolute().parents[1].name} step {checkpoint.step}", [checkpoint], room)
    if (path / "config.json").is_file() and ((path / WHOLE).is_file() or (path / INDEX).is_file()):
        return Model(str(path), path, read_json(path / "provenance.json") or {})
    raise BadData(f"{path} is no model", "name a run, a checkpoint (step-…), an export, or a model in the Hub's layout")


def _exported(name: str, checkpoints: Sequence[Checkpoint], room: Path) -> Model:
    raw = read_json(checkpoints[0].state / "state.json")["recipe"]
    recipe = parse_recipe({**raw, "loss": {}}, expand=True)  # a teacher may be gone by now, and nobody asks it
    task = make_task(recipe)
    log.info("merging %s", name)
    task.export(build_chosen(task, recipe, checkpoints).module, room)
    write_json(room / "recipe.json", raw)
    run = RunDir(checkpoints[0].path.absolute().parents[1])
    weights = describe_weights(recipe, [c.step for c in checkpoints])
    return Model(name, room, {**run_provenance(run), "weights": weights})
