"""Steps that are not finite: counted alike on all ranks, named and kept; a search for fp16's scale is none of them."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from support.speech import make_corpus
from support.training import Book, make_training, nan_for, weights_of
from support.two_ranks import on_two_ranks

from remote.rundir import RunDir
from trainer.errors import Diverged
from trainer.logbook import Logbook
from trainer.loop import Training
from trainer.nonfinite import MOST, verdict


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    make_corpus(tmp_path, 24)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "scale", "what"),
    [
        (0, None, "taken"),
        (0, 65536.0, "taken"),
        (1, None, "nonfinite"),
        (1, 65536.0, "searching"),
        (1, 2.0, "searching"),
        (1, 1.0, "nonfinite"),
        (1, 0.5, "nonfinite"),
        (2, None, "nonfinite"),
        (2, 65536.0, "nonfinite"),
    ],
)
def test_a_scale_that_is_searched_for_is_told_from_a_gradient_that_is_lost(
    code: int, scale: float | None, what: str
) -> None:
    assert verdict(code, scale) == what


def scaled(training: Training, scale: float) -> Training:
    """As in fp16: a CPU computes in fp32, where it takes a huge scale for a gradient to overflow."""
    training.optimiser.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return training


def book(training: Training) -> list[dict[str, float]]:
    assert isinstance(training.book, Book)
    return [line for line in training.book.lines if "lr" in line]


def test_the_search_for_a_scale_costs_no_patience(corpus: Path) -> None:
    training = scaled(
        make_training(corpus, precision="fp32", loop={"steps": 12}, stop={"max_nonfinite": 2}), 2.0**127 * 1.5
    )
    scaler = training.optimiser.scaler
    assert scaler is not None
    before = weights_of(training)
    normal = training.optimiser.backward
    training.optimiser.backward = lambda loss: normal(loss * 64)  # type: ignore[method-assign]
    training.run()
    assert training.state.scale_lowered >= 3
    assert training.state.skipped == 0
    assert book(training)[-1]["scale_lowered"] == training.state.scale_lowered
    assert scaler.get_scale() < 2.0**126
    assert any(not torch.equal(before[n], w) for n, w in weights_of(training).items()), "it found one and trained"


def test_a_gradient_that_is_lost_at_any_scale_ends_the_search_and_then_the_run(corpus: Path) -> None:
    training = scaled(make_training(corpus, precision="fp32", loop={"steps": 12}, stop={"max_nonfinite": 2}), 4.0)
    next(training.parts.module.parameters()).register_hook(lambda g: g * math.nan)
    with pytest.raises(Diverged, match="2 steps in a row"):
        training.run()
    assert (training.state.scale_lowered, training.state.skipped) == (2, 2)


def test_without_a_scale_every_lost_gradient_counts_and_a_whole_step_forgives(corpus: Path) -> None:
    training = make_training(corpus, loop={"steps": 6}, stop={"max_nonfinite": 3})
    state, bad = training.state, {0, 1, 3, 4}
    next(training.parts.module.parameters()).register_hook(lambda g: g * (math.nan if state.step in bad else 1.0))
    training.run()
    assert (training.state.skipped, training.state.skipped_in_a_row, training.state.step) == (4, 0, 6)


@pytest.mark.parametrize("family", ["whisper", *(pytest.param(f, marks=pytest.mark.slow) for f in ("wav2vec2", "tdt"))])
def test_a_lost_loss_skips_its_step_is_named_and_can_be_looked_into(
    corpus: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the gradient is whole: 24 utterances in steps of eight, so one step of three holds it."""
    folder = corpus / "nonfinite"
    training = make_training(corpus, family, spoil=nan_for(["train-3"]), dumps=folder)
    with caplog.at_level(logging.INFO, "trainer"):
        training.run()
    assert training.state.skipped == 1
    (file,) = folder.iterdir()
    assert f"its loss is not finite (train-3; kept in nonfinite/{file.name})" in caplog.text
    whole = torch.load(file, weights_only=True)
    lost = [i for i, v in zip(whole["ids"], next(iter(whole["losses"].values())).isnan(), strict=True) if v]
    assert lost == ["train-3"]
    assert f"step-{whole['step']:08d}-" in file.name
    assert whole["versions"]["torch"]
    assert whole["batch"]["wave_BT"].shape[0] == len(whole["ids"]) == len(whole["draws"])
    assert {"id", "audio", "text"} <= whole["examples"][0].keys()


