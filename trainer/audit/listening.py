"""A first model listens to manifests, and which model that was."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.apply import Trained
from trainer.audit.agreement import Heard, heard_of
from trainer.audit.opening import Opened, beside
from trainer.audit.written import lines_into
from trainer.evaluate import predict


def listen(trained: Trained, opened: Sequence[Opened], live: Callable[[str, int, int], None]) -> list[Heard]:
    """What it hears in each manifest's utterances, those apart that are too long for it (its `data.max_s`).

    Kept as NAME.heard.jsonl beside each manifest: hours of a GPU, which `--rows` brings back.
    """
    all_heard = []
    for one in opened:
        short = np.flatnonzero(one.manifest.column("duration_s") <= trained.recipe.data.max_s)

        def heard(done: int, total: int, name: str = f"{one.name}, heard") -> None:
            live(name, done, total)

        among = one.manifest.subset(short)
        found, _ = predict(trained.task, trained.parts, among, trained.recipe, trained.machine, on_batch=heard)
        kept: list[dict[str, Any]] = [{k: row[k] for k in ("id", "text", "reason") if k in row} for row in found]
        with lines_into(beside(one.path, "heard")) as lines:
            for row in kept:
                lines.add(row)
        all_heard.append(heard_of(kept))
    return all_heard


def told(trained: Trained) -> dict[str, Any]:
    """Which model it is: its name, its provenance, and the hash of its weights as they listen."""
    return {
        "model": trained.name,
        "weights_sha256": weights_sha256(trained.parts.module),
        "provenance": dict(trained.provenance),
    }


def weights_sha256(module: nn.Module) -> str:
    """Of names and bytes of all that is saved of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
