"""From the command line to a model, with the real trainer: small enough for every day."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.podctl_cli import Cli
from support.speech import make_corpus, recipe_dict

from remote.files import read_json


def experiment(cli: Cli, name: str = "tiny", **sections: dict) -> Path:
    """Trains on a corpus in the volume's data/, by relative paths, made by a prep stage."""
    corpus = cli.project / "corpus"
    if not corpus.exists():
        for part, n in (("train", 20), ("dev", 4), ("test", 4)):
            make_corpus(corpus, n, seed=n, name=part)
    train = recipe_dict(Path("corpus"), **sections)
    stage = {
        "run": 'mkdir -p "$PODCTL_VOLUME/data" && cp -R corpus "$PODCTL_VOLUME/data/"',
        "outputs": ["corpus/train.jsonl"],
    }
    whole = {"name": name, "pod": {"provider": "local", "max_hours": 0.1}, "prep": [stage], "train": train}
    path = cli.project / f"{name}'s experiment.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model" / "model.safetensors")


def until(true, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_command_trains_and_says_what_it_is_worth_and_where_it_lies(cli: Cli) -> None:
    done = cli("train", "--config", experiment(cli), "--local", "--json", timeout=120)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.decode().splitlines()]
    receipt = lines[-1]
    assert receipt["event"] == "receipt"
    assert (receipt["state"], receipt["bill"]) == ("succeeded", "$0.00")
    assert receipt["headline"].startswith("test WER")
    for key in ("run_dir", "log", "best_checkpoint", "export", "results"):
        assert Path(receipt[key]).exists(), key
    assert "test/wer" in receipt["metrics"]
    source = read_json(Path(receipt["run_dir"]) / "source.json")
    report = json.loads((Path(receipt["run_dir"]) / "reports" / "test.jsonl").read_text().splitlines()[-1])
    assert report["provenance"]["commit"] == source["commit"]
    log = "".join(line["text"] for line in lines if line["event"] == "log")
    assert log.encode() == Path(receipt["log"]).read_bytes(), "not a byte of the log was lost on the way"


@pytest.mark.slow
def test_stopped_and_trained_again_it_ends_where_it_would_have_ended(cli: Cli) -> None:
    sections = {"loop": {"steps": 160, "save_every_steps": 10}, "eval": {"every_steps": 80}}
    assert cli("train", "--config", experiment(cli, "whole", **sections), "--local", timeout=120).code == 0
    file = experiment(cli, "stopped", **sections)
    process = cli.start("train", "--config", file, "--local")
    until(lambda: any((r / "checkpoints" / "step-00000010").exists() for r in cli.runs() if "stopped" in r.name))
    stop = cli("stop", "stopped")
    assert stop.code == 0, stop.err
    assert process.wait(60) == 75
    (run,) = (r for r in cli.runs() if "stopped" in r.name)
    assert read_json(run / "status.json")["state"] == "stopped"
    done = cli("train", "--config", file, "--local", timeout=120)
    assert done.code == 0, done.err
    assert b"resumed from step" in done.out
    (whole,) = (r for r in cli.runs() if "whole" in r.name)
    one, two = weights(whole, 160), weights(run, 160)
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.slow
def test_a_trainer_that_is_killed_is_a_failed_run_that_resumes(cli: Cli) -> None:
    file = experiment(cli, loop={"steps": 300, "save_every_steps": 5}, eval={"every_steps": 300})
    process = cli.start("train", "--config", file, "--local")
    until(lambda: any((r / "checkpoints" / "step-00000005").exists() for r in cli.runs()))
    (run,) = cli.runs()
    trainers = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _runs_trainer(p, run)]
    for pid in trainers:
        os.kill(pid, signal.SIGKILL)
    assert trainers
    assert process.wait(60) == 1
    assert "SIGKILL" in read_json(run / "status.json")["reason"]
    assert cli("train", "--config", file, "--local", timeout=120).code == 0
    assert read_json(run / "status.json")["attempt"] == 2


@pytest.mark.slow
def test_a_changed_recipe_is_refused_with_what_changed(cli: Cli) -> None:
    file = experiment(cli, loop={"steps": 100_000, "save_every_steps": 5})
    process = cli.start("train", "--config", file, "--local")
    until(lambda: any((r / "checkpoints" / "step-00000005").exists() for r in cli.runs()))
    busy = cli("train", "--config", file, "--local")
    assert (busy.code, "podctl attach" in busy.err) == (8, True)
    cli("stop")
    assert process.wait(60) == 75
    refused = cli("train", "--config", file, "--local", "--set", "train.optim.lr=0.5")
    assert refused.code == 2
    assert "optim.lr: 0.003 → 0.5" in refused.err
    assert "--force-restart" in refused.err


def test_both_halves_of_a_file_tell_their_mistakes_together(cli: Cli) -> None:
    file = experiment(cli)
    text = file.read_text().replace("max_hours: 0.1", "max_hours: soon").replace("lr: 0.003", "lr: fast")
    file.write_text(text + "colour: red\n")
    done = cli("train", "--config", file, "--local")
    assert done.code == 2
    for word in ("pod.max_hours", "train.optim.lr", "colour"):
        assert word in done.err
    assert not cli.runs()


@pytest.mark.slow
def test_unusable_data_is_one_sentence_and_not_a_traceback(cli: Cli) -> None:
    file = experiment(cli)
    shutil.rmtree(cli.project / "corpus" / "train")
    done = cli("train", "--config", file, "--local", timeout=120)
    assert done.code == 1
    assert b"20 of 20" not in done.out
    assert b"no utterance can be used" in done.out
    assert b"Traceback" not in done.out


def _runs_trainer(process: Path, run: Path) -> bool:
    try:
        argv = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"trainer" in argv and b"train" in argv and str(run).encode() in argv and b"-m" in argv
