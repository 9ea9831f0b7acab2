"""What every family does with models in the Hub's layout: load, put adapters around, take off again, save, export."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from trainer.errors import BadRecipe
from trainer.nf4 import dequantise, quantise
from trainer.recipe.adapters import Adapters
from trainer.recipe.loop import Loop

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)  # what adapters go around (peft 0.21)


def beside_weights(what: Any, name: str | None, revision: str | None, hint: str = "") -> Any:
    """Something of the model's that lies beside its weights: `what` is one of the Auto classes. Raises BadRecipe."""
    try:
        return what.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _refused(name, e, hint) from None


def with_weights(cls: Any, name: str, revision: str | None = None, **more: Any) -> Any:
    """A model with its trained weights; its shape alone under the device "meta", from nothing but its configuration.

    Raises BadRecipe.
    """
    try:
        if torch.get_default_device().type == "meta":
            return _without_weights(cls, name, revision, **more)
        return cls.from_pretrained(name, revision=revision or "main", **more)
    except (OSError, ValueError, RuntimeError) as e:
        raise _refused(name, e) from None


def _without_weights(cls: Any, name: str, revision: str | None, **more: Any) -> Any:
    config = more.get("config") or AutoConfig.from_pretrained(name, revision=revision or "main")
    make = getattr(cls, "from_config", None) or cls._from_config
    attention = more.get("attn_implementation")
    return make(config, dtype=more.get("dtype", torch.float32), attn_implementation=attention)


def _refused(name: str | None, e: Exception, hint: str = "") -> BadRecipe:
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    return BadRecipe.one("train.model.name", f"{name} can't be loaded: {reason}{hint}")


def base_dtype(how: Adapters | None) -> torch.dtype:
    """Of weights as they are loaded: what is trained is float32, what adapters stand on may be less."""
    return torch.bfloat16 if how is not None and how.base_dtype == "bf16" else torch.float32


def saved_dtype(how: Loop) -> torch.dtype:
    """Of weights that a training saved: as it held them, so that a resume rounds nothing off."""
    return torch.float64 if how.precision == "fp64" else torch.float32


def plain(module: nn.Module) -> Any:
    """The model inside, with or without adapters around its layers."""
    inside: Any = module
    return inside.get_base_model() if hasattr(module, "get_base_model") else inside


def adapted(
    model: Any,
    how: Adapters | None,
    saved: Path | None,
    presets: Mapping[str, str] | None = None,
    whole: Sequence[str] | None = None,
) -> nn.Module:
    """The model itself, or with adapters around the layers that the recipe names, by one of the task's `presets` or an
    expression of its own: those that were saved, or fresh ones beside modules that are trained `whole`.

    With qlora, what the preset all-linear names is nf4. Raises BadRecipe where adapters would go nowhere.
    """
    if how is None:
        module: nn.Module = model
        return module
    from peft import LoraConfig, PeftModel, get_peft_model

    presets = presets or {}
    if how.kind == "qlora":
        quantise(model, presets["all-linear"], how.double_quantisation)
    if saved is not None:
        return PeftModel.from_pretrained(model, str(saved), is_trainable=True)
    targets = presets.get(how.targets, how.targets)
    _check_targets(model, how.targets, targets)
    config = LoraConfig(
        r=how.r,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        use_dora=how.kind == "dora",
        target_modules=targets,
        modules_to_save=list(whole) if whole else None,
    )
    try:
        return get_peft_model(model, config)
    except (ValueError, NotImplementedError) as e:  # what peft knows of some layers only when it gets there
        raise BadRecipe.one("train.adapters.targets", f"{how.targets!r}: {str(e).splitlines()[0]}") from None


def _check_targets(model: nn.Module, asked: str, expression: str) -> None:
    """Raises BadRecipe where an expression names nothing, or something that adapters can't go around."""
    there = dict(model.named_modules())
    hit = {name: m for name, m in there.items() if name and re.fullmatch(expression, name)}
    wrong = next((name for name, m in hit.items() if not isinstance(m, ADAPTABLE)), None)
    if hit and wrong is None:
        return
    what = f"names {wrong}, a {type(there[wrong]).__name__}" if wrong else "names no layer of this model"
    some = ", ".join(_one_of_each(n for n, m in there.items() if isinstance(m, ADAPTABLE)))
    raise BadRecipe.one("train.adapters.targets", f"{asked!r} {what}; adapters go around layers such as {some}")


def _one_of_each(names: Iterable[str], most: int = 5) -> list[str]:
    """The first name that ends in each way, a few of them."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.rpartition(".")[2], name)
    return list(first.values())[:most]


def save(module: nn.Module, directory: Path, processor: Any) -> None:
    """What `adapted` needs to come back to these weights, or all of them."""
    # peft takes another vocabulary for a resized embedding; what is fresh is saved with the adapters anyway (0.21)
    more = {} if plain(module) is module else {"save_embedding_layers": False}
    module.save_pretrained(str(directory), **more)  # type: ignore[operator]
    processor.save_pretrained(str(directory))


def export(module: nn.Module, directory: Path, processor: Any) -> None:
    """The whole model, adapters merged in float32, as plain transformers loads it."""
    if plain(module) is not module:
        module = module.float()  # a bf16 base would round the adapters off
        dequantise(module)
        module = module.merge_and_unload()  # type: ignore[operator]
    plain(module).save_pretrained(str(directory))
    processor.save_pretrained(str(directory))
