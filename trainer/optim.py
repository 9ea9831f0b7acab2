"""The optimiser, its parameter groups and its schedule. A step with a non-finite gradient is skipped on the device."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.errors import BadRecipe
from trainer.recipe.optim import Optim


def lr_at(step: int, max_steps: int, how: Optim) -> float:
    """The factor on every group's rate in the step (from 0): linear warm-up, then the schedule to `final_share`."""
    warmup = round(how.warmup_share * max_steps)
    if step < warmup:
        return (step + 1) / warmup
    if how.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    left = 1.0 - done if how.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return how.final_share + (1.0 - how.final_share) * left


@dataclass
class Optimiser:
    """AdamW over a module's trainable parameters."""

    adamw: torch.optim.AdamW
    parameters: list[nn.Parameter]
    how: Optim
    scaler: torch.amp.GradScaler | None = None

    def set_rate(self, step: int, max_steps: int) -> float:
        """The learning rate of this step, put into every group; returns that of factor 1."""
        factor = lr_at(step, max_steps, self.how)
        for group in self.adamw.param_groups:
            group["lr"] = self.how.lr * group["factor"] * factor
        return self.how.lr * factor

    def backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> tuple[Tensor, Tensor]:
        """Clip and step; (gradient norm, 1.0 where it was not finite and the step was skipped), both on the device.

        The fused kernel looks at `found_inf` itself (the hook that GradScaler uses), so nothing waits for the host.
        """
        if self.scaler:
            self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.how.clip_norm, foreach=True)
        skipped = (~torch.isfinite(norm)).float()
        if self.scaler:
            self.scaler.step(self.adamw)
            self.scaler.update()
        else:
            self.adamw.found_inf = skipped  # type: ignore[attr-defined]
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm.detach(), skipped

    def forget(self) -> None:
        """Give its memory back: the training is over."""
        self.adamw.state.clear()
        self.adamw.param_groups.clear()
        self.parameters.clear()

    def state_dict(self) -> dict[str, object]:
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict() if self.scaler else None}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]


def make_optimiser(module: nn.Module, groups: Mapping[str, list[str]], how: Optim, precision: str) -> Optimiser:
    """AdamW with a group for each named group, matrices apart from what is not decayed.

    Groups with factor 0 are frozen. Raises BadRecipe for a group the task doesn't have.
    """
    for name in how.group_lr:
        if name not in groups:
            raise BadRecipe.one(
                f"train.optim.group_lr.{name}", f"there is no such group: known are {', '.join(groups)}"
            )
    by_name = dict(module.named_parameters())
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    param_groups: list[dict[str, object]] = []
    parameters: list[nn.Parameter] = []
    for name, members in groups.items():
        factor = how.group_lr.get(name, 1.0)
        chosen = [by_name[m] for m in members]
        if factor == 0:
            for p in chosen:
                p.requires_grad_(False)
            continue
        decayed = [p for p in chosen if p.ndim >= 2 and id(p) not in embeddings]
        plain = [p for p in chosen if p.ndim < 2 or id(p) in embeddings]
        for ps, decay in ((decayed, how.weight_decay), (plain, 0.0)):
            if ps:
                param_groups.append({"params": ps, "weight_decay": decay, "factor": factor, "name": name})
                parameters += ps
    if not parameters:
        raise BadRecipe.one("train.optim.group_lr", "every group is frozen: there is nothing to train")
    adamw = torch.optim.AdamW(param_groups, lr=how.lr, betas=how.betas, eps=how.eps, fused=True)
    scaler = torch.amp.GradScaler(parameters[0].device.type) if precision == "fp16" else None
    return Optimiser(adamw, parameters, how, scaler)
