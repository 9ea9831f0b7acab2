"""Memory that runs out in the middle of a step: the step is done again, cut finer, and is the same step."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.speech import make_corpus
from support.training import FAMILIES, SmallMemory, furthest, make_training, watch, weights_of
from support.two_ranks import on_two_ranks
from torch import nn

from trainer.data.plan import Cut
from trainer.errors import OutOfMemory
from trainer.gradient import Gradient, is_out_of_memory
from trainer.loop import Training

pytestmark = pytest.mark.usefixtures("quick_collections")
FITS = 2  # utterances


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, 24)
    return folder


def one_step(corpus: Path, family: str, direction: str) -> tuple[Callable[[int], dict[str, torch.Tensor]], SmallMemory]:
    """The gradient of one step whose memory runs out at the k-th pass; 0 is never."""
    training = make_training(corpus, family, loop={"steps": 1, "step_utts": 10})
    loader, module = training.loader, training.parts.module
    gradient = Gradient(training.task, training.parts, training.recipe, training.machine, loader, training.optimiser)
    module.train()
    gradient.open()
    (step,) = loader.steps(0, 1)
    memory = SmallMemory(module, FITS, 0, direction)
    watch(training, memory)

    def of(at: int) -> dict[str, torch.Tensor]:
        loader.cut, memory.at, memory.times, memory.most = Cut(1000.0), at, 0, 0
        training.optimiser.clear()
        gradient.of(step, dict.fromkeys(training.task.losses_of, 17), {})
        return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    return of, memory


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("family", ["whisper", "parakeet", "tdt"])
def test_wherever_memory_runs_out_the_gradient_is_the_same(
    corpus: Path, family: str, direction: str, every: int
) -> None:
    """At each single pass through a module (at some of them, where it has to be quick), of more than two utterances."""
    of, memory = one_step(corpus, family, direction)
    expected = of(0)
    n = memory.most
    assert n > 8
    for at in [*range(1, n, every), n]:
        found = of(at)
        assert memory.times >= 1, at
        assert found.keys() == expected.keys()
        assert furthest(expected, found) < 1e-9, at
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3, "equal to nothing would prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_whose_memory_runs_out_ends_where_any_other_does(corpus: Path, family: str) -> None:
    plain, training = make_training(corpus, family), make_training(corpus, family)
    plain.run()
    memory = SmallMemory(training.parts.module, FITS, 9, "backward")
    watch(training, memory)
    training.run()
    assert memory.times >= 1
    assert furthest(weights_of(plain), weights_of(training)) < 1e-9


def broken(training: Training, fails: Callable[[Any, int], bool]) -> list[int]:
    """From here on the device has no memory where `fails(batch, attempt)`; how large what it was asked for was."""
    task, inner = training.task, training.task.losses
    asked: list[int] = []

    def losses(module: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        asked.append(len(batch.ids))
        said = inner(module, batch)
        if fails(batch, len(asked)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return said

    task.losses = losses  # type: ignore[method-assign]
    return asked


def test_what_was_learnt_holds_from_the_next_step_on_and_is_said_once(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = make_training(corpus, loop={"steps": 6})
    asked = broken(training, lambda batch, n: len(batch.ids) > FITS)
    training.run()
    refused = [n for n in asked if n > FITS]
    learnt = caplog.text.count("out of memory at")
    assert len(refused) == learnt
    assert learnt <= 3, "8 → 4 → 2 of the shortest length, and whatever is longer has learnt with it"
    assert training.loader.cut.n_at(2.0) <= FITS
    assert all(n <= FITS for n in asked[-8:])


def test_nothing_of_a_step_that_failed_is_held_when_it_is_done_again(corpus: Path) -> None:
    training = make_training(corpus, loop={"steps": 1})
    task, prepare, inner = training.task, training.task.prepare, training.task.losses
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def prepared(batch: Any, parts: Any, train: bool) -> Any:
        made = prepare(batch, parts, train)
        alive.append(sum(r() is not None for r in held))
        held.append(weakref.ref(made))
        held.append(weakref.ref(made.mel_BMF))
        return made

    def losses(module: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        said = inner(module, batch)
        held.append(weakref.ref(said["ce"]))
        if len(batch.ids) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return said

    task.prepare, task.losses = prepared, losses  # type: ignore[method-assign]
    gc.disable()
    try:
        training.run()
    finally:
        gc.enable()
    assert len(alive) > 3
    assert max(alive) == 0


@pytest.mark.parametrize(
    "family", ["whisper", *(pytest.param(f, marks=pytest.mark.slow) for f in ("parakeet", "wav2vec2"))]
)
def test_a_step_that_is_done_again_meets_the_same_chance(corpus: Path, family: str) -> None:
    """With dropout, where the cut stays: not one bit differs."""
    scratch = dict(make_training(corpus, family).recipe.model_dump()["model"]["from_scratch"])
    sections: dict[str, Any] = {"model": {"from_scratch": {**scratch, "dropout": 0.2}}}
    plain, training = (make_training(corpus, family, **sections) for _ in range(2))
    plain.run()
    training.loader.cut.learn = lambda padded_s, n: None  # type: ignore[method-assign]
    sizes = broken(training, lambda batch, n: n == 1)
    training.run()
    assert sizes[0] > 1
    one, two = weights_of(plain), weights_of(training)
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_gathered_statistics_are_those_of_the_step_that_was_done(corpus: Path) -> None:
    model = {"batch_statistics": "live"}
    plain, training = (make_training(corpus, "parakeet", model=model) for _ in range(2))
    plain.run()
    training.loader.cut.learn = lambda padded_s, n: None  # type: ignore[method-assign]
    broken(training, lambda batch, n: n in (1, 5))
    training.run()
    one, two = (dict(t.parts.module.named_buffers()) for t in (plain, training))
    assert any("num_batches_tracked" in n for n in one)
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_memory_may_run_out_while_a_batch_is_prepared(corpus: Path) -> None:
    plain, training = make_training(corpus), make_training(corpus)
    plain.run()
    task, prepare = training.task, training.task.prepare

    def prepared(batch: Any, parts: Any, train: bool) -> Any:
        if len(batch.ids) > FITS:
            raise MemoryError
        return prepare(batch, parts, train)

    task.prepare = prepared  # type: ignore[method-assign]
    training.run()
    assert furthest(weights_of(plain), weights_of(training)) < 1e-9


def test_one_utterance_that_does_not_fit_alone_ends_the_run(corpus: Path) -> None:
    training = make_training(corpus)
    broken(training, lambda batch, n: "train-3" in batch.ids)
    with pytest.raises(OutOfMemory, match=r"one utterance of \d(\.\d)? s is too much for this device's memory") as e:
        training.run()
    assert e.value.exit_code == 1
    assert "gradient_checkpointing" in e.value.hint


def test_another_error_is_no_lack_of_memory(corpus: Path) -> None:
    training = make_training(corpus)
    task = training.task

    def losses(module: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    task.losses = losses  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="must match"):
        training.run()


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.02 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (ValueError("not enough values"), False),
    ],
)
def test_which_errors_say_that_there_is_no_memory(error: BaseException, is_it: bool) -> None:
    assert is_out_of_memory(error) == is_it


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("family", ["whisper", "tdt"])
def test_memory_that_runs_out_on_one_of_two_ranks_changes_nothing(
    corpus: Path, tmp_path: Path, family: str, direction: str
) -> None:
    sections = {"loop": {"steps": 3, "step_utts": 16}}
    plain = make_training(corpus, family, **sections)
    plain.run()
    memory = {"n": FITS, "at": 9, "direction": direction}
    said, weights, log = on_two_ranks(tmp_path, corpus=str(corpus), family=family, memory=memory, sections=sections)
    assert [s["ended"] for s in said] == ["", ""], log
    assert said[1]["times"] >= 1
    for mine in weights:
        assert furthest(weights_of(plain), mine) < 1e-9


@pytest.mark.slow
def test_one_utterance_too_many_ends_all_ranks_alike(corpus: Path, tmp_path: Path) -> None:
    memory = {"n": 0, "at": 3, "direction": "backward"}
    said, _, _ = on_two_ranks(tmp_path, corpus=str(corpus), memory=memory)
    assert all("OutOfMemory: one utterance of" in s["ended"] for s in said)
