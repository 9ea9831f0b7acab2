"""Law 9: killed at any moment, a run resumes to the same parameters, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import assert_same, final_state
from support.speech import ctc_dict, make_corpus, recipe_dict, write_experiment

ROOT = Path(__file__).parents[2]
KILLING = ROOT / "tests" / "support" / "killing.py"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus"
    for name, n in (("train", 20), ("dev", 3), ("test", 3)):
        make_corpus(corpus, n, seed=n, name=name)
    train = recipe_dict(
        corpus,
        model={"from_scratch": {**recipe_dict(corpus)["model"]["from_scratch"], "dropout": 0.1}},
        augment={"speed": [0.9, 1.0, 1.1], "spec": {"p": 0.5}, "join_p": 0.3},
        loop={"steps": 9, "step_utts": 3, "save_every_steps": 2, "keep_last": 1},
        eval={"every_steps": 3, "before_training": False},
    )
    return write_experiment(tmp_path / "kill.yaml", train)


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XDG_CACHE_HOME": str(tmp_path / "cache")}


def killing(tmp_path: Path, *args: str) -> str:
    argv = [sys.executable, str(KILLING), *args]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(tmp_path), timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_killed_at_two_points_of_a_save_it_ends_bit_identical(experiment: Path, tmp_path: Path) -> None:
    reference = tmp_path / "whole"
    boundaries = int(killing(tmp_path, str(experiment), str(reference), "count", "2"))
    assert boundaries > 40
    whole = final_state(reference / "checkpoints", 9)
    points = [str(boundaries // 3), str(boundaries - 3)]
    killing(tmp_path, str(experiment), str(tmp_path / "killed"), "kill", "2", *points)
    for at in points:
        assert_same(final_state(tmp_path / f"killed-2-{at}" / "checkpoints", 9), whole)


@pytest.mark.slow
def test_a_ctc_training_killed_in_a_save_ends_bit_identical(experiment: Path, tmp_path: Path) -> None:
    """Its vocabulary comes from the transcripts, and its batch norms have buffers that are saved."""
    train = ctc_dict(
        tmp_path / "corpus",
        model={"letters": None, "dropout": 0.1, "batch_statistics": "live"},
        augment={"speed": [0.9, 1.0, 1.1], "spec": {"p": 0.5}, "join_p": 0.3},
        loop={"steps": 9, "step_utts": 3, "save_every_steps": 2, "keep_last": 1},
        eval={"every_steps": 3, "before_training": False},
    )
    file = write_experiment(tmp_path / "ctc.yaml", train)
    boundaries = int(killing(tmp_path, str(file), str(tmp_path / "whole"), "count", "2"))
    whole = final_state(tmp_path / "whole" / "checkpoints", 9)
    killing(tmp_path, str(file), str(tmp_path / "killed"), "kill", "2", str(boundaries // 2))
    assert_same(final_state(tmp_path / f"killed-2-{boundaries // 2}" / "checkpoints", 9), whole)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [None, {"kind": "qlora", "r": 2}])
def test_killed_between_two_phases_it_ends_bit_identical(
    experiment: Path, tmp_path: Path, adapters: dict[str, Any] | None
) -> None:
    """In the save after a phase's last step: early, and an older one is resumed from; late, and the next opens."""
    train = yaml.safe_load(experiment.read_text())["train"]
    train["phases"] = [
        {"from_epoch": 0, "train": ["decoder"], "lr": 0.01},
        {"from_epoch": 4 / 7, "train": "all", "rates": {"encoder": 0.5}, "warmup_steps": 2},  # from the fifth step on
    ]
    train["averaging"] = {"ema": 0.9}
    train["eval"]["every_steps"] = 9
    if adapters:
        from trainer.recipe.load import parse_recipe
        from trainer.task import make_task

        task = make_task(parse_recipe(train))
        task.export(task.build().module, tmp_path / "base")
        train |= {"adapters": adapters, "model": {"name": str(tmp_path / "base")}}
    file = write_experiment(tmp_path / "phases.yaml", train)
    boundaries = int(killing(tmp_path, str(file), str(tmp_path / "whole"), "count", "1"))
    whole = final_state(tmp_path / "whole" / "checkpoints", 9)
    assert len({float(s["step"]) for s in whole["adamw"]["state"].values()}) == 2, "one group began later"
    points = [str(i) for i in (2, boundaries // 2, boundaries - 2)]
    killing(tmp_path, str(file), str(tmp_path / "killed"), "kill", "1", *points)
    for at in points:
        assert_same(final_state(tmp_path / f"killed-1-{at}" / "checkpoints", 9), whole)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("save", [0, 2, 5])
def test_killed_at_every_boundary_of_a_save_it_ends_bit_identical(experiment: Path, tmp_path: Path, save: int) -> None:
    """Save 0 is the first; save 2 replaces and deletes an older one; save 5 is the last."""
    boundaries = int(killing(tmp_path, str(experiment), str(tmp_path / "whole"), "count", str(save)))
    whole = final_state(tmp_path / "whole" / "checkpoints", 9)
    points = [str(i) for i in range(boundaries)]
    killing(tmp_path, str(experiment), str(tmp_path / "killed"), "kill", str(save), *points)
    for at in points:
        assert_same(final_state(tmp_path / f"killed.keep-{save}-{at}", 9), whole)
    print(f"save {save}: {boundaries} boundaries")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_at_twenty_random_moments_it_ends_bit_identical(experiment: Path, tmp_path: Path) -> None:
    def start(run: Path) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "trainer", "train", str(experiment), "--run-dir", str(run)]
        out = (tmp_path / "log").open("ab")
        return subprocess.Popen(argv, env=environment(tmp_path), cwd=ROOT, stdout=out, stderr=out)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait(120) == 0
    took = time.monotonic() - began
    whole = final_state(tmp_path / "whole" / "checkpoints", 9)
    rng = random.Random(1)
    kills = 0
    for n in range(100):
        run = tmp_path / f"killed-{n}"
        for _ in range(4):  # several times in one run, then to its end
            process = start(run)
            try:
                process.wait(rng.uniform(0.3, 1.0) * took)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert start(run).wait(120) == 0, (tmp_path / "log").read_text()[-3000:]
        assert_same(final_state(run / "checkpoints", 9), whole)
        if kills >= 20:
            break
    assert kills >= 20
