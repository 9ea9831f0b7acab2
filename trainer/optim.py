"""The optimiser, its parameter groups and its schedule. A step with a non-finite gradient is skipped on the device."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.ranks import Joined
from trainer.recipe.optim import Optim
from trainer.sharded import Sharded


def schedule_at(step: int, warmup_steps: int, max_steps: int, how: Optim) -> float:
    """What the schedule leaves of the peak rate in the step (from 0): 1 in the warm-up, `final_share` at the end."""
    if step < warmup_steps or how.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    left = 1.0 - done if how.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return how.final_share + (1.0 - how.final_share) * left


@dataclass
class Optimiser:
    """AdamW over a module's trainable parameters. One without a gradient is passed by, and has no state."""

    adamw: torch.optim.AdamW
    groups: dict[str, dict[str, nn.Parameter]]  # the task's, with their parameters by name
    how: Optim
    scaler: torch.amp.GradScaler | None = None
    joined: Joined | None = None  # gradients of several ranks
    sharded: Sharded | None = None  # or these, with their weights, in parts

    def join(self) -> None:
        """From here on the gradients of what trains now are added over all ranks, and no others."""
        if self.joined:
            self.joined.close()
        self.joined = Joined([p for p in self.named().values() if p.requires_grad])

    def set_rates(self, lr: float, factors: Mapping[str, float]) -> None:
        """This step's rate into every parameter group: × its group's factor × its layer's."""
        for group in self.adamw.param_groups:
            factor = factors.get(group["name"], 0.0)
            group["lr"] = lr * factor * self.how.layer_decay ** group["depth"]

    def backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()  # type: ignore[no-untyped-call]

    @property
    def scale(self) -> Tensor | None:
        """What the loss is multiplied by, on the device; None where it is not, or before the first loss."""
        scale = self.scaler._scale if self.scaler else None  # get_scale() would wait for the device
        return None if scale is None else scale.detach().clone()

    def step(self, lost: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip and step; (gradient norm, 1.0 where the step was skipped), both on the device.

        Skipped is a step whose gradient is not finite, or whose loss is not (`lost` is 1). The fused kernel looks at
        `found_inf` itself (the hook that GradScaler uses), so nothing waits for the host.
        """
        is_scaled = self.scaler is not None and self.scaler._scale is not None
        if self.scaler and is_scaled:
            self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_(self.named().values(), self.how.clip_norm, foreach=True)
        if self.sharded:
            norm = self.sharded.norm(norm)
        skipped = (~torch.isfinite(norm)).float()
        if lost is not None:
            skipped = torch.maximum(skipped, lost.to(skipped))
        self.adamw.found_inf = skipped  # type: ignore[attr-defined]
        self.adamw.step()
        if self.scaler and is_scaled:
            self.scaler.update()  # by what unscale_ found: the scale is halved, or grows after 2000 whole steps
        if self.sharded:
            self.sharded.mark()
        self.clear()
        return norm.detach(), skipped

    def clear(self) -> None:
        """No gradients, as before a step."""
        if self.joined:
            self.joined.clear()
        else:
            self.adamw.zero_grad(set_to_none=True)

    def named(self, groups: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
        """The parameters of some groups by name, of all where none are named."""
        chosen = self.groups if groups is None else groups
        return {name: p for g in chosen for name, p in self.groups[g].items()}

    def forget(self) -> None:
        """Give its memory back: the training is over."""
        if self.joined:
            self.joined.close()
        if self.sharded:
            self.sharded.forget()
        self.adamw.state.clear()
        self.adamw.param_groups.clear()
        self.groups.clear()

    def state_dict(self) -> dict[str, object]:
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict() if self.scaler else None}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]


def make_optimiser(
    module: nn.Module,
    groups: Mapping[str, list[str]],
    how: Optim,
    precision: str,
    depths: Mapping[str, int] | None = None,
) -> Optimiser:
    """AdamW with groups for each of the task's: matrices apart from what is not decayed, and layer from layer.

    `depths` says how many layers lie above a parameter, where the rate depends on it.
    """
    by_name = dict(module.named_parameters())
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    parts: dict[tuple[str, int, float], list[nn.Parameter]] = {}
    for group, members in groups.items():
        for name in members:
            p = by_name[name]
            is_decayed = p.ndim >= 2 and id(p) not in embeddings
            depth = depths[name] if depths is not None and how.layer_decay < 1 else 0
            parts.setdefault((group, depth, how.weight_decay if is_decayed else 0.0), []).append(p)
    param_groups = [
        {"params": ps, "weight_decay": decay, "name": name, "depth": depth}
        for (name, depth, decay), ps in sorted(
            parts.items(), key=lambda part: (list(groups).index(part[0][0]), part[0][1])
        )
    ]
    adamw = torch.optim.AdamW(param_groups, lr=how.lr, betas=how.betas, eps=how.eps, fused=True)
    scaler = torch.amp.GradScaler(next(module.parameters()).device.type) if precision == "fp16" else None
    return Optimiser(adamw, {g: {n: by_name[n] for n in members} for g, members in groups.items()}, how, scaler)
