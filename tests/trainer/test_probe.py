"""Memory that is tried before the first step: what fits is found, and nothing is left of the trial."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.speech import make_corpus
from support.training import Book, furthest, make_training, weights_of
from support.two_ranks import on_two_ranks

from trainer.data.plan import Cut
from trainer.errors import OutOfMemory
from trainer.halves import predicted
from trainer.loop import Training
from trainer.machine import Machine
from trainer.probe import LengthClass, largest, length_classes, search, teach, thinned, wants_trial
from trainer.recipe.eval import Decode
from trainer.recipe.loop import Loop

pytestmark = pytest.mark.usefixtures("quick_collections")
CPU = Machine(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, 24)
    return folder


class Memory:
    """A device that holds so many seconds, of which longer utterances cost more than their length."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.asked: list[tuple[float, int]] = []

    def __call__(self, length: LengthClass, n: int) -> None:
        self.asked.append((length.padded_s, n))
        if not self.holds(length.padded_s, n):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def holds(self, padded_s: float, n: int) -> bool:
        return n * padded_s * (1 + padded_s / 30) <= self.capacity


def lengths(*padded_s: float, most: int = 64) -> list[LengthClass]:
    return [LengthClass(s, 10, float(most), most) for s in sorted(padded_s, reverse=True)]


# ---- decisions


