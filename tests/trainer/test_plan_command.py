"""What a training will take is told without a GPU and without weights, and is what it then takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.speech import ctc_dict, make_corpus, recipe_dict, write_experiment
from support.training import FAMILIES, make_training
from torch.autograd.graph import saved_tensors_hooks

from trainer.__main__ import main
from trainer.nf4 import n_weights
from trainer.planning import GPUS_GB, TrainingPlan, lines_of, make_plan
from trainer.recipe.load import parse_recipe
from trainer.task import make_task
from trainer.weighing import META, saved_bytes, weigh

ALL = {**FAMILIES, "wavlm": lambda corpus, **s: ctc_dict(corpus, "wavlm", **s)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, n in (("train", 24), ("dev", 4), ("test", 4)):
        make_corpus(folder, n, seed=n, name=name)
    return folder


def really_saved(task: Any, parts: Any, batch: Any, *, half: bool) -> int:
    """Bytes that torch keeps on a CPU."""
    own = {t.untyped_storage().data_ptr() for t in [*parts.module.parameters(), *parts.module.buffers()]}
    kept: dict[int, Any] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=half):
        task.losses(parts.module, batch)
    return sum(s.nbytes() for s in kept.values())


SLOWER = [pytest.param(f, marks=pytest.mark.slow) for f in ALL if f not in ("whisper", "wav2vec2")]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["whisper", "wav2vec2", *SLOWER])
def test_activations_are_counted_as_torch_keeps_them(corpus: Path, family: str, checkpointing: bool) -> None:
    """To a hundredth in float32. How an LSTM keeps its steps is its kernel's affair: there it is an eighth."""
    model = {} if family == "wavlm" else {"attention": "sdpa"}
    recipe = parse_recipe(ALL[family](corpus, loop={"gradient_checkpointing": checkpointing}, model=model))
    task = make_task(recipe)
    real = task.build()
    with torch.device(META):
        shape = task.build()
    real.module.train()
    shape.module.train()
    batch = task.prepare(task.dummy(3, 1.0, 5), real, True)
    for precision, close in (("fp32", 0.01), ("bf16", 0.06)):
        counted = saved_bytes(task, shape, precision, batch.to(META))
        kept = really_saved(task, real, batch, half=precision == "bf16")
        assert counted == pytest.approx(kept, rel=0.17 if family == "tdt" else close), precision
    weight = weigh(task, shape, "fp32", 1.0, 5, checkpointing)
    bigger = saved_bytes(task, shape, "fp32", task.prepare(task.dummy(9, 1.0, 5), real, True).to(META))
    assert weight.bytes_of(9) >= 0.99 * bigger, "and what is made again of one layer"
    if not checkpointing:
        assert weight.bytes_of(9) == pytest.approx(bigger, rel=0.01)
    assert weight.flops_an_utterance > 0


@pytest.mark.slow
def test_half_precision_keeps_less_and_checkpointing_still_less(corpus: Path) -> None:
    found = []
    for precision, checkpointing in (("fp32", False), ("bf16", False), ("bf16", True)):
        scratch = {**recipe_dict(corpus)["model"]["from_scratch"], "encoder_layers": 6}
        model = {"from_scratch": scratch, "attention": "sdpa"}
        task = make_task(parse_recipe(recipe_dict(corpus, loop={"gradient_checkpointing": checkpointing}, model=model)))
        with torch.device(META):
            parts = task.build()
        parts.module.train()
        found.append(weigh(task, parts, precision, 2.0, 19, checkpointing).bytes_of(8))
    assert found[1] < 0.85 * found[0]
    assert found[2] < 0.6 * found[1]


def planned(corpus: Path, family: str = "whisper", **sections: Any) -> TrainingPlan:
    phases = sections.pop("phases", [])
    return make_plan(parse_recipe({**ALL[family](corpus, **sections), "phases": phases}))


