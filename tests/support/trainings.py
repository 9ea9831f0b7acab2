"""The trainer as a program, on however many ranks, in an environment that says nothing of others."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def environment(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    taken = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "NUM_NODES", "PODCTL_VOLUME"}
    env = {k: v for k, v in os.environ.items() if k not in taken}
    return {**env, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def command(*argv: object) -> list[str]:
    return [sys.executable, "-P", "-m", "trainer", *map(str, argv)]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{step:08d}/model/model.safetensors")