@pytest.mark.parametrize("most", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("first", [1, 5, 300])
def test_the_largest_that_fits_is_found_to_an_eighth_with_few_questions(most: int, first: int) -> None:
    for limit in [*range(40), 63, 64, 65, 299, 300, 301, 512, 999, 1000, 1100]:
        asked: list[int] = []
        found = largest(lambda n, limit=limit, asked=asked: (asked.append(n), n <= limit)[1], most, first)  # type: ignore[misc]
        best = min(limit, most)
        assert found <= best
        assert found >= best - max(1, best // 8) or found == best
        assert (found >= 1) == (best >= 1)
        assert found == 0 or found in asked, "what is answered was seen to fit"
        assert len(asked) <= 16
        assert max(asked) <= most


def test_the_cut_that_is_found_fits_and_leaves_little_unused() -> None:
    memory = Memory(400.0)
    classes = lengths(0.5, 1, 2, 5, 10, 20, 30)
    cut = search(classes, memory, CPU)
    for c in classes:
        n = min(c.most, cut.n_at(c.padded_s))
        assert memory.holds(c.padded_s, n)
        assert n >= 1
        best = max(k for k in range(1, c.most + 1) if memory.holds(c.padded_s, k))
        assert n >= 0.8 * best - 1, c
    assert memory.asked[0][0] == 30, "the costliest first"


def test_what_a_step_never_holds_is_not_asked_for() -> None:
    memory = Memory(1e9)
    cut = search(lengths(1, 10, 30, most=6), memory, CPU)
    assert max(n for _, n in memory.asked) == 6
    assert cut.n_at(30) == 6


def test_a_length_that_does_not_fit_the_recipes_cut_is_learnt_and_no_other() -> None:
    cut, memory = Cut(120.0), Memory(200.0)
    teach(cut, lengths(1, 5, 10, 30), memory, CPU)
    assert cut.n_at(30) == 2, "4 × 30 s is 240 s of this device, 2 are 120"
    assert cut.n_at(10) == 12
    assert cut.n_at(5) == 24
    assert memory.asked == [(30.0, 4), (30.0, 2), (10.0, 12), (5.0, 24), (1.0, 64)]


@pytest.mark.parametrize("how", [search, lambda *a: teach(Cut(120.0), *a)])
def test_one_utterance_that_never_fits_is_said_before_the_first_step(how: Any) -> None:
    with pytest.raises(OutOfMemory, match="one utterance of 30 s"):
        how(lengths(1, 30), Memory(20.0), CPU)


def test_another_error_of_a_trial_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(length: LengthClass, n: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        search(lengths(1), broken, CPU)


class Beside(Machine):
    """One of two ranks; the other has a device of its own."""

    other: Any = None
    mine: Any = None

    def summed(self, values: list[int]) -> list[int]:
        padded_s, n = self.mine.asked[-1]
        return [values[0] + int(not self.other.holds(padded_s, n))]


def test_ranks_learn_the_same_whoever_has_less() -> None:
    small, large = Memory(150.0), Memory(1000.0)
    found: list[Cut] = []
    for mine, other in ((small, large), (large, small)):
        machine = Beside(torch.device("cpu"), "fp32", 0, 2)
        object.__setattr__(machine, "mine", mine)
        object.__setattr__(machine, "other", other)
        found.append(search(lengths(1, 5, 30), mine, machine))
    assert found[0].most == found[1].most
    assert found[0].micro_s == found[1].micro_s
    assert small.asked == large.asked, "neither waits for a trial that the other does not make"


def test_thinning_keeps_the_longest_and_the_shortest() -> None:
    classes = lengths(*(n / 2 for n in range(1, 61)))
    few = thinned(classes, 10)
    assert len(few) == 10
    assert (few[0], few[-1]) == (classes[0], classes[-1])
    assert thinned(classes[:3], 10) == classes[:3]


@pytest.mark.parametrize(
    ("asked", "device", "is_wanted"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "mps", True),
        ("never", "cuda", False),
        ("always", "cpu", True),
    ],
)
def test_memory_is_tried_where_there_is_something_to_find(asked: Any, device: str, is_wanted: bool) -> None:
    assert wants_trial(Loop(steps=1, step_utts=1, try_memory=asked), torch.device(device)) == is_wanted


# ---- from the manifest


@pytest.mark.slow
def test_every_length_that_a_training_meets_is_a_class_with_its_longest_transcript(corpus: Path) -> None:
    augment = {"speed": [0.9, 1.0, 1.1], "join_p": 0.5}
    for family in ("whisper", "parakeet"):
        training = make_training(corpus, family, augment=augment, loop={"steps": 12})
        classes = {c.padded_s: c for c in length_classes(training.task, training.loader, training.recipe)}
        assert list(classes) == sorted(classes, reverse=True)
        met: dict[float, int] = {}
        for n in range(12):
            _, micros = training.loader.micros_of(n)
            for examples, draws in micros:
                s = training.task.size(examples[0], draws[0]).padded_s
                met[s] = max(met.get(s, 0), len(examples))
        assert met.keys() <= classes.keys()
        assert all(met[s] <= classes[s].most for s in met)
        assert sum(c.mean for c in classes.values()) == pytest.approx(8)
        assert all(c.tokens > 2 for c in classes.values())


@pytest.mark.slow
def test_ten_million_rows_have_their_classes_in_a_minute(corpus: Path) -> None:
    import time

    training = make_training(corpus)
    manifest = training.loader.manifest
    big = manifest.subset(np.tile(np.arange(len(manifest)), 400_000))
    training.loader.manifest = big
    began = time.monotonic()
    classes = length_classes(training.task, training.loader, training.recipe)
    assert {0.5, 1.0} <= {c.padded_s for c in classes}
    assert time.monotonic() - began < 60


# ---- nothing of it stays


def state_of(training: Training) -> dict[str, torch.Tensor]:
    state = training.optimiser.adamw.state_dict()["state"]
    flat = {f"{k} {n}": t for k, s in state.items() for n, t in s.items()}
    flat |= {f"buffer {n}": b for n, b in training.parts.module.named_buffers()}
    if training.ema:
        flat |= {f"mean {n}": t for n, t in training.ema.mean.items()}
    return {**flat, **weights_of(training)}


def losses_of(training: Training) -> Sequence[tuple[float, ...]]:
    assert isinstance(training.book, Book)
    lines = [line for line in training.book.lines if "lr" in line]
    return [(line["step"], line["grad_norm"], *(v for k, v in line.items() if k.startswith("loss/"))) for line in lines]


CASES: dict[str, dict[str, Any]] = {
    "whisper": {"family": "whisper"},
    "live statistics": {"family": "parakeet", "model": {"batch_statistics": "live"}},
    "wave": {"family": "wav2vec2", "augment": {"spec": {"p": 1.0, "freq_width": 4}}},
    "phases": {
        "family": "whisper",
        "phases": [
            {"from_epoch": 0, "train": ["decoder"]},
            {"from_epoch": 1 / 3, "train": ["encoder"]},
            {"from_epoch": 2 / 3, "train": "all"},
        ],
    },
}


@pytest.mark.parametrize(
    "case", ["live statistics", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c[0] != "l")]
)
def test_a_training_is_bit_identical_with_the_trial_and_without(corpus: Path, case: str) -> None:
    how = dict(CASES[case])
    scratch = make_training(corpus, how["family"]).recipe.model_dump()["model"]["from_scratch"]
    how["model"] = {**how.get("model", {}), "from_scratch": {**scratch, "dropout": 0.1}}
    ran = []
    for asked in ("never", "always"):
        loop = {"micro_s": 3.0, "try_memory": asked}
        training = make_training(corpus, precision="fp32", ema=0.9, **how, loop=loop)
        training.run()
        ran.append(training)
    one, two = map(state_of, ran)
    assert one.keys() == two.keys()
    assert [n for n in one if not torch.equal(one[n], two[n])] == []
    assert losses_of(ran[0]) == losses_of(ran[1])


def test_a_cut_that_was_found_changes_nothing_but_the_rounding(corpus: Path) -> None:
    plain = make_training(corpus)
    found = make_training(corpus, loop={"micro_s": "auto", "try_memory": "always"})
    plain.run()
    found.run()
    assert found.loader.cut.micro_s < 1000
    assert furthest(weights_of(plain), weights_of(found)) < 1e-9


def test_without_a_trial_auto_is_what_it_always_was() -> None:
    assert Loop(steps=1, step_utts=1).at_once_s == 120
    assert Loop(steps=1, step_utts=1, micro_s=30).at_once_s == 30


def test_a_trial_leaves_chance_gradients_and_state_as_they_were(corpus: Path) -> None:
    scratch = make_training(corpus, "parakeet").recipe.model_dump()["model"]["from_scratch"]
    model = {"from_scratch": {**scratch, "dropout": 0.1}}
    loop = {"try_memory": "always", "steps": 1}
    training = make_training(corpus, "parakeet", loop=loop, model=model, precision="fp32")
    seen: list[Any] = []

    def look() -> list[Any]:
        chance = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]
        return [*chance, len(training.optimiser.adamw.state), [p.grad for p in training.parts.module.parameters()]]

    inner = training._open
    before = look()
    training._open = lambda span: (inner(span), seen.append(look()))[0]  # type: ignore[method-assign, func-returns-value]
    training.run()
    assert seen[0] == before