def test_no_weight_moves_in_a_step_whose_loss_is_lost_though_its_gradient_is_whole(corpus: Path) -> None:
    every = [f"train-{i}" for i in range(24)]
    training = make_training(corpus, spoil=nan_for(every), loop={"steps": 4})
    before = weights_of(training)
    training.run()
    assert training.state.skipped == 4
    assert all(torch.equal(before[n], w) for n, w in weights_of(training).items())


def test_a_few_are_kept_and_all_are_counted(corpus: Path) -> None:
    every = [f"train-{i}" for i in range(24)]
    folder = corpus / "nonfinite"
    training = make_training(corpus, spoil=nan_for(every), loop={"steps": 9, "micro_s": 1.0}, dumps=folder)
    training.run()
    assert training.state.skipped == 9
    assert len(list(folder.iterdir())) == MOST


def test_a_run_that_diverges_names_what_it_was_lost_on(corpus: Path) -> None:
    every = [f"train-{i}" for i in range(24)]
    training = make_training(corpus, spoil=nan_for(every), stop={"max_nonfinite": 2}, loop={"steps": 9})
    with pytest.raises(Diverged, match=r"2 steps in a row .*\(up to step 2: train-\d+, .* and 3 more\)"):
        training.run()


def test_where_nothing_can_be_kept_the_training_goes_on(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    (corpus / "nonfinite").write_text("a file where the folder would be")
    training = make_training(corpus, spoil=nan_for(["train-3"]), dumps=corpus / "nonfinite")
    training.run()
    assert (training.state.step, training.state.skipped) == (3, 1)
    assert "could not be kept" in caplog.text


def test_what_is_not_a_number_is_written_down_as_that(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = [f"train-{i}" for i in range(24)]
    run = RunDir(corpus / "run")
    training = make_training(corpus, spoil=nan_for(every), loop={"steps": 2})
    training.book = Logbook(run, 0, tensorboard=True)
    with caplog.at_level(logging.INFO, "trainer"):
        training.run()
    training.book.close()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert all(math.isnan(line["loss/ce"]) for line in lines if "loss/ce" in line)
    assert "step 1/2  loss nan" in caplog.text
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [math.isnan(e.value) for e in events.Scalars("loss/ce")] == [True, True]


@pytest.mark.slow
def test_what_is_lost_on_one_rank_is_skipped_and_counted_on_all(corpus: Path) -> None:
    every = [f"train-{i}" for i in range(24)]
    sections = {"loop": {"steps": 6, "micro_s": 1.0}, "stop": {"max_nonfinite": 3}}
    said, weights, log = on_two_ranks(corpus / "two", corpus=str(corpus), nan=every, sections=sections)
    assert [s["skipped"] for s in said] == [3, 3]
    assert all("3 steps in a row" in s["ended"] for s in said), log
    assert said[0]["ended"] == said[1]["ended"]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert len(list((corpus / "two" / "nonfinite").iterdir())) == MOST
    one, _, _ = on_two_ranks(corpus / "few", corpus=str(corpus), nan=["train-3"], on_rank=0, sections=sections)
    other, _, _ = on_two_ranks(corpus / "more", corpus=str(corpus), nan=["train-3"], on_rank=1, sections=sections)
    assert [s["skipped"] for s in one] == [one[0]["skipped"]] * 2
    assert one[0]["skipped"] + other[0]["skipped"] == 2, "two epochs: it is met twice, each time by one of them"
