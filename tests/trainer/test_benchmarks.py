"""The programs behind the figures: they run, both sides of them, and what they make of their numbers is right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.peaks import peak_of

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules that the programs share, found as they find them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lib.qwen
    import lib.timing
    import lib.words

    return SimpleNamespace(qwen=lib.qwen, timing=lib.timing, words=lib.words)


def said(program: str, *argv: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = (sys.executable, str(BENCHMARKS / program), *argv)
    done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=ROOT, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_interval_holds_the_median_and_one_round_says_nothing_of_spread(lib: Any) -> None:
    low, high = lib.timing.interval([5.0, 5.2, 4.8, 5.1, 9.0, 5.0, 4.9])
    assert 4.8 <= low <= 5.0 <= high <= 5.2, "one disturbed round of seven moves no median"
    assert lib.timing.interval([2.0]) == (2.0, 2.0)
    assert lib.timing.ratio("a / b", [6.0, 9.0, 8.0], [2.0, 3.0, 2.0]).startswith("a / b: 3.00 (3.00–4.00)")


def test_word_errors_are_compared_utterance_by_utterance(lib: Any) -> None:
    def rows(texts: list[str]) -> list[dict[str, str]]:
        return [{"id": str(i), "reference": "a b", "text": t} for i, t in enumerate(texts)]

    good, bad = rows(["a b"] * 40), rows(["a b", "a c"] * 20)
    assert (lib.words.wer(good), lib.words.wer(bad)) == (0, 0.25)
    assert lib.words.paired(bad, bad) == (0, 0), "the same errors are no difference, however many there are"
    low, high = lib.words.paired(bad, good)
    assert 0.1 < low < 0.25 < high < 0.4


def test_a_peak_is_the_device_s_own_or_none() -> None:
    found = {name: peak_of(f"NVIDIA {name}") for name in ("H100 80GB HBM3", "H100 PCIe", "L40S", "L4", "Tesla T4")}
    assert {name: p.half / 1e12 for name, p in found.items() if p} == {
        "H100 80GB HBM3": 989, "H100 PCIe": 756, "L40S": 362, "L4": 121, "Tesla T4": 65,
    }  # fmt: skip
    assert found["L4"].single == found["L4"].half / 2
    assert peak_of("some other card") is None


def test_qwen_s_arithmetic_is_counted_to_the_last_operation(lib: Any) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = lib.qwen.make_qwen(tiny=True)
    model.set_attn_implementation("eager")
    batch = lib.qwen.batch_of(model, 3, 9, 20, seed=0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        lib.qwen.loss_of(model, batch)
    assert counter.get_total_flops() == lib.qwen.qwen_work(model, model.config, 3, 9, 20).forward_flops


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_is_timed_on_both_sides() -> None:
    text = said("training.py", "short", "--quick")
    for line in ("ours ", "stock ", "ours-own ", "stock-own ", "stock / ours, both", "stock-own / ours-own, both"):
        assert any(t.startswith(line) for t in text.splitlines()), text
    assert "90.0%" in text, "the other side pads three seconds to thirty"
    text = said("training.py", "wer", "--quick")
    assert "ours in the full window − stock in the full window" in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_decoding_is_timed_on_both_sides_and_they_write_the_same() -> None:
    text = said("evaluation.py", "--quick")
    assert "pipeline / ours, both in the full window" in text
    assert "written differently in the same full window: 0 of 12" in text
    text = said("evaluation.py", "--quick", "--utterances", "20", "--rounds", "1", "--pipeline-utterances", "6")
    found = {line[:18].strip(): line[18:].split() for line in text.splitlines() if line[:4] in ("ours", "pipe")}
    assert [found[n][0] for n in ("ours, own length", "ours, full window", "pipeline")] == ["20", "20", "6"]
    wall_s, rtfx = float(found["ours, own length"][1]), float(found["ours, own length"][3])
    assert rtfx == pytest.approx(60 / wall_s, rel=0.05), "seconds of audio by seconds on the wall"
    assert "pipeline: of the first 6 utterances alone; it was not asked for the other 14" in text
    assert "written differently in the same full window: 0 of 6" in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif("SPOKEN_DIGITS_DIR" not in os.environ, reason="SPOKEN_DIGITS_DIR names no spoken digits")
def test_adaptation_to_a_fifth_speaker_tells_what_he_gains_and_what_the_others_lose(tmp_path: Path) -> None:
    text = said("adaptation.py", "--quick", "--speaker", "theo", "--place", str(tmp_path))
    for side in ("adapters", "adapters + others", "all weights", "all weights + others"):
        assert any(line.startswith(f"  {side:22} ") and "→" in line for line in text.splitlines()), text
    of = {p.stem: {json.loads(r)["speaker_id"] for r in p.open()} for p in (tmp_path / "manifests-theo").iterdir()}
    assert of["fifth"] == {"theo"}
    assert len(of["others"]) == len(of["singles"]) == 4
    assert not (of["others"] | of["singles"]) & of["fifth"], "the base never heard him"
    again = said("adaptation.py", "--quick", "--speaker", "theo", "--place", str(tmp_path))
    assert again.splitlines()[1:] == text.splitlines()[1:], "what is kept is not trained again"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_case_of_the_gpu_benchmark_runs_without_a_gpu() -> None:
    text = said("gpu.py", "--device", "cpu", "--tiny")
    cases = [f"{m}, {how}" for m in ("whisper-small", "whisper-large-v3", "qwen3-asr-1.7b") for how in ("lora", "full")]
    for case in cases:
        (line,) = [t for t in text.splitlines() if t.startswith(case)]
        assert float(line.removeprefix(case).split()[0]) > 0, line


@pytest.mark.slow
def test_what_a_server_does_otherwise_is_told_a_setting_at_a_time(tmp_path: Path) -> None:
    from support.speech import make_corpus, recipe_dict
    from support.whispers import talkative

    make_corpus(tmp_path, 3, name="test")
    talkative(tmp_path / "hub", recipe_dict(tmp_path))
    told = said("served.py", "--model", str(tmp_path / "hub"), "--utterances", "3").splitlines()
    first = next(line for line in told if line.startswith("as decode.json says"))
    assert "   0 differ" in first
    assert sum("WER" in line or "fails" in line for line in told) == 11
