"""One training of each family from file to report: resumed exactly, its vocabulary kept, its export reproducing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import After, lines
from support.seq2seq import ASKED, KINDS, seq2seq_dict
from support.speech import ctc_dict, tdt_dict, write_experiment

from remote.rundir import RunDir
from trainer.__main__ import main
from trainer.errors import BadRecipe, StopAsked
from trainer.train import train

FAMILIES = {
    "parakeet": lambda corpus, **s: ctc_dict(corpus, "parakeet", **s),
    "wav2vec2": lambda corpus, **s: ctc_dict(corpus, "wav2vec2", **s),
    "tdt": lambda corpus, **s: tdt_dict(corpus, "tdt", **s),
}


def experiment(corpus: Path, family: str, name: str = "a.yaml", **sections: dict) -> Path:
    sections["model"] = {"letters": None, **sections.get("model", {})}
    return write_experiment(corpus.parent / name, FAMILIES[family](corpus, **sections))


def trained_whole_and_in_parts(file: Path, place: Path, last: int) -> None:
    """Into `whole`, and, stopped twice, into `stopped`: the same weights, bit for bit, after the `last` step."""
    train(file, RunDir(place / "whole"))
    for n in (4, 9):
        with pytest.raises(StopAsked):
            train(file, RunDir(place / "stopped"), stop=After(n))
    train(file, RunDir(place / "stopped"))
    one, two = (
        load_file(place / r / "checkpoints" / f"step-{last:08d}" / "model" / "model.safetensors")
        for r in ("whole", "stopped")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_stopped_and_resumed_it_ends_bit_identical_and_its_export_reproduces(
    corpus: Path, tmp_path: Path, family: str, capsys
) -> None:
    sections = {
        "loop": {"steps": 8, "step_utts": 4},
        "augment": {"speed": [0.9, 1.1], "join_p": 0.3, "spec": {"p": 0.5, "freq_width": 4}},
        "model": {"dropout": 0.1, "text": "upper"},
    }
    file = experiment(corpus, family, **sections)
    trained_whole_and_in_parts(file, tmp_path, 8)
    whole, stopped = (lines(tmp_path / r / "reports" / "test.jsonl") for r in ("whole", "stopped"))
    assert [x["metrics"] for x in whole] == [x["metrics"] for x in stopped]
    assert [x["what"] for x in whole] == ["before training", "greedy"]
    kept = json.loads((tmp_path / "whole" / "export" / "recipe.json").read_text())["model"]
    assert kept["letters"] == sorted(set("LOWMIDHIGH"))
    for place in (["--run", str(tmp_path / "whole")], ["--model", str(tmp_path / "whole" / "export")]):
        out = tmp_path / place[0]
        assert main(["evaluate", *place, str(corpus / "test.jsonl"), "--out", str(out)]) == 0
        assert lines(next(out.glob("evaluate-*.json")))[-1]["metrics"] == whole[1]["metrics"]


def test_any_model_in_the_hub_s_layout_transcribes(corpus: Path, tmp_path: Path, capsys) -> None:
    for family in FAMILIES:
        run = RunDir(tmp_path / family)
        train(experiment(corpus, family, f"{family}.yaml"), run)
        expected = {r["id"]: r["text"] for r in lines(run.reports / "test-greedy.rows.jsonl")}
        (run.export / "recipe.json").unlink()
        capsys.readouterr()
        argv = ["predict", "--model", str(run.export), str(corpus / "test.jsonl")]
        assert main([*argv, "--set", "eval.decode.max_new_tokens=6"]) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {r["id"]: r["text"] for r in said} == expected


def test_another_training_set_s_letters_are_another_training(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train(experiment(corpus, "parakeet"), run)
    with pytest.raises(BadRecipe, match=r"model\.letters"):
        train(experiment(corpus, "parakeet", model={"letters": ["a"]}), run)


def test_adapters_on_a_fine_tuned_model_are_resumed_bit_identical(corpus: Path, tmp_path: Path) -> None:
    train(experiment(corpus, "wav2vec2"), RunDir(tmp_path / "base"))
    recipe = ctc_dict(corpus, "wav2vec2", adapters={"r": 2, "dropout": 0.1})
    recipe["model"] = {"name": str(tmp_path / "base" / "export")}
    file = write_experiment(tmp_path / "lora.yaml", recipe)
    train(file, RunDir(tmp_path / "whole"))
    with pytest.raises(StopAsked):
        train(file, RunDir(tmp_path / "stopped"), stop=After(7))
    train(file, RunDir(tmp_path / "stopped"))
    one, two = (
        load_file(tmp_path / r / "checkpoints" / "step-00000006" / "model" / "adapter_model.safetensors")
        for r in ("whole", "stopped")
    )
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any("lora_B" in k and v.abs().max() > 0 for k, v in one.items())
    before, after = (lines(tmp_path / r / "reports" / "test.jsonl") for r in ("base", "whole"))
    assert after[0]["metrics"] == before[1]["metrics"], "before training it is the base, and says what the base said"


def test_live_batch_statistics_are_told_at_the_start(corpus: Path, tmp_path: Path, caplog) -> None:
    file = experiment(corpus, "parakeet", model={"batch_statistics": "live"}, loop={"steps": 1})
    train(file, RunDir(tmp_path / "run"))
    assert any("exception: model.batch_statistics is live" in r.message for r in caplog.records)


@pytest.mark.parametrize("kind", [k if k == "moonshine" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_a_model_that_writes_is_resumed_bit_identical_and_its_export_reproduces(
    corpus: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {
        "augment": {"speed": [0.9, 1.1], "join_p": 0.3, "spec": {"p": 0.5, "freq_width": 4}},
        "model": {"dropout": 0.1},
        "loss": {"label_smoothing": 0.1},
    }
    file = write_experiment(tmp_path / "a.yaml", seq2seq_dict(corpus, kind, **sections))
    trained_whole_and_in_parts(file, tmp_path, 6)
    whole = lines(tmp_path / "whole" / "reports" / "test.jsonl")
    said = {r["id"]: r["text"] for r in lines(tmp_path / "whole" / "reports" / "test-greedy.rows.jsonl")}
    for place in (["--run", str(tmp_path / "whole")], ["--model", str(tmp_path / "whole" / "export")]):
        out = tmp_path / place[0]
        assert main(["evaluate", *place, str(corpus / "test.jsonl"), "--out", str(out)]) == 0
        assert lines(next(out.glob("evaluate-*.json")))[-1]["metrics"] == whole[1]["metrics"]
    (tmp_path / "whole" / "export" / "recipe.json").unlink()
    capsys.readouterr()
    asked = [f"--set=model.{k}={v}" for k, v in ASKED.get(kind, {}).items()]
    argv = ["predict", "--model", str(tmp_path / "whole" / "export"), str(corpus / "test.jsonl")]
    assert main([*argv, "--set", "eval.decode.max_new_tokens=6", *asked]) == 0
    assert {r["id"]: r["text"] for r in map(json.loads, capsys.readouterr().out.splitlines())} == said
