"""Law 11 and 12: an optimiser step is the same however it is cut, and wherever."""

import json
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, SLOW
from support.speech import make_corpus, recipe_dict
from support.steps import furthest, trained


def test_the_update_is_the_same_however_a_step_is_cut(tmp_path: Path) -> None:
    make_corpus(tmp_path, 24)
    whole, few = trained(tmp_path, micro_s=1000.0)
    single, many = trained(tmp_path, micro_s=0.1)
    middle, _ = trained(tmp_path, micro_s=1.5)
    assert all(n == 8 for n in many)
    assert all(n < 5 for n in few)
    assert furthest(whole, single) < 1e-9
    assert furthest(whole, middle) < 1e-9
    start, _ = trained(tmp_path, micro_s=1000.0, loop={"steps": 1}, optim={"lr": 1e-30})
    assert furthest(start, whole) > 1e-3, "a test of equality must see a training that moves"


@pytest.mark.slow
def test_a_compiled_training_is_the_same_up_to_rounding_and_compiles_few_times(tmp_path: Path) -> None:
    make_corpus(tmp_path, 24)
    plain, _ = trained(tmp_path, micro_s=2.0, steps=5)
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    compiled, n_micros = trained(tmp_path, micro_s=2.0, steps=5, loop={"compile": True})
    assert furthest(plain, compiled) < 1e-9
    assert sum(n_micros) > 10
    assert 1 <= counters["stats"]["unique_graphs"] <= 8, "ids and lengths must not make a kernel of their own each"


def test_augmented_steps_are_the_same_however_they_are_cut(tmp_path: Path) -> None:
    make_corpus(tmp_path, 20)
    augment = {"speed": [0.9, 1.0, 1.1], "join_p": 0.5, "spec": {"p": 1.0}, "gain_db": 3}
    whole, _ = trained(tmp_path, micro_s=1000.0, augment=augment)
    single, _ = trained(tmp_path, micro_s=0.1, augment=augment)
    assert furthest(whole, single) < 1e-9


def test_an_unusable_utterance_leaves_the_others_update_alone(tmp_path: Path) -> None:
    """Its step divides by what is left: the same as if the row had never been drawn."""
    make_corpus(tmp_path, 8)
    (tmp_path / "train" / "train-3.wav").write_bytes(b"RIFF")
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    with_bad, _ = trained(tmp_path, micro_s=1000.0, steps=1)
    (tmp_path / "train.jsonl").write_text("".join(line for line in lines if '"train-3"' not in line))
    without, _ = trained(tmp_path, micro_s=1000.0, steps=1)
    assert furthest(with_bad, without) < 1e-9


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAMILIES])
def test_the_update_of_every_family_is_the_same_however_a_step_is_cut(tmp_path: Path, family: str) -> None:
    """1×8 (as far as lengths are equal), 2×4, 8×1, with everything that is drawn."""
    make_corpus(tmp_path, 24)
    augment = {"speed": [0.9, 1.0, 1.1], "join_p": 0.5, "spec": {"p": 0.7, "freq_width": 4}, "gain_db": 3}
    how = {"family": family, "augment": augment, "steps": 2}
    whole, few = trained(tmp_path, micro_s=1000.0, **how)
    single, many = trained(tmp_path, micro_s=0.1, **how)
    middle, _ = trained(tmp_path, micro_s=1.5, **how)
    assert all(n == 8 for n in many)
    assert all(n < 5 for n in few)
    assert furthest(whole, single) < 1e-9
    assert furthest(whole, middle) < 1e-9
    start, _ = trained(tmp_path, micro_s=1000.0, loop={"steps": 1}, optim={"lr": 1e-30}, family=family)
    assert furthest(start, whole) > 1e-3, "a test of equality must see a training that moves"


def test_live_batch_statistics_are_the_exception_that_is_told(tmp_path: Path) -> None:
    make_corpus(tmp_path, 24)
    how = {"family": "parakeet", "model": {"batch_statistics": "live"}, "steps": 2}
    whole, _ = trained(tmp_path, micro_s=1000.0, **how)
    single, _ = trained(tmp_path, micro_s=0.1, **how)
    assert furthest(whole, single) > 1e-6


@pytest.mark.parametrize("family", ["wav2vec2", "tdt"])
def test_a_transcript_that_can_not_be_learnt_costs_its_utterance_and_not_the_step(tmp_path: Path, family: str) -> None:
    """Its step divides by what is left: the same as if the row had never been drawn."""
    make_corpus(tmp_path, 8)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for row in rows:
        if row["id"] == "train-3":
            row["text"] = "low " * 50 if family == "wav2vec2" else "unknown"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with_bad, _ = trained(tmp_path, micro_s=1000.0, steps=1, family=family)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["id"] != "train-3"))
    without, _ = trained(tmp_path, micro_s=1000.0, steps=1, family=family)
    assert furthest(with_bad, without) < 1e-9


def test_two_threads_train_the_same_bits_every_time(tmp_path: Path) -> None:
    """The gradient of Whisper's position look-up is summed in whichever order its threads come, unless told not to."""
    make_corpus(tmp_path, 96)
    scratch = {**recipe_dict(tmp_path)["model"]["from_scratch"], "d_model": 128}
    loop = {"threads": 2, "precision": "fp32", "step_utts": 64}
    sections = {"loop": loop, "model": {"from_scratch": scratch}}
    first, *others = (trained(tmp_path, micro_s=1000.0, steps=3, **sections)[0] for _ in range(6))
    for other in others:
        assert all(torch.equal(first[n], other[n]) for n in first)
