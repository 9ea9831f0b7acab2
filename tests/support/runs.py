"""Trainings in tests: one that is told to stop, and what two of them must have in common at their ends."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class After:
    """Says stop from the n-th question on."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final_state(checkpoints: Path, step: int) -> dict[str, Any]:
    """All that a step's checkpoint says of a training: weights, optimiser, running mean, and where it stands."""
    checkpoint = checkpoints / f"step-{step:08d}"
    state = json.loads((checkpoint / "state" / "state.json").read_text())["state"]
    state.pop("train_s")  # the only thing that may differ: how long it took
    ema = checkpoint / "state" / "ema.pt"
    return {
        "model": {f.name: load_file(f) for f in (checkpoint / "model").glob("*.safetensors")},
        "adamw": torch.load(checkpoint / "state" / "optimizer.pt")["adamw"],
        "ema": torch.load(ema) if ema.exists() else None,
        "state": state,
    }


def assert_same(a: Any, b: Any, at: str = "") -> None:
    """Bit for bit, whatever is nested in them."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for k in a:
            assert_same(a[k], b[k], f"{at}/{k}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}/{i}")
    else:
        assert a == b, at
