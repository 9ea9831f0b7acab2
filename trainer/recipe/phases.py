"""What trains when: parts of a training in which some groups of parameters are open and the others frozen."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.recipe.section import Section


class Phase(Section):
    """From an epoch on, until the next phase opens: what trains, and at which rate."""

    from_epoch: float = Field(
        ge=0, description="epochs done when it opens, 0 of the first; each phase has one step at least"
    )
    train: Literal["all"] | Annotated[list[str], Field(min_length=1)] = Field(
        description="groups of parameters that train, by the task's names, or all; the others are frozen, in eval mode"
    )
    lr: float | None = Field(default=None, gt=0, description="peak learning rate; that of optim by default")
    rates: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="parameter group → factor on lr; those of optim by default"
    )
    warmup_steps: int | None = Field(default=None, ge=0, description="the rate rises from 0 over so many steps")
    warmup_share: float | None = Field(
        default=None, ge=0, le=1, description="or over this share of the phase's own steps; that of optim by default"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wrong = []
        if self.warmup_steps is not None and self.warmup_share is not None:
            wrong.append("give either warmup_steps or warmup_share, one of them")
        if isinstance(self.train, list):
            wrong += [f"{g} stands in train twice" for g in sorted({g for g in self.train if self.train.count(g) > 1})]
            wrong += [f"rates.{g}: {g} does not train in this phase" for g in self.rates or () if g not in self.train]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def mistakes_in(
    phases: Sequence[Phase], rates: Mapping[str, float], epochs: float | None, groups: Sequence[str]
) -> list[str]:
    """What contradicts itself between phases, and between them and the rest of the recipe."""
    wrong = _unknown("optim.rates", rates, groups)
    for n, phase in enumerate(phases):
        wrong += _unknown(f"phases.{n}.train", phase.train if isinstance(phase.train, list) else (), groups)
        wrong += _unknown(f"phases.{n}.rates", phase.rates or (), groups)
    if all(rates.get(g) == 0 for g in groups) and (not phases or any(p.rates is None for p in phases)):
        wrong.append("optim.rates: every group is 0: there is nothing to train")
    if not phases:
        return wrong
    if phases[0].from_epoch != 0:
        wrong.append(f"phases.0.from_epoch is {phases[0].from_epoch:g}: the first phase begins at 0")
    for n, (before, phase) in enumerate(pairwise(phases), start=1):
        if phase.from_epoch <= before.from_epoch:
            wrong.append(
                f"phases.{n}.from_epoch ({phase.from_epoch:g}) must be above that of the phase before it "
                f"({before.from_epoch:g})"
            )
    for n, phase in enumerate(phases):
        if epochs is not None and phase.from_epoch >= epochs:
            wrong.append(
                f"phases.{n} never opens: it begins at epoch {phase.from_epoch:g}, and loop.epochs is {epochs:g}"
            )
        for group in phase.train if isinstance(phase.train, list) else ():
            if phase.rates is None and rates.get(group) == 0:
                wrong.append(f"phases.{n} trains {group}, and optim.rates.{group} is 0")
    return wrong


def _unknown(where: str, names: Iterable[str], groups: Sequence[str]) -> list[str]:
    return [f"{where}: there is no group {n!r}: known are {', '.join(groups)}" for n in names if n not in groups]
