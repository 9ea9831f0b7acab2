"""What every family does with models in the Hub's layout: load, put adapters around, take off again, save, export."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.errors import BadRecipe
from trainer.recipe.adapters import Lora


def beside_weights(what: Any, name: str | None, revision: str | None, hint: str = "") -> Any:
    """Something of the model's that lies beside its weights: `what` is one of the Auto classes. Raises BadRecipe."""
    try:
        return what.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _refused(name, e, hint) from None


def with_weights(cls: Any, name: str, revision: str | None = None, **more: Any) -> Any:
    """A model with its trained weights. Raises BadRecipe."""
    try:
        return cls.from_pretrained(name, revision=revision or "main", **more)
    except (OSError, ValueError, RuntimeError) as e:
        raise _refused(name, e) from None


def _refused(name: str | None, e: Exception, hint: str = "") -> BadRecipe:
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    return BadRecipe.one("train.model.name", f"{name} can't be loaded: {reason}{hint}")


def base_dtype(lora: Lora | None) -> torch.dtype:
    """Of weights as they are loaded: what is trained is float32, what adapters stand on may be less."""
    return torch.bfloat16 if lora is not None and lora.base_dtype == "bf16" else torch.float32


def plain(module: nn.Module) -> Any:
    """The model inside, with or without adapters around its layers."""
    inside: Any = module
    return inside.get_base_model() if hasattr(module, "get_base_model") else inside


def adapted(
    model: Any, lora: Lora | None, saved: Path | None, targets: str = "", whole: Sequence[str] | None = None
) -> nn.Module:
    """The model itself, or with adapters around the layers that the expression names: those that were saved, or fresh
    ones beside modules that are trained `whole`. Raises BadRecipe where no layer has such a name."""
    if lora is None:
        module: nn.Module = model
        return module
    from peft import LoraConfig, PeftModel, get_peft_model

    if saved is not None:
        return PeftModel.from_pretrained(model, str(saved), is_trainable=True)
    if not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise BadRecipe.one("train.adapters.targets", f"{lora.targets!r} names no layer of this model")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=list(whole) if whole else None,
    )
    return get_peft_model(model, config)


def save(module: nn.Module, directory: Path, processor: Any) -> None:
    """What `adapted` needs to come back to these weights, or all of them."""
    # peft takes another vocabulary for a resized embedding; what is fresh is saved with the adapters anyway (0.21)
    more = {} if plain(module) is module else {"save_embedding_layers": False}
    module.save_pretrained(str(directory), **more)  # type: ignore[operator]
    processor.save_pretrained(str(directory))


def export(module: nn.Module, directory: Path, processor: Any) -> None:
    """The whole model, adapters merged, as plain transformers loads it."""
    if plain(module) is not module:
        module = module.float().merge_and_unload()  # type: ignore[operator]  # a bf16 base would round them off
    plain(module).save_pretrained(str(directory))
    processor.save_pretrained(str(directory))