@pytest.mark.parametrize("family", ["whisper", *SLOWER[:-1]])
def test_a_plan_says_what_the_training_then_is(corpus: Path, family: str) -> None:
    plan = planned(corpus, family, averaging={"ema": 0.9}, loop={"epochs": 2.5, "steps": None})
    training = make_training(corpus, family, loop={"epochs": 2.5, "steps": None, "step_utts": 4}, precision="fp32")
    module = training.parts.module
    assert plan.parameters == n_weights(module)
    (phase,) = plan.phases
    n = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert sum(phase.trained.values()) == n
    assert phase.gradients_gb == pytest.approx(4e-9 * n)
    assert phase.optimiser_gb == pytest.approx(8e-9 * n)
    assert phase.mean_gb == pytest.approx(4e-9 * n)
    assert phase.weights_gb >= 4e-9 * n
    assert plan.steps is not None
    assert plan.steps.steps == training.loader.plan.max_steps == 15
    assert plan.steps.epochs == pytest.approx(2.5)
    mean_s = float(training.loader.manifest.column("duration_s").mean())
    assert plan.steps.audio_s_a_step == pytest.approx(4 * mean_s)
    assert 0 < plan.steps.padded_share < 0.7
    assert plan.steps.flops_a_step > 0
    assert plan.steps.hours["H100"] < plan.steps.hours["T4"]
    assert [f.gpu_gb for f in phase.fits] == list(GPUS_GB)
    assert [f.micro_s for f in phase.fits] == sorted(f.micro_s for f in phase.fits)
    assert plan.notes == []


def test_each_phase_is_told_by_itself(corpus: Path) -> None:
    phases = [{"from_epoch": 0, "train": ["decoder"]}, {"from_epoch": 0.5, "train": "all"}]
    plan = planned(corpus, phases=phases)
    first, second = plan.phases
    assert list(first.trained) == ["decoder"]
    assert list(second.trained) == ["encoder", "decoder"]
    assert first.gradients_gb < second.gradients_gb
    assert first.lengths[0].activations_gb < second.lengths[0].activations_gb, "nothing is kept of a frozen encoder"
    said = "\n".join(lines_of(plan))
    assert "phase 1: decoder" in said
    assert "phase 2: encoder" in said


@pytest.mark.parametrize("kind", ["qlora", *(pytest.param(k, marks=pytest.mark.slow) for k in (None, "lora", "dora"))])
def test_a_trained_model_is_planned_from_its_configuration_alone(
    corpus: Path, tmp_path: Path, kind: str | None
) -> None:
    base = make_training(corpus)
    base.task.save(base.parts.module.float(), tmp_path / "model")
    train = {**recipe_dict(corpus), "model": {"name": str(tmp_path / "model")}}
    if kind:
        train["adapters"] = {"kind": kind, "r": 4}
    recipe = parse_recipe(train)
    real = make_task(recipe).build().module
    (tmp_path / "model" / "model.safetensors").unlink()
    plan = make_plan(recipe)
    assert plan.parameters == n_weights(real)
    trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert sum(plan.phases[0].trained.values()) == trained
    if kind:
        assert plan.phases[0].gradients_gb < 0.5 * plan.phases[0].weights_gb


@pytest.mark.slow
def test_what_does_not_fit_is_said(corpus: Path) -> None:
    """A model of 2.4 milliard weights takes 38 GB to train, whatever the batch; nothing of it is ever allocated."""
    scratch = {"d_model": 4096, "encoder_layers": 6, "decoder_layers": 6, "heads": 32, "ffn": 16384, "window_s": 30}
    plan = planned(corpus, model={"from_scratch": {**scratch, "mels": 80}}, data={"max_s": 30})
    fits = {f.gpu_gb: f.utterances for f in plan.phases[0].fits}
    assert plan.parameters > 2e9
    assert fits[16] == fits[24] == 0
    assert fits[80] > 0
    assert "a GPU of  16 GB: does not fit" in "\n".join(lines_of(plan))


def test_the_command_prints_it_with_the_data_and_without(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_experiment(tmp_path / "a.yaml", recipe_dict(corpus))
    assert main(["plan", str(file)]) == 0
    said = capsys.readouterr().out
    assert "6 steps, 1.0 epochs of 24 utterances" in said
    assert "an estimate" in said
    assert main(["plan", str(file), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert whole["steps"]["steps"] == 6
    assert {"weights_gb", "lengths", "fits"} <= whole["phases"][0].keys()
    nowhere = write_experiment(tmp_path / "b.yaml", recipe_dict(tmp_path / "nowhere"))
    assert main(["plan", str(nowhere), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert whole["steps"] is None
    assert whole["phases"][0]["lengths"][0]["padded_s"] == 2.0
    assert "without the data" in whole["notes"][0]
    ctc = ctc_dict(tmp_path / "nowhere")
    del ctc["model"]["letters"]
    needs = write_experiment(tmp_path / "c.yaml", ctc)
    assert main(["plan", str(needs)]) == 2, "its letters, and so its shape, are found in the transcripts"
    assert "train.jsonl" in capsys.readouterr().err
