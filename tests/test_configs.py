"""Every configuration that we hand out is read by both programs, stands alone, and keeps what it promises."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.speech import recipe_dict

from podctl.experiment import read_experiment
from trainer.__main__ import _parser, main
from trainer.recipe.load import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CHILDREN = [c for c in CONFIGS if "children" in c.stem]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_both_programs_read_it_without_a_mistake(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr()
    assert said.out == "ok\n"
    assert said.err == "", "no law is broken"
    experiment, _, mistakes = read_experiment(file, environ={"SPOKEN_DIGITS_DIR": "/data"})
    assert mistakes == []
    assert experiment is not None
    assert experiment.pod.max_hours > 0
    if experiment.pod.provider == "runpod":
        assert experiment.pod.gpu, "a rented one says which GPUs will do"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_its_prep_stages_are_commands_of_the_trainer_and_make_what_is_trained_on(file: Path) -> None:
    whole = yaml.safe_load(file.read_text(encoding="utf-8"))
    made = set()
    for stage in whole.get("prep", []):
        program, *argv = shlex.split(stage["run"])
        assert program == "trainer"
        args = _parser().parse_args(argv)
        assert all(out.startswith(f"{args.out}/") for out in stage["outputs"])
        made |= set(stage["outputs"])
    data = whole["train"]["data"]
    if made:
        assert {*data["train"], *data.get("dev", []), *data.get("test", [])} <= made


@pytest.mark.parametrize("file", CHILDREN, ids=lambda f: f.stem)
def test_those_for_children_measure_as_the_competition_does(file: Path) -> None:
    whole = yaml.safe_load(file.read_text(encoding="utf-8"))
    train, pod = whole["train"], whole["pod"]
    assert train["eval"]["normaliser"] == "english"
    assert train["eval"]["buckets"] == ["age_bucket", "source", "noise", "duration"]
    assert train["data"]["dev"] == ["children/dev_small.jsonl"]
    assert train["data"]["test"] == ["children/test.jsonl"]
    assert {"provider", "gpu", "volume", "max_hours", "max_usd"} <= pod.keys()


def test_there_are_four_for_children() -> None:
    assert len(CHILDREN) == 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Whisper small's shape and no weights, and manifests whose utterances are all half a minute long."""
    import numpy as np
    import soundfile
    from transformers import WhisperConfig

    from trainer.task import make_task

    folder = tmp_path_factory.mktemp("small")
    scratch = recipe_dict(folder)
    scratch["model"]["from_scratch"] |= {"mels": 80, "window_s": 30}
    task = make_task(parse_recipe(scratch))
    task.save(task.build().module, folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    WhisperConfig(  # Radford et al., 2022, table 1
        vocab_size=51865,
        d_model=768,
        **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 12), ("ffn_dim", 3072))},
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=448,
        architectures=["WhisperForConditionalGeneration"],
    ).save_pretrained(folder / "model")
    (folder / "children").mkdir()
    soundfile.write(folder / "children" / "a.wav", np.zeros(1600), 16_000)
    for name, n in (("train", 100), ("dev_small", 2), ("test", 2)):
        rows = [
            {"id": f"{name}-{i}", "audio": "a.wav", "duration_s": 30.0, "text": "word " * 25}  # 125 tokens, as bytes
            for i in range(n)
        ]
        (folder / "children" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def peak_gb(name: str, small: Path, monkeypatch: pytest.MonkeyPatch, **loop: Any) -> float:
    from trainer.planning import CONTEXT_GB, make_plan

    train = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))["train"]
    train["model"] = {"name": str(small / "model")}  # its tokenizer knows no languages
    train["loop"] |= loop
    monkeypatch.chdir(small)
    plan = make_plan(parse_recipe(train))
    assert plan.parameters == pytest.approx(241.7e6, rel=0.001)
    (phase,) = plan.phases
    return phase.fixed_gb + CONTEXT_GB + max(length.activations_gb for length in phase.lengths)


@pytest.mark.slow
def test_the_small_one_fits_eight_gigabytes_and_the_other_does_not(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Utterances as long as the window, a full micro-batch of them: nothing that training meets is larger."""
    frugal = peak_gb("whisper_small_children_8gb", small, monkeypatch)
    plain = peak_gb("whisper_small_children", small, monkeypatch)
    assert frugal < 0.9 * 8, "a tenth is left, as a search would leave it"
    assert plain > 8
    file = (ROOT / "configs" / "whisper_small_children_8gb.yaml").read_text(encoding="utf-8")
    assert f"finds {frugal:.1f} GB" in file, "and says so"
    assert f"is {plain:.1f} GB" in file
