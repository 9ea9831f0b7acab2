"""Whether what a frozen network says of a recording may be kept: only where it says the same in every epoch."""

from collections.abc import Callable

from trainer.recipe.augment import Augment
from trainer.recipe.base import Recipe


def why_not_cached(recipe: Recipe) -> str:
    """A sentence why this training's frozen outputs may not be kept; empty where they may.

    The one place that decides it: whatever makes a frozen network's output change over a training is added here.
    """
    if recipe.task != "whisper":
        return f"task {recipe.task} has no frozen network whose output could be kept"
    if recipe.loss.distill is not None:
        return "loss.distill is on, and the teacher hears every recording anew"
    if getattr(recipe, "phases", None):
        return "phases open and close what is trained, and an encoder that has moved says something else"
    changing: dict[str, Callable[[Augment], object]] = {
        "speed": lambda how: how.speed and set(how.speed) != {1.0},
        "gain_db": lambda how: how.gain_db,
        "noise_snr_db": lambda how: how.noise_snr_db is not None and how.noise_p > 0,
        "join_p": lambda how: how.join_p,
        "spec": lambda how: how.spec is not None and how.spec.p > 0,
    }
    found = [f"augment.{name}" for name, is_on in changing.items() if any(map(is_on, recipe.augments))]
    if found:
        return f"{', '.join(found)} changes in every epoch what the encoder hears"
    if recipe.adapters is not None:
        if recipe.adapters.targets != "decoder":
            return f"adapters.targets is {recipe.adapters.targets}: the encoder learns, unless it is decoder"
    elif recipe.optim.rates.get("encoder", 1.0) != 0:
        return "the encoder is trained, unless optim.rates says encoder: 0, or adapters.targets is decoder"
    return ""
