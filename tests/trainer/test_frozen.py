"""What a frozen encoder said is kept where it may be, and refused with a sentence where it may not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.speech import make_corpus, recipe_dict

from trainer.data.loader import StepLoader
from trainer.data.manifest import open_manifests
from trainer.errors import BadRecipe
from trainer.frozen import weights_hash
from trainer.loop import State, Training
from trainer.machine import start_machine
from trainer.optim import make_optimiser
from trainer.recipe.frozen import why_not_cached
from trainer.recipe.load import parse_recipe
from trainer.task import make_task
from trainer.tasks import whisper

FROZEN = {"lr": 3e-3, "rates": {"encoder": 0}}


def recipe_of(folder: Path, frozen_gb: float, precision: str = "fp32", **sections: Any) -> Any:
    data = {**recipe_dict(folder)["data"], "frozen_gb": frozen_gb, "cache_dir": str(folder / "kept" / "audio")}
    loop = {**recipe_dict(folder)["loop"], "steps": 8, "step_utts": 6, "precision": precision}
    return parse_recipe(recipe_dict(folder, **{"optim": FROZEN, "data": data, "loop": loop, **sections}))


def trained(recipe: Any, folder: Path) -> dict[str, torch.Tensor]:
    manifest = open_manifests([folder / "train.jsonl"], recipe.data, folder, folder / "index")
    machine, task = start_machine(recipe.loop), make_task(recipe)
    torch.manual_seed(0)
    parts = task.build()
    machine.place(parts.module)
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, recipe.loop.precision)
    Training(
        task, parts, recipe, machine, StepLoader(task, manifest, recipe), optimiser, State(), None, None,
        evaluate=lambda: {"wer": 1.0}, save=lambda: None, on_bad=lambda bad: None, stop_asked=lambda: False,
    ).run()  # fmt: skip
    return {n: p.detach().clone() for n, p in parts.module.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
def test_an_utterance_is_encoded_once_and_a_lost_or_warm_cache_changes_no_bit(
    tmp_path: Path, monkeypatch, precision: str
) -> None:
    make_corpus(tmp_path, 12)
    n_encoded = []
    real = whisper.encode

    def counted(encoder: Any, mel_BMF: torch.Tensor, *more: Any) -> torch.Tensor:
        n_encoded.append(len(mel_BMF))
        return real(encoder, mel_BMF, *more)

    monkeypatch.setattr(whisper, "encode", counted)
    recipe = recipe_of(tmp_path, 1.0, precision, model={"full_window_share": 0.0})
    cold = trained(recipe, tmp_path)
    assert sum(n_encoded) < 3 * 12, "of 48 utterances in four epochs; a few were ahead of the first epoch's end"
    n_encoded.clear()
    warm = trained(recipe, tmp_path)
    assert n_encoded == []
    assert all(torch.equal(cold[n], warm[n]) for n in cold)
    without = trained(recipe_of(tmp_path, 0.0, precision, model={"full_window_share": 0.0}), tmp_path)
    # a bit apart, as matrices of another size are rounded otherwise; half precision shows more of it
    near = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 1e-1}[precision]
    assert max(float((cold[n] - without[n]).abs().max()) for n in cold) < near


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"optim": {"lr": 1e-3}}, "the encoder is trained"),
        ({"augment": {"speed": [0.9, 1.1]}}, r"augment\.speed changes in every epoch"),
        ({"augment": {"spec": {"p": 0.5}, "gain_db": 3}}, r"augment\.gain_db, augment\.spec changes"),
        ({"augment": {"join_p": 0.1}}, r"augment\.join_p"),
        ({"augment": {"noise_snr_db": [10, 20]}}, r"augment\.noise_snr_db"),
    ],
)
def test_what_makes_kept_outputs_wrong_is_refused_with_a_sentence(tmp_path: Path, sections: dict, says: str) -> None:
    with pytest.raises(BadRecipe, match=r"data\.frozen_gb must be 0: .*" + says):
        recipe_of(tmp_path, 1.0, **sections)
    assert why_not_cached(recipe_of(tmp_path, 0.0, **sections))


def test_adapters_on_the_decoder_alone_leave_the_encoder_as_it_is(tmp_path: Path) -> None:
    named = {"model": {"from_scratch": None, "name": "x"}, "optim": {"lr": 1e-3}}
    assert why_not_cached(recipe_of(tmp_path, 0.0, adapters={"targets": "decoder"}, **named)) == ""
    assert "all-linear: the encoder learns" in why_not_cached(recipe_of(tmp_path, 0.0, adapters={}, **named))


def test_a_phase_forbids_it_whoever_brings_phases(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 0.0)
    assert why_not_cached(recipe) == ""
    object.__setattr__(recipe, "phases", [{"from_epoch": 2}])
    assert "phases open and close" in why_not_cached(recipe)


def test_an_encoder_with_dropout_is_refused_when_it_is_built(tmp_path: Path) -> None:
    scratch = {**recipe_dict(tmp_path)["model"]["from_scratch"], "dropout": 0.1}
    with pytest.raises(BadRecipe, match="the encoder draws, by dropout"):
        make_task(recipe_of(tmp_path, 1.0, model={"from_scratch": scratch})).build()


def test_another_model_is_another_hash() -> None:
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(b)
    with torch.no_grad():
        b.weight[0, 0] += 1e-6
    assert weights_hash(a) != weights_hash(b)