def test_a_resumed_training_tries_again_and_goes_on_as_it_would_have(corpus: Path) -> None:
    plain, first = (make_training(corpus, precision="fp32", loop={"steps": 6}) for _ in range(2))
    plain.run()
    stop = iter([False] * 3 + [True] * 99)
    first.stop_asked = lambda: next(stop)
    with pytest.raises(Exception, match="saved"):
        first.run()
    again = make_training(corpus, precision="fp32", loop={"steps": 6, "try_memory": "always"})
    again.parts.module.load_state_dict(first.parts.module.state_dict())
    again.optimiser.load_state_dict(first.optimiser.state_dict())
    again.state = replace(first.state)
    assert 0 < again.state.step < 6
    again.run()
    assert furthest(weights_of(plain), weights_of(again)) == 0.0


def test_what_the_trial_learns_the_first_step_knows(corpus: Path) -> None:
    """A device that fails above two utterances, asked by dummies: no real step fails any more."""
    training = make_training(corpus, loop={"try_memory": "always"})
    task, inner = training.task, training.task.losses
    refused: list[str] = []

    def losses(module: Any, batch: Any) -> Any:
        if len(batch.ids) > 2:
            refused.append(batch.ids[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(module, batch)

    task.losses = losses  # type: ignore[method-assign]
    training.run()
    assert refused
    assert all(i.startswith("dummy") for i in refused)
    plain = make_training(corpus)
    plain.run()
    assert furthest(weights_of(plain), weights_of(training)) < 1e-9


@pytest.mark.slow
def test_two_ranks_of_which_one_has_less_memory_find_it_out_together(corpus: Path, tmp_path: Path) -> None:
    sections = {"loop": {"steps": 3, "step_utts": 16, "try_memory": "always"}}
    plain = make_training(corpus, loop={"steps": 3, "step_utts": 16})
    plain.run()
    memory = {"n": 2, "at": 9, "direction": "backward"}
    said, weights, log = on_two_ranks(tmp_path, corpus=str(corpus), memory=memory, sections=sections)
    assert [s["ended"] for s in said] == ["", ""], log
    assert said[1]["times"] >= 1
    assert "the step is done again" not in log
    for mine in weights:
        assert furthest(weights_of(plain), mine) < 1e-9


# ---- evaluation


@pytest.mark.parametrize("family", ["whisper", *(pytest.param(f, marks=pytest.mark.slow) for f in ("wav2vec2", "tdt"))])
def test_a_batch_that_does_not_fit_is_decoded_in_halves_and_says_the_same(corpus: Path, family: str) -> None:
    training = make_training(corpus, family, loop={"steps": 1, "step_utts": 24}, precision="fp32")
    (step,) = training.loader.steps(0, 1)
    micro = max(step.micros, key=lambda m: len(m.examples))
    assert len(micro.examples) > 4
    training.parts.module.eval()
    task, inner = training.task, training.task.predict
    decode = Decode(max_new_tokens=5)
    with torch.inference_mode():
        whole = predicted(task, training.parts, micro, decode, training.machine)
        sizes: list[int] = []

        def predict(module: Any, batch: Any, how: Decode) -> Any:
            sizes.append(len(batch.ids))
            if len(batch.ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inner(module, batch, how)

        task.predict = predict  # type: ignore[method-assign]
        assert predicted(task, training.parts, micro, decode, training.machine) == whole
        assert max(sizes) > 2
        task.predict = lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))  # type: ignore[method-assign]
        with pytest.raises(OutOfMemory, match="one utterance of"):
            predicted(task, training.parts, micro, decode, training.machine)
