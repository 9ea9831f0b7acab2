"""What is dealt to ranks, and what is made of the pieces: the parts that need no second rank."""

from pathlib import Path

import pytest
import torch
from support.families import FAMILIES
from support.speech import recipe_dict
from torch import nn

from trainer.errors import BadRecipe
from trainer.pieces import PART, forget_pieces, joined_pieces, remember, remembered
from trainer.recipe.load import parse_recipe
from trainer.sharded import check_dealable, skeleton, units_of
from trainer.task import make_task


def built(family: str) -> nn.Module:
    recipe = parse_recipe(FAMILIES[family](Path("/nowhere")))
    return make_task(recipe).build().module


@pytest.mark.parametrize(("family", "stacks"), [("whisper", 2), ("parakeet", 1), ("wav2vec2", 1), ("tdt", 1)])
def test_the_layers_of_every_stack_are_units(family: str, stacks: int) -> None:
    module = built(family)
    units = units_of(module)
    layers = [u for u in units if "Layer" in type(u).__name__ or "Block" in type(u).__name__]
    assert len(layers) >= stacks, [type(u).__name__ for u in units]
    inside = {id(p) for u in units for p in u.parameters()}
    assert inside, "something is dealt layer by layer"
    for unit in units:
        assert not any(other is not unit and other in set(unit.modules()) for other in units), "no unit in another"


def test_what_is_no_stack_is_no_unit() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
            self.empty = nn.ModuleList()
            self.bare = nn.ModuleList([nn.ReLU(), nn.ReLU()])
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

    assert units_of(Model()) == []


def test_a_skeleton_has_no_number_in_it_and_what_is_tied_stays_tied() -> None:
    model = built("whisper")
    bare = skeleton(model)
    assert all(t.is_meta for t in [*bare.parameters(), *bare.buffers()])
    assert bare.proj_out.weight is bare.model.decoder.embed_tokens.weight
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert not any(p.is_meta for p in model.parameters())
    assert [n for n, p in bare.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]


def test_a_model_with_a_weight_that_can_not_be_dealt_is_refused() -> None:
    module = nn.Linear(2, 2)
    check_dealable(module)
    module.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(BadRecipe, match="scale is a single number"):
        check_dealable(module)


def piece(step: int, mine: torch.Tensor, n: int) -> dict:
    return {
        "state": {"step": step},
        "weights": {"w": {PART: [n, 2], "mine": mine}, "count": torch.tensor(3)},
        "optimiser": {"groups": [{"betas": (0.9, 0.98), "params": [0, 1]}]},
        "ema": None,
    }


def test_pieces_of_all_ranks_are_whole_again_in_their_order(tmp_path: Path) -> None:
    whole = torch.arange(22.0).reshape(11, 2)
    for rank in range(11):
        torch.save(piece(5, whole[rank : rank + 1].clone(), 11), tmp_path / f"{rank}-of-11.pt")
    joined = joined_pieces(tmp_path)
    assert joined is not None
    assert torch.equal(joined["weights"]["w"], whole), "rank 10 comes after rank 9, not after rank 1"
    assert joined["weights"]["count"] == 3
    assert joined["optimiser"] == {"groups": [{"betas": (0.9, 0.98), "params": [0, 1]}]}
    assert joined["state"]["step"] == 5
    assert joined["ema"] is None


def test_pieces_that_are_not_all_there_or_not_of_one_step_are_nothing(tmp_path: Path) -> None:
    assert joined_pieces(tmp_path) is None
    torch.save(piece(5, torch.zeros(1, 2), 2), tmp_path / "0-of-2.pt")
    assert joined_pieces(tmp_path) is None
    torch.save(piece(6, torch.zeros(1, 2), 2), tmp_path / "1-of-2.pt")
    assert joined_pieces(tmp_path) is None
    forget_pieces(tmp_path)
    assert not tmp_path.exists()


def test_what_memory_taught_is_remembered(tmp_path: Path) -> None:
    assert remembered(tmp_path / "cut.json") == []
    remember(tmp_path / "cut.json", 12.5, 4)
    remember(tmp_path / "cut.json", 20.0, 2)
    assert remembered(tmp_path / "cut.json") == [(12.5, 4), (20.0, 2)]


@pytest.mark.parametrize("section", [{"loop": {"shard": True, "compile": True}}])
def test_what_does_not_go_together_is_refused(section: dict) -> None:
    with pytest.raises(BadRecipe, match="compile and shard exclude each other"):
        parse_recipe(recipe_dict(Path("/nowhere"), **section))
