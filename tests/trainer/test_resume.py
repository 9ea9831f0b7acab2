"""A training that was broken off anywhere, whoever decodes its audio, is the training that never was."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.runs import assert_same, final_state, lines
from support.speech import ctc_dict, make_corpus, recipe_dict, tdt_dict, write_experiment

from remote.rundir import RunDir
from trainer.data.pool import decoders
from trainer.desk import Desk, write_quarantine
from trainer.errors import StopAsked
from trainer.task import Bad
from trainer.train import train

STEPS, EPOCH = 12, 5  # twenty utterances, four a step
BREAKS = {"mid-epoch": [3], "at an epoch's end": [5], "twice in one epoch": [6, 8], "at every step": list(range(1, 12))}
WORKERS = [0, 1, 2, 5]
CHANCE = {
    "augment": {"speed": [0.9, 1.1], "join_p": 0.3, "noise_snr_db": [10, 20], "spec": {"p": 0.5, "freq_width": 4}}
}
FAMILIES: dict[str, Callable[..., dict[str, Any]]] = {
    "whisper": lambda corpus, **s: recipe_dict(
        corpus, model={"from_scratch": {**recipe_dict(corpus)["model"]["from_scratch"], "dropout": 0.1}}, **s
    ),
    "parakeet": lambda corpus, **s: ctc_dict(corpus, "parakeet", model={"dropout": 0.1}, **s),
    "tdt": lambda corpus, **s: tdt_dict(corpus, "tdt", model={"dropout": 0.1}, **s),
}


def experiment(folder: Path, family: str, workers: int) -> Path:
    corpus = folder / "corpus"
    for name, n in (("train", 20), ("dev", 3), ("test", 3)):
        make_corpus(corpus, n, seed=n, name=name)
    recipe = FAMILIES[family](
        corpus,
        **CHANCE,
        data={"workers": workers},
        loop={"steps": STEPS, "step_utts": 4},
        averaging={"ema": 0.9},
        log={"every_steps": 1},
        eval={"every_steps": 4},
    )
    return write_experiment(folder / f"{family}-{workers}.yaml", recipe)


def steps_done(run: RunDir) -> int:
    return len([r for r in lines(run.metrics) if "grad_norm" in r]) if run.metrics.exists() else 0


def all_it_left(run: RunDir) -> dict[str, Any]:
    """Weights, optimiser, mean, and every number but those of the clock."""
    clock = ("t", "audio_s_per_s")
    numbers = [{k: v for k, v in r.items() if k not in clock} for r in lines(run.metrics)]
    reports = {name: [r["metrics"] for r in lines(run.reports / name)] for name in ("dev.jsonl", "test.jsonl")}
    return {"end": final_state(run.checkpoints, STEPS), "numbers": numbers, "reports": reports}


_whole: dict[str, dict[str, Any]] = {}  # of each family once: two threads, no break


def whole(family: str, folder: Path) -> dict[str, Any]:
    if family not in _whole:
        run = RunDir(folder / "whole")
        train(experiment(folder, family, 2), run)
        _whole[family] = all_it_left(run)
        assert len(_whole[family]["numbers"]) > STEPS
    return _whole[family]


def broken_off_and_resumed(folder: Path, family: str, workers: int, breaks: list[int]) -> dict[str, Any]:
    file, run = experiment(folder, family, workers), RunDir(folder / "broken")
    for n in breaks:
        with pytest.raises(StopAsked, match=f"after step {n} of {STEPS}"):
            train(file, run, stop=lambda n=n: steps_done(run) >= n)
    train(file, run)
    return all_it_left(run)


def test_broken_off_at_an_epoch_s_end_it_is_the_same_training(tmp_path: Path) -> None:
    expected = whole("whisper", tmp_path)
    assert_same(broken_off_and_resumed(tmp_path, "whisper", 0, [EPOCH]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_whenever_it_was_broken_off_it_is_the_same_training(
    tmp_path: Path, family: str, breaks: list[int], workers: int
) -> None:
    expected = whole(family, tmp_path)
    assert_same(broken_off_and_resumed(tmp_path, family, workers, breaks), expected)


@pytest.mark.slow
def test_broken_off_with_threads_and_resumed_without_it_is_the_same_training(tmp_path: Path) -> None:
    expected, run = whole("tdt", tmp_path), RunDir(tmp_path / "broken")
    for workers, end in ((5, 4), (0, 7), (1, STEPS)):
        try:
            train(experiment(tmp_path, "tdt", workers), run, stop=lambda end=end: end <= steps_done(run) < STEPS)
        except StopAsked:
            assert steps_done(run) == end
    assert_same(all_it_left(run), expected)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_whoever_does_the_work_answers_and_faults_are_those_of_the_work(workers: int) -> None:
    with decoders(workers, "test") as pool:
        assert list(pool.map(lambda x: 2 * x, range(5))) == [0, 2, 4, 6, 8]
        future = pool.submit(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            future.result()


def test_what_was_measured_before_a_break_stays_whatever_stands_in_its_buckets(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.reports.mkdir()
    told = [{"step": step, "metrics": {"wer": 0.5, "wer/title=a\u2028b": 0.5}} for step in (0, 10, 20)]
    whole = [json.dumps(t, ensure_ascii=False) + "\n" for t in told]
    (run.reports / "dev.jsonl").write_text("".join(whole) + '{"step": 20, "torn', encoding="utf-8")
    desk = cast(Desk, SimpleNamespace(run=run, machine=SimpleNamespace(is_first=True)))
    Desk.forget_beyond(desk, 10)
    assert (run.reports / "dev.jsonl").read_text(encoding="utf-8") == "".join(whole[:2])
    for _ in range(2):
        write_quarantine(run, [Bad("1", "a\u2028b: no such file")])
    assert len(run.quarantine.read_text(encoding="utf-8").split("\n")) == 2
