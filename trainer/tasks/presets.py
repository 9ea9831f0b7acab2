"""Which layers adapters go around, by the presets' names: found in the model, as every kind names its layers itself."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

STACKED = r"(?:.*\.)?(?:layers?|h)\.\d+\."
QUERIES = ("q_proj", "v_proj", "query", "value", "linear_q", "linear_v")


def presets_of(model: Any) -> Mapping[str, str]:
    """all-linear: each linear layer in a stack of layers; attention: queries and values; decoder: as all-linear, there.

    WavLM hands its attention's weights to torch by themselves and would pass adapters by: they are left out.
    """
    listens = {id(m) for m in model.get_encoder().modules()}
    inside = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and re.match(STACKED, name) and not _is_passed_by(model, name)
    }
    writes = [name for name, m in inside.items() if id(m) not in listens]
    return {
        "all-linear": _any_of(inside),
        "attention": _any_of(n for n in inside if n.rpartition(".")[2] in QUERIES),
        "decoder": _any_of(writes),
    }


def _is_passed_by(model: Any, name: str) -> bool:
    kind = getattr(getattr(model.config, "encoder", None), "model_type", "")
    return kind == "wavlm" and re.match(r"encoder\..*\.attention\.", name) is not None


def _any_of(names: Any) -> str:
    """An expression for these names, layers of a stack told by their place alone."""
    kinds = sorted({re.sub(r"\.\d+\.", r".<>.", name) for name in names})
    return "|".join(re.escape(kind).replace("<>", r"\d+") for kind in kinds) or "nothing"
