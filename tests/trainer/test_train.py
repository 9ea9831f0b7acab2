"""One training from file to report: resumed exactly, stopped politely, refused where it would be another one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from support.runs import After, lines
from support.speech import RATE, make_corpus, recipe_dict, tone, write_experiment

from remote.fence import Superseded, take_epoch
from remote.rundir import EPOCH_ENV, RunDir, parse_progress
from trainer.__main__ import main
from trainer.checkpoint import complete_checkpoints
from trainer.errors import BadData, BadRecipe, Diverged, StopAsked
from trainer.tasks.whisper import WhisperTask
from trainer.train import train

ROOT = Path(__file__).parents[2]


def experiment(corpus: Path, name: str = "a.yaml", **sections: dict) -> Path:
    return write_experiment(corpus.parent / name, recipe_dict(corpus, **sections))


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model" / "model.safetensors")


def test_a_run_leaves_everything_that_was_promised(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / 'it\'s a "run"')
    train(experiment(corpus, log={"tensorboard": True, "report": True}), run)
    dev, test = lines(run.reports / "dev.jsonl"), lines(run.reports / "test.jsonl")
    assert [r["step"] for r in dev] == [0, 3, 6], "the first row is the model before training"
    assert [r["what"] for r in test] == [
        "before training",
        "padded to its own length",
        "padded to the full window",
    ]
    assert {"normaliser_sha256", "decode", "data_sha256", "precision"} <= test[1]["provenance"].keys()
    assert {"wer", "cer", "wer_raw", "wer/age=old"} <= test[1]["metrics"].keys()
    keys = {k for line in lines(run.metrics) for k in line}
    assert {"loss/ce", "lr", "grad_norm", "audio_s_per_s", "dev/wer", "test/wer"} <= keys
    assert list(run.tensorboard.glob("events.*"))
    progress = parse_progress(json.loads(run.progress.read_text()))
    assert progress is not None
    assert (progress.step, progress.max_steps) == (6, 6)
    summary = json.loads(run.summary.read_text())
    assert summary["headline"].startswith("test WER ")
    assert summary["best_step"] == json.loads(run.best.read_text())["step"]
    for name in ("model.safetensors", "tokenizer.json", "recipe.json", "provenance.json"):
        assert (run.export / name).exists(), name
    page = run.page.read_text(encoding="utf-8")
    assert f"{100 * test[1]['metrics']['wer']:.2f} %" in page
    assert "By <bdi>age</bdi>" in page


def test_a_report_that_cannot_be_written_is_said_and_fails_nothing(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path / "run")
    (run.page / "in the way").mkdir(parents=True)
    with caplog.at_level("INFO", logger="trainer"):
        train(experiment(corpus, log={"report": True}), run)
    assert json.loads(run.summary.read_text())["headline"].startswith("test WER ")
    assert (run.export / "recipe.json").exists()
    assert [r.message for r in caplog.records if r.message.startswith("no report was written")]
    assert not list(run.reports.glob(".*.tmp")), "nothing half-written is left"
    assert not run.quarantine.exists()


@pytest.mark.parametrize("questions", [[4], [11], [4, 4, 4], [1], [23]])
def test_stopped_and_resumed_it_ends_bit_identical(corpus: Path, tmp_path: Path, questions: list[int]) -> None:
    """Mid-epoch, at an epoch's end, three times in one, before the first step, in an evaluation."""
    sections = {
        "loop": {"steps": 10, "step_utts": 4},  # an epoch is five steps
        "augment": {"speed": [0.9, 1.1], "join_p": 0.3, "spec": {"p": 0.5}},
        "model": {"from_scratch": {**recipe_dict(corpus)["model"]["from_scratch"], "dropout": 0.1}},
    }
    file = experiment(corpus, **sections)
    train(file, RunDir(tmp_path / "whole"))
    stopped = 0
    for n in questions:
        try:
            train(file, RunDir(tmp_path / "stopped"), stop=After(n))
        except StopAsked:
            stopped += 1
    assert stopped
    train(file, RunDir(tmp_path / "stopped"))
    one, two = weights(tmp_path / "whole", 10), weights(tmp_path / "stopped", 10)
    assert all(torch.equal(one[k], two[k]) for k in one)
    for name in ("reports/dev.jsonl", "reports/test.jsonl"):
        a, b = (lines(tmp_path / r / name) for r in ("whole", "stopped"))
        assert [x["metrics"] for x in a] == [x["metrics"] for x in b], name
    steps = [line["step"] for line in lines(tmp_path / "stopped" / "metrics.jsonl") if "loss/ce" in line]
    assert steps == [2, 4, 6, 8, 10], "no step is written down twice"


