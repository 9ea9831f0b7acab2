"""The README's first command, and real speech: what a newcomer sees. Minutes long."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGITS = os.environ.get("SPOKEN_DIGITS_DIR", "")


def podctl(home: Path, *args: str, timeout: float = 1800) -> tuple[dict, float]:
    """The receipt, and the seconds until the log's first word of training."""
    python = (
        os.environ.get("PODCTL_PYTHON", "") or shutil.which("python3", path=str(ROOT / ".venv" / "bin")) or "python3"
    )
    env = {**os.environ, "PODCTL_HOME": str(home), "PYTHONPATH": str(ROOT)}
    began, first = time.monotonic(), 0.0
    with subprocess.Popen(
        [python, "-m", "podctl", *args, "--json"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            if not first and "before training" in line:
                first = time.monotonic() - began
            assert time.monotonic() - began < timeout
        assert process.wait(60) == 0
    return json.loads(line), first


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_the_demo_reaches_its_word_error_rate_and_a_second_one_starts_at_once(tmp_path: Path) -> None:
    args = ("train", "--config", "configs/demo.yaml", "--local", "--yes")
    receipt, _ = podctl(tmp_path, *args)
    print(receipt["headline"])
    assert receipt["bill"] == "$0.00"
    assert receipt["metrics"]["test/wer"] < 0.15
    assert receipt["metrics"]["test/wer/padded to the full window"] < 0.15
    second, first_look = podctl(tmp_path, *args, "--set", "train.loop.steps=125")
    assert second["run"] != receipt["run"], "a run that succeeded is not resumed"
    print(f"the second began training after {first_look:.1f} s")


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(5400)
@pytest.mark.skipif(not DIGITS, reason="needs SPOKEN_DIGITS_DIR")
def test_real_speech_is_learned_and_shuffled_speech_is_not(tmp_path: Path) -> None:
    args = ("train", "--config", "configs/spoken_digits.yaml", "--local", "--yes")
    receipt, _ = podctl(tmp_path, *args)
    print(receipt["headline"])
    assert receipt["metrics"]["test/wer"] < 0.08
    control, _ = podctl(tmp_path, *args, "--force-restart", "--set", "train.data.shuffle_audio=true")
    print("control:", control["headline"])
    assert control["metrics"]["test/wer"] >= 0.8
