"""Law 11 and 12: an optimiser step is the same however it is cut, and wherever."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support.seq2seq import KINDS, seq2seq_dict
from support.speech import (
    ctc_dict,
    distilled_ctc,
    distilled_whisper,
    make_corpus,
    recipe_dict,
    tdt_dict,
    write_experiment,
)

from trainer.data.loader import StepLoader
from trainer.data.manifest import open_manifests
from trainer.loop import State, Training
from trainer.machine import placed, start_machine
from trainer.optim import make_optimiser
from trainer.recipe.load import parse_recipe
from trainer.task import make_task

ROOT = Path(__file__).parents[2]


FAMILIES = {
    "parakeet": lambda corpus, **s: ctc_dict(corpus, "parakeet", **s),
    "wav2vec2": lambda corpus, **s: ctc_dict(corpus, "wav2vec2", **s),
    "hubert": lambda corpus, **s: ctc_dict(corpus, "hubert", **s),
    "wavlm": lambda corpus, **s: ctc_dict(corpus, "wavlm", **s),
    "tdt": lambda corpus, **s: tdt_dict(corpus, "tdt", **s),
    "rnnt": lambda corpus, **s: tdt_dict(corpus, "rnnt", **s),
    "distilled-whisper": distilled_whisper,
    "distilled-ctc": distilled_ctc,
    **{kind: partial(seq2seq_dict, kind=kind) for kind in KINDS},
}
SLOW = set(KINDS) - {"speech_to_text", "moonshine"}


def trained(
    folder: Path, micro_s: float, steps: int = 3, family: str = "whisper", **sections: dict
) -> tuple[dict[str, torch.Tensor], list]:
    """Parameters after some steps in float64, and how many micro-batches each step had."""
    sections = dict(sections)
    loop = {"precision": "fp64", "micro_s": micro_s, "steps": steps, "step_utts": 8, **sections.pop("loop", {})}
    recipe = parse_recipe(FAMILIES.get(family, recipe_dict)(folder, loop=loop, **sections))
    manifest = open_manifests([folder / "train.jsonl"], recipe.data, folder, folder / "cache")
    machine = start_machine(recipe.loop)
    task = make_task(recipe)
    torch.manual_seed(0)
    parts = placed(task.build(), machine)
    loader = StepLoader(task, manifest, recipe)
    optimiser = make_optimiser(parts.module, task.groups(parts.module), recipe.optim, "fp64")
    training = Training(
        task, parts, recipe, machine, loader, optimiser, State(), None, None,
        evaluate=lambda: {"wer": 1.0}, save=lambda: None, on_bad=lambda bad: None, stop_asked=lambda: False,
    )  # fmt: skip
    training.run()
    n_micros = [len(loader.micros_of(s)[1]) for s in range(steps)]
    return {n: p.detach().clone() for n, p in parts.module.named_parameters()}, n_micros


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in a)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["whisper", "parakeet", "wav2vec2", "tdt", "moonshine", "canary", "distilled-whisper", "distilled-ctc"]
)
def test_two_ranks_train_what_one_trains(tmp_path: Path, family: str) -> None:
    corpus = tmp_path / "corpus"
    for name, n in (("train", 21), ("dev", 5), ("test", 5)):
        make_corpus(corpus, n, seed=n, name=name)
    how = {"loop": {"precision": "fp64", "steps": 4, "step_utts": 7}, "eval": {"every_steps": 2}}
    if family != "whisper":
        how |= {"augment": {"spec": {"p": 0.7, "freq_width": 4}}}
    train = FAMILIES.get(family, recipe_dict)(corpus, **how)
    file = write_experiment(tmp_path / "a.yaml", train)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        run = [str(file), "--run-dir", str(tmp_path / f"run{ranks}")]
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run(
            [*argv, "-m", "trainer", "train", *run], env=env, capture_output=True, text=True, timeout=240, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / f"run{r}/checkpoints/step-00000004/model/model.safetensors") for r in (1, 2))
    assert furthest(one, two) < 1e-9
    rows = [(tmp_path / f"run{r}/reports/dev.rows.jsonl").read_text() for r in (1, 2)]
    assert rows[0] == rows[1]
    assert len([json.loads(line) for line in rows[0].splitlines()]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["whisper", "parakeet"])
def test_two_ranks_train_what_one_trains_also_where_phases_open_and_close_groups(tmp_path: Path, family: str) -> None:
    """Gradients are joined anew over what each phase trains; what is closed is waited for by nobody."""
    corpus = tmp_path / "corpus"
    for name, n in (("train", 21), ("dev", 5), ("test", 5)):
        make_corpus(corpus, n, seed=n, name=name)
    top = "decoder" if family == "whisper" else "head"
    how = {
        "loop": {"precision": "fp64", "steps": 7, "step_utts": 7},
        "eval": {"every_steps": 4},
        "averaging": {"ema": 0.8},
        "optim": {"layer_decay": 0.8},
    }
    phases = [
        {"from_epoch": 0, "train": [top]},
        {"from_epoch": 2 / 3, "train": ["encoder"]},
        {"from_epoch": 4 / 3, "train": "all"},
    ]
    train = {**FAMILIES.get(family, recipe_dict)(corpus, **how), "phases": phases}
    file = write_experiment(tmp_path / "a.yaml", train)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        run = [str(file), "--run-dir", str(tmp_path / f"run{ranks}")]
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run(
            [*argv, "-m", "trainer", "train", *run], env=env, capture_output=True, text=True, timeout=240, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("of warm-up") == 3
    from safetensors.torch import load_file

    last = "checkpoints/step-00000007"
    one, two = (load_file(tmp_path / f"run{r}/{last}/model/model.safetensors") for r in (1, 2))
    assert furthest(one, two) < 1e-9
    one, two = (torch.load(tmp_path / f"run{r}/{last}/state/ema.pt")["mean"] for r in (1, 2))
    assert furthest(one, two) < 1e-9


def test_two_threads_train_the_same_bits_every_time(tmp_path: Path) -> None:
    """The gradient of Whisper's position look-up is summed in whichever order its threads come, unless told not to."""
    make_corpus(tmp_path, 96)
    scratch = {**recipe_dict(tmp_path)["model"]["from_scratch"], "d_model": 128}
    loop = {"threads": 2, "precision": "fp32", "step_utts": 64}
    sections = {"loop": loop, "model": {"from_scratch": scratch}}
    first, *others = (trained(tmp_path, micro_s=1000.0, steps=3, **sections)[0] for _ in range(6))
    for other in others:
        assert all(torch.equal(first[n], other[n]) for n in first)