def test_adapters_stopped_and_resumed_end_bit_identical_and_their_export_reproduces(
    corpus: Path, tmp_path: Path, capsys
) -> None:
    train(experiment(corpus), RunDir(tmp_path / "base"))
    recipe = recipe_dict(corpus, loop={"steps": 6, "gradient_checkpointing": True}, adapters={"r": 2, "dropout": 0.1})
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
    argv = ["evaluate", "--model", str(tmp_path / "whole" / "export"), str(corpus / "test.jsonl")]
    assert main([*argv, "--out", str(tmp_path / "again")]) == 0
    again = json.loads(next((tmp_path / "again").glob("*.json")).read_text())
    assert again["metrics"] == after[1]["metrics"]


def test_a_finished_run_asked_again_does_nothing_to_its_weights(corpus: Path, tmp_path: Path) -> None:
    file, run = experiment(corpus), RunDir(tmp_path / "run")
    train(file, run)
    before, headline = weights(run.root, 6), run.summary.read_text()
    train(file, run)
    assert all(torch.equal(v, weights(run.root, 6)[k]) for k, v in before.items())
    assert run.summary.read_text() == headline


def test_a_longer_length_goes_on_and_another_rate_is_refused(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train(experiment(corpus), run)
    train(experiment(corpus, loop={"steps": 8}), run)
    assert complete_checkpoints(run.checkpoints)[-1].step == 8
    with pytest.raises(BadRecipe, match=r"optim\.lr: 0\.003 → 0\.1"):
        train(experiment(corpus, optim={"lr": 0.1}, loop={"steps": 9}), run)


def test_a_manifest_that_changed_since_is_refused(corpus: Path, tmp_path: Path) -> None:
    file, run = experiment(corpus), RunDir(tmp_path / "run")
    train(file, run)
    make_corpus(corpus, 21, seed=20, name="train")
    with pytest.raises(BadData, match="the manifests of train changed"):
        train(file, run)


def test_a_superseded_training_writes_no_more(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    monkeypatch.setenv(EPOCH_ENV, str(take_epoch(run.writer)))
    take_epoch(run.writer)  # another machine took over
    with pytest.raises(Superseded):
        train(experiment(corpus), run)
    assert complete_checkpoints(run.checkpoints) == []


def test_unusable_audio_is_counted_and_the_training_goes_on(corpus: Path, tmp_path: Path) -> None:
    (corpus / "train" / "train-3.wav").write_bytes(b"not audio")
    soundfile.write(corpus / "dev" / "dev-1.wav", tone(["low"]) * 0, RATE)
    run = RunDir(tmp_path / "run")
    train(experiment(corpus), run)
    reasons = {r["id"]: r["reason"] for r in lines(run.quarantine)}
    assert set(reasons) == {"train-3", "dev-1"}
    assert "silent" in reasons["dev-1"]
    assert lines(run.reports / "dev.jsonl")[0]["metrics"]["unusable"] == 1
    silent = next(r for r in lines(run.reports / "dev.rows.jsonl") if r["id"] == "dev-1")
    assert (silent["text"], "silent" in silent["reason"]) == ("", True)


def test_a_training_that_diverges_gives_up_with_its_last_checkpoint_whole(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    sections = {"loop": {"steps": 40, "save_every_steps": 1}, "stop": {"max_nonfinite": 3}, "eval": {"every_steps": 50}}
    with pytest.raises(Diverged, match="3 steps in a row"):
        train(experiment(corpus, optim={"lr": 1e30, "clip_norm": 1e30, "warmup_share": 0}, **sections), run)
    assert complete_checkpoints(run.checkpoints)
    kept = [torch.load(f, weights_only=True) for f in sorted(run.nonfinite.iterdir())]
    assert 1 <= len(kept) <= 5
    assert all(k["recipe"]["task"] == "whisper" and not k["losses"]["ce"].isfinite().all() for k in kept)


def test_a_run_that_memory_ended_says_so_and_resumes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the GPU of the second attempt is larger, or the recipe was changed as it was told."""
    argv = ["train", str(experiment(corpus, loop={"save_every_steps": 1})), "--run-dir", str(tmp_path / "run")]
    losses, n = WhisperTask.losses, [0]

    def small(task: WhisperTask, module: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        n[0] += len(batch.ids)
        if n[0] > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(task, module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(WhisperTask, "losses", small)
        assert main(argv) == 1
    said = capsys.readouterr().err
    assert "is too much for this device's memory" in said
    assert "→ set loop.gradient_checkpointing: true" in said
    done = complete_checkpoints(tmp_path / "run" / "checkpoints")[-1].step
    assert 1 <= done < 6
    assert main(argv) == 0
    assert complete_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 6


def test_patience_ends_a_training_that_no_longer_gets_better(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    train(experiment(corpus, optim={"lr": 1e-30}, loop={"steps": 90}, stop={"patience": 2}), run)
    assert complete_checkpoints(run.checkpoints)[-1].step == 9
    assert run.summary.exists()


def test_dev_and_train_must_be_apart(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="stand in train and in dev"):
        train(experiment(corpus, data={"dev": [str(corpus / "train.jsonl")]}), RunDir(tmp_path / "run"))


def test_debug_is_short(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert main(["train", str(experiment(corpus, loop={"steps": 10_000})), "--run-dir", str(run), "--debug"]) == 0
    assert complete_checkpoints(run.checkpoints)[-1].step == 6


def test_evaluate_reproduces_the_reported_number(corpus: Path, tmp_path: Path, capsys) -> None:
    file, run = experiment(corpus), RunDir(tmp_path / "run")
    train(file, run)
    reported = lines(run.reports / "test.jsonl")[1]["metrics"]
    assert main(["evaluate", "--run", str(run)]) == 0
    (path,) = run.reports.glob("evaluate-*.json")
    assert lines(path)[-1]["metrics"] == reported
    assert f"{100 * reported['wer']:7.2f} " in capsys.readouterr().out
    out = tmp_path / "out"
    argv = ["evaluate", "--model", str(run.export), str(corpus / "test.jsonl"), "--out", str(out)]
    assert main(argv) == 0
    assert json.loads(next(out.glob("*.json")).read_text())["metrics"] == reported, "the export is the reported model"


def test_predict_answers_manifests_and_files_and_names_what_it_could_not_hear(
    corpus: Path, tmp_path: Path, capsys
) -> None:
    run = RunDir(tmp_path / "run")
    train(experiment(corpus), run)
    capsys.readouterr()
    out = tmp_path / "answers" / "a.jsonl"
    assert main(["predict", "--run", str(run), str(corpus / "test.jsonl"), "--out", str(out)]) == 0
    expected = {r["id"]: r["text"] for r in lines(run.reports / "test-padded-to-its-own-length.rows.jsonl")}
    assert {r["id"]: r["text"] for r in lines(out)} == expected
    sound, gone = str(corpus / "test" / "test-0.wav"), str(tmp_path / "gone.wav")
    assert main(["predict", "--model", str(run.export), sound, gone]) == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == {"id": sound, "text": expected["test-0"]}
    assert said[1]["id"] == gone
    assert "does not exist" in said[1]["reason"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["evaluate", "--run", "nowhere"], "no complete checkpoint"),
        (["predict", "--model", "nowhere", "a.wav"], "is not a model"),
        (["predict", "--model", "nowhere"], "nothing to transcribe"),
        (["train", "nowhere.yaml", "--run-dir", "x"], "No such file"),
        (["evaluate", "--model", "nowhere", "--set", "nonsense", "a.jsonl"], "is not a model"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_two(
    argv: list[str], says: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_prepare_reads_every_file_and_says_what_is_unusable(corpus: Path, capsys) -> None:
    file = experiment(corpus)
    assert main(["prepare", str(file)]) == 0
    (corpus / "train" / "train-3.wav").write_bytes(b"not audio")
    assert main(["prepare", str(file)]) == 2
    said = capsys.readouterr().out
    assert "train: 20 utterances" in said
    assert "data.max_bad_share allows 1 %" in said


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_prepare_demo_says_the_same_twice_and_is_all_or_nothing(tmp_path: Path, monkeypatch) -> None:
    sizes = ["--train", "6", "--dev", "2", "--test", "2"]
    monkeypatch.setenv("PODCTL_VOLUME", str(tmp_path / "volume"))
    assert main(["prepare", "demo", "--out", "one", *sizes]) == 0
    assert main(["prepare", "demo", "--out", "two", *sizes]) == 0
    one, two = tmp_path / "volume" / "data" / "one", tmp_path / "volume" / "data" / "two"
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    assert len(files) == 13
    for a, b in zip(lines(one / "train.jsonl"), lines(two / "train.jsonl"), strict=True):
        assert a.pop("duration_s") == pytest.approx(
            b.pop("duration_s"), abs=0.02
        )  # espeak-ng: one of 1,400 differed by a sample (2026-11)
        assert a == b
    assert {r["age_bucket"] for r in lines(one / "train.jsonl")} == {"3-4", "5-7", "8-11", "12+"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["prepare", "demo", "--out", "three", *sizes]) == 1
    assert sorted(p.name for p in one.parent.iterdir()) == ["one", "two"]


def test_sigterm_saves_and_leaves_with_seventy_five(corpus: Path, tmp_path: Path) -> None:
    file, run = experiment(corpus, loop={"steps": 100_000}), RunDir(tmp_path / "run")
    argv = [sys.executable, "-P", "-m", "trainer", "train", str(file), "--run-dir", str(run)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen = next(line for line in process.stdout if "step 4/" in line)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == 75, seen + rest
    last = complete_checkpoints(run.checkpoints)[-1].step
    assert f"stopped after step {last} of 100000; saved" in rest
    assert "Traceback" not in rest
