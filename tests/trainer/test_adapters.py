"""Adapters of every kind on every family: trained alone, resumed exactly, merged into what plain transformers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import After
from support.speech import ctc_dict, make_corpus, recipe_dict, tdt_dict, write_experiment
from torch import nn
from transformers import AutoModelForCTC, WhisperForConditionalGeneration

from remote.rundir import RunDir
from trainer.errors import BadRecipe, StopAsked
from trainer.nf4 import BLOCK, LEVELS, Nf4Linear, dequantise, n_weights, quantise
from trainer.recipe.load import parse_recipe
from trainer.task import make_task
from trainer.train import train

FAMILIES = {
    "whisper": recipe_dict,
    "wav2vec2": lambda corpus, **s: ctc_dict(corpus, "wav2vec2", **s),
    "wavlm": lambda corpus, **s: ctc_dict(corpus, "wavlm", **s),
    "parakeet": lambda corpus, **s: ctc_dict(corpus, "parakeet", **s),
    "tdt": lambda corpus, **s: tdt_dict(corpus, "tdt", **s),
}
DORA = {"kind": "dora", "r": 2, "dropout": 0.1}
QLORA = {"kind": "qlora", "r": 2, "dropout": 0.1, "double_quantisation": True}


# ---- four bits


@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (5, 7), (1, 1), (40, 100)])
def test_nf4_is_its_definition_weight_by_weight(rows: int, columns: int) -> None:
    """The nearest of sixteen levels, times the largest of the block; against a reference that takes its time."""
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows)
    flat = linear.weight.detach().flatten().tolist()
    expected = []
    for block in (flat[i : i + BLOCK] for i in range(0, len(flat), BLOCK)):
        scale = max(map(abs, block))
        expected += [scale * min(LEVELS, key=lambda v, w=w, s=scale: abs(v - w / s)) for w in block]
    said = Nf4Linear(linear, double=False).matrix().flatten()
    assert torch.allclose(said, torch.tensor(expected), rtol=1e-6, atol=0)


def test_double_quantisation_changes_a_weight_by_less_than_nf4_itself_did() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 300)
    w, once, twice = (
        linear.weight.detach(),
        Nf4Linear(linear, double=False).matrix(),
        Nf4Linear(linear, double=True).matrix(),
    )
    assert 0 < (twice - once).abs().max() < (once - w).abs().max() / 20


def test_a_layer_in_nf4_passes_on_the_gradient_of_the_layer_that_it_stands_for() -> None:
    torch.manual_seed(0)
    layer = Nf4Linear(nn.Linear(96, 10), double=True)
    x = torch.randn(4, 3, 96, requires_grad=True)
    grad = torch.randn(4, 3, 10)
    (ours,) = torch.autograd.grad(layer(x), x, grad)
    (plain,) = torch.autograd.grad(layer.dequantised()(x), x, grad)
    assert torch.equal(layer(x), layer.dequantised()(x))
    assert torch.equal(ours, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_what_a_layer_in_nf4_holds_tells_it_from_every_other() -> None:
    """Twice a matrix has the same four bits, under other scales: a hash of the weights must see them."""
    linear, double = nn.Linear(64, 4, bias=False), nn.Linear(64, 4, bias=False)
    double.weight.data = 2 * linear.weight.data
    for twice in (False, True):
        one, two = (Nf4Linear(layer, double=twice).state_dict() for layer in (linear, double))
        assert torch.equal(one["weight"], two["weight"])
        assert any(not torch.equal(one[k], two[k]) for k in one)


def test_weights_of_nothing_but_zeros_stay_zeros_and_bytes_are_counted_as_two() -> None:
    linear = nn.Linear(128, 2, bias=False)
    nn.init.zeros_(linear.weight)
    module = nn.Sequential(linear)
    assert quantise(module, ".*", double=True) == 1
    assert n_weights(module) == 256
    assert module[0].matrix().abs().max() < 1e-6
    dequantise(module)
    assert type(module[0]) is nn.Linear


# ---- trainings


def tuned(tmp_path: Path, family: str, adapters: dict[str, Any], **sections: dict) -> dict[str, Any]:
    """A recipe with adapters on a base of the family, which is made where there is none yet."""
    corpus, base = tmp_path / "corpus", tmp_path / f"base-{family}"
    if not corpus.exists():
        for name, n in (("train", 12), ("dev", 2), ("test", 2)):
            make_corpus(corpus, n, seed=n, name=name)
    if not base.exists():
        task = make_task(parse_recipe(FAMILIES[family](corpus)))
        torch.manual_seed(0)
        task.export(task.build().module, base)
    sections = {"eval": {"every_steps": 4, "before_training": False}, "loop": {"steps": 4}, **sections}
    return {**FAMILIES[family](corpus, adapters=adapters, **sections), "model": {"name": str(base)}}


def adapters_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model" / "adapter_model.safetensors")


def dummy_losses(train_section: dict[str, Any], **build: Path) -> torch.Tensor:
    task = make_task(parse_recipe(train_section))
    parts = task.build(**build)
    parts.module.eval()
    batch = task.prepare(task.dummy(3, 1.0, 4), parts, False)
    with torch.no_grad():
        return torch.stack(list(task.losses(parts.module, batch).values()))


QUICK = (("whisper", DORA), ("tdt", QLORA))
SLOW = [(f, a) for f in FAMILIES for a in (DORA, QLORA) if (f, a) not in QUICK]


@pytest.mark.parametrize(
    ("family", "adapters"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_stopped_and_resumed_they_end_bit_identical_and_their_export_computes_the_same(
    tmp_path: Path, family: str, adapters: dict[str, Any]
) -> None:
    raw = tuned(tmp_path, family, adapters, optim={"lr": 0.1})
    file = write_experiment(tmp_path / "a.yaml", raw)
    train(file, RunDir(tmp_path / "whole"))
    with pytest.raises(StopAsked):
        train(file, RunDir(tmp_path / "stopped"), stop=After(4))
    train(file, RunDir(tmp_path / "stopped"))
    one, two = (adapters_of(tmp_path / r, 4) for r in ("whole", "stopped"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any("lora_B" in k and v.abs().max() > 0 for k, v in one.items())
    assert any("magnitude" in k for k in one) == (adapters["kind"] == "dora")
    assert all(v.dtype == torch.float32 for v in one.values())
    saved = tmp_path / "whole" / "checkpoints" / "step-00000004" / "model"
    exported = {**raw, "adapters": None, "model": {"name": str(tmp_path / "whole" / "export")}}
    in_training, merged, base = (
        dummy_losses(raw, saved=saved),
        dummy_losses(exported),
        dummy_losses({**raw, "adapters": None}),
    )
    assert torch.allclose(in_training, merged, rtol=5e-6), "the export is what was trained, within float32"
    assert not torch.allclose(base, merged, rtol=3e-5), "a test of equality must see adapters that change something"


@pytest.mark.parametrize("adapters", [DORA, QLORA, {"kind": "qlora", "base_dtype": "bf16"}])
def test_logits_of_the_export_in_plain_transformers_are_those_of_the_training_model(
    tmp_path: Path, adapters: dict[str, Any]
) -> None:
    """Within 1e-5 of the largest, float32."""
    for family, stock in (("whisper", WhisperForConditionalGeneration), ("wav2vec2", AutoModelForCTC)):
        task = make_task(parse_recipe(tuned(tmp_path, family, adapters)))
        module = task.build().module
        with torch.no_grad():
            for name, p in module.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.1)
        if adapters.get("base_dtype") == "bf16":
            module.float()  # the mean of bfloat16's rounding is not this test's
        module.eval()
        with torch.no_grad():
            if family == "whisper":
                tokens = torch.tensor([[1, 2, 3]] * 2)
                inputs = {"input_features": torch.randn(2, 16, 200), "decoder_input_ids": tokens}
                ours = module.get_base_model()(**inputs).logits
            else:
                batch = task.dummy(2, 0.5, 2)
                inputs = {"input_values": batch.wave_BT}
                ours = task.logits(module, batch)
        task.export(module, tmp_path / f"export-{family}")
        model = stock.from_pretrained(tmp_path / f"export-{family}", dtype=torch.float32).eval()
        with torch.no_grad():
            theirs = model(**inputs).logits
        assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()


def test_a_base_in_nf4_is_the_same_bits_whenever_it_is_made_and_only_adapters_train(tmp_path: Path) -> None:
    task = make_task(parse_recipe(tuned(tmp_path, "whisper", QLORA)))
    one, two = task.build().module, task.build().module
    packed = [n for n, p in one.named_parameters() if p.dtype == torch.uint8]
    assert len(packed) == 16, "q, k, v, out, fc1, fc2 of both layers; the decoder has four more"
    assert all(torch.equal(dict(two.named_parameters())[n], dict(one.named_parameters())[n]) for n in packed)
    assert all("lora_" in n for n, p in one.named_parameters() if p.requires_grad)
    assert n_weights(one) > sum(p.numel() for p in one.parameters())


KINDS = [(f, k) for f in FAMILIES for k in ("lora", "dora", "qlora") if (f, k) != ("whisper", "qlora")]


@pytest.mark.parametrize(
    ("family", "kind"), [("whisper", "qlora"), *(pytest.param(*case, marks=pytest.mark.slow) for case in KINDS)]
)
def test_a_base_in_bfloat16_trains_with_and_without_autocast(tmp_path: Path, family: str, kind: str) -> None:
    task = make_task(parse_recipe(tuned(tmp_path, family, {"kind": kind, "r": 2, "base_dtype": "bf16"})))
    parts = task.build()
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            batch = task.prepare(task.dummy(2, 1.0, 3), parts, True)
            sum(loss.sum() for loss in task.losses(parts.module, batch).values()).backward()
    trained = {n: p for n, p in parts.module.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained.values())


@pytest.mark.parametrize(
    ("family", "targets", "says"),
    [
        (
            "whisper",
            "al-linear",
            "'al-linear' names no layer of this model; adapters go around layers such as model.enc",
        ),
        ("whisper", r".*\.self_attn", "names model.encoder.layers.0.self_attn, a WhisperAttention"),
        ("whisper", ".*", "names model, a WhisperModel"),
        ("wav2vec2", r".*\.layer_norm", "names wav2vec2.feature_extractor.conv_layers.0.layer_norm, a "),
        ("tdt", r".*\.fc1", "such as encoder.subsampling.layers.0"),
    ],
)
def test_targets_that_hit_nothing_are_refused_with_names_of_layers(
    tmp_path: Path, family: str, targets: str, says: str
) -> None:
    task = make_task(parse_recipe(tuned(tmp_path, family, {"targets": targets})))
    with pytest.raises(BadRecipe) as caught:
        task.build()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_hits_layers_of_every_family(tmp_path: Path, family: str) -> None:
    presets = {"whisper": ["all-linear", "attention", "decoder"], "wavlm": ["all-linear"]}
    for preset in presets.get(family, ["all-linear", "attention"]):
        module = make_task(parse_recipe(tuned(tmp_path, family, {"targets": preset}))).build().module
        assert any("lora_A" in n for n, _ in module.named_parameters()), preset


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        ({"targets": "(q_proj"}, "neither a preset nor a regular expression"),
        ({"double_quantisation": True}, "for kind qlora, not for lora"),
        ({"kind": "qlorra"}, "'lora', 'dora' or 'qlora'"),
    ],
)
def test_what_check_can_know_of_adapters_it_says(tmp_path: Path, adapters: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRecipe) as caught:
        parse_recipe({**recipe_dict(tmp_path, adapters=adapters), "model": {"name": "x"}})
    assert says in str(caught.value)
