"""The optimiser: schedules, groups, and steps that are not taken."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from trainer.desk import Desk
from trainer.optim import make_optimiser
from trainer.recipe.optim import Optim
from trainer.task import Parts


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.ModuleList([nn.Embedding(4, 3), nn.LayerNorm(3)])})


def groups(m: nn.Module) -> dict[str, list[str]]:
    names = [n for n, _ in m.named_parameters()]
    return {g: [n for n in names if n.startswith(g)] for g in ("encoder", "decoder")}


def test_a_step_whose_gradient_is_not_finite_changes_nothing_at_all() -> None:
    m = module()
    optimiser = make_optimiser(m, groups(m), Optim(lr=0.1), "fp32")

    def step(value: float) -> tuple[float, float]:
        loss = m["encoder"](torch.ones(1, 3)).sum() + m["decoder"][1](m["decoder"][0](torch.tensor([1]))).pow(2).sum()
        optimiser.backward(loss * value)
        norm, skipped = optimiser.step()
        return float(norm), float(skipped)

    step(1.0)
    before = [p.clone() for p in m.parameters()]
    state = {k: {n: t.clone() for n, t in s.items()} for k, s in optimiser.adamw.state_dict()["state"].items()}
    for bad in (math.nan, math.inf):
        assert step(bad)[1] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))
    after = optimiser.adamw.state_dict()["state"]
    assert all(torch.equal(state[k][n], after[k][n]) for k in state for n in state[k])
    assert step(1.0)[1] == 0.0
    assert not all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


def test_when_training_is_over_nothing_holds_its_weights_any_more() -> None:
    m = module()
    optimiser = make_optimiser(m, groups(m), Optim(lr=0.1), "fp32")
    optimiser.backward(m["encoder"](torch.ones(1, 3)).sum())
    optimiser.step()
    held = [weakref.ref(p) for p in m.parameters()]
    desk = Desk(None, Parts(m), None, None, None, None, None, optimiser, None, None)  # type: ignore[arg-type]
    desk.release()
    gc.collect()
    assert not any(p() is not None for p in held)


def test_decay_spares_biases_norms_and_embeddings_and_groups_have_their_rates() -> None:
    m = module()
    optimiser = make_optimiser(m, groups(m), Optim(lr=0.1, weight_decay=0.5), "fp32")
    decay = {id(p): g["weight_decay"] for g in optimiser.adamw.param_groups for p in g["params"]}
    for name, p in m.named_parameters():
        assert decay[id(p)] == (0.5 if name == "encoder.weight" else 0.0), name
    optimiser.set_rates(0.01, {"encoder": 1.0, "decoder": 0.1})
    rates = {g["name"]: g["lr"] for g in optimiser.adamw.param_groups}
    assert rates == {"encoder": 0.01, "decoder": pytest.approx(0.001)}


def test_a_layer_further_down_has_a_smaller_rate_and_every_parameter_is_still_there_once() -> None:
    m = module()
    depths = {n: 2 if n.endswith("bias") else 0 for n, _ in m.named_parameters()}
    optimiser = make_optimiser(m, groups(m), Optim(lr=0.1, layer_decay=0.5), "fp32", depths)
    optimiser.set_rates(0.01, {"encoder": 1.0, "decoder": 0.1})
    rate = {id(p): g["lr"] for g in optimiser.adamw.param_groups for p in g["params"]}
    assert sorted(rate) == sorted(id(p) for p in m.parameters())
    for name, p in m.named_parameters():
        group = 1.0 if name.startswith("encoder") else 0.1
        assert rate[id(p)] == pytest.approx(0.01 * group * 0.5 ** depths[name]), name
