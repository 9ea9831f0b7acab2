"""Phases: what trains, at which rate, from when; everything else is frozen, and a resume knows it all from the step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.runs import After
from support.speech import ctc_dict, make_corpus, recipe_dict, tdt_dict, write_experiment

import trainer.loop
from remote.rundir import RunDir
from trainer.data.plan import Plan
from trainer.errors import BadRecipe, StopAsked
from trainer.optim import Optimiser
from trainer.phases import rate_at, set_modes, span_at, spans_of
from trainer.recipe.base import Recipe
from trainer.recipe.load import changes, parse_recipe
from trainer.task import make_task
from trainer.train import train

GROUPS = {"encoder": ["a"], "decoder": ["b"]}
TWO = [
    {"from_epoch": 0, "train": ["decoder"], "lr": 3e-3, "warmup_steps": 2},
    {"from_epoch": 1, "train": "all", "rates": {"encoder": 0.5}, "warmup_steps": 1},
]


def recipe(phases: list, **sections: dict) -> Recipe:
    raw = recipe_dict(Path("/nowhere"), **sections)
    return parse_recipe({**raw, "phases": phases})


def plan(how: Recipe, n: int = 40) -> Plan:
    return Plan(np.full(n, 1.0), how.loop)


@given(
    st.lists(st.floats(0.05, 3), min_size=0, max_size=3, unique=True),
    st.sampled_from(["linear", "cosine", "constant"]),
    st.integers(0, 5),
    st.integers(1, 60),
)
def test_every_step_has_one_phase_and_a_rate_within_its_peak(
    more: list[float], schedule: str, warmup: int, steps: int
) -> None:
    phases = [{"from_epoch": e, "train": "all", "warmup_steps": warmup} for e in [0, *sorted(more)]]
    how = recipe(phases, loop={"steps": steps}, optim={"lr": 1, "schedule": schedule, "final_share": 0.01})
    spans = spans_of(how, GROUPS, plan(how))
    assert all(s.first < s.end for s in spans)
    assert [s.first for s in spans] == [0, *[s.end for s in spans[:-1]]]
    assert spans[-1].end == steps
    for step in range(steps):
        span = span_at(spans, step)
        assert span.first <= step < span.end
        rate = rate_at(spans, step, steps, how.optim)
        assert 0 < rate <= 1
        if step - span.first < warmup:
            assert rate <= (step - span.first + 1) / warmup + 1e-12, "each phase has its own warm-up"


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_without_phases_the_rate_rises_to_its_peak_then_never_rises_again(
    schedule: str, steps: int, warmup: float, final: float
) -> None:
    optim = {"lr": 1, "schedule": schedule, "warmup_share": warmup, "final_share": final}
    how = recipe([], loop={"steps": steps}, optim=optim)
    spans = spans_of(how, GROUPS, plan(how))
    rates = [rate_at(spans, s, steps, how.optim) for s in range(steps)]
    assert all(0 < r <= 1 + 1e-12 for r in rates if final > 0)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))


def test_a_phase_opens_with_the_epoch_it_names() -> None:
    how = recipe([{"from_epoch": e, "train": "all"} for e in (0, 0.7, 2, 2.5)], loop={"steps": 30})
    assert [s.first for s in spans_of(how, GROUPS, plan(how))] == [0, 7, 20, 25], "ten steps an epoch"
    near = recipe([{"from_epoch": e, "train": "all"} for e in (0, 0.01, 0.02, 0.3)], loop={"steps": 30})
    assert [s.first for s in spans_of(near, GROUPS, plan(near))] == [0, 1, 2, 3], "each has a step of its own"
    late = recipe([{"from_epoch": e, "train": "all"} for e in (0, 50)], loop={"steps": 30})
    assert [s.end for s in spans_of(late, GROUPS, plan(late))] == [30], "a phase beyond the end never opens"


@pytest.mark.parametrize(
    ("phases", "more", "says"),
    [
        ([{"from_epoch": 1, "train": "all"}], {}, "the first phase begins at 0"),
        ([{"from_epoch": 0, "train": "all"}, {"from_epoch": 0, "train": "all"}], {}, "must be above"),
        ([{"from_epoch": 0, "train": []}], {}, "must not be empty"),
        ([{"from_epoch": 0, "train": "encoder"}], {}, "train.phases.0.train"),
        ([{"from_epoch": 0, "train": ["head", "head"]}], {}, "head stands in train twice"),
        ([{"from_epoch": 0, "train": ["head"], "rates": {"encoder": 1}}], {}, "encoder does not train in this phase"),
        ([{"from_epoch": 0, "train": "all", "rates": {"encoder": 0}}], {}, "greater than 0"),
        ([{"from_epoch": 0, "train": "all", "warmup_steps": 1, "warmup_share": 0.1}], {}, "either warmup_steps or"),
        ([{"from_epoch": 0, "train": "all"}, {"from_epoch": 3, "train": "all"}], {"epochs": 2}, "never opens"),
        ([{"from_epoch": 0, "train": "all", "warmup_step": 1}], {}, "no such key"),
        ([{"from_epoch": 0, "train": ["encoder"]}], {"rates": {"encoder": 0}}, "optim.rates.encoder is 0"),
        (
            [{"from_epoch": 0, "train": ["head"]}],
            {},
            "phases.0.train: there is no group 'head': known are encoder, decoder",
        ),
        ([{"from_epoch": 0, "train": "all", "rates": {"head": 1}}], {}, "phases.0.rates: there is no group 'head'"),
        ([], {"rates": {"encoder": 0, "decoder": 0}}, "optim.rates: every group is 0"),
        ([], {"rates": {"head": 1}}, "optim.rates: there is no group 'head': known are encoder, decoder"),
    ],
)
def test_what_is_wrong_with_phases_is_said_by_check(phases: list, more: dict, says: str) -> None:
    loop = {"epochs": more["epochs"], "steps": None} if "epochs" in more else {}
    optim = {"rates": more["rates"]} if "rates" in more else {}
    with pytest.raises(BadRecipe) as caught:
        recipe(phases, loop=loop, optim=optim)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("phases", "rates", "says"),
    [
        (
            [{"from_epoch": 0, "train": ["decoder"]}],
            {},
            "phases.0: there is nothing to train: decoder has no trainable",
        ),
        ([], {"encoder": 0}, "optim.rates: there is nothing to train: decoder has no trainable weight in this model"),
    ],
)
def test_what_only_the_model_knows_is_said_at_the_start(phases: list, rates: dict, says: str) -> None:
    how = recipe(phases, optim={"rates": rates})
    with pytest.raises(BadRecipe, match=says):
        spans_of(how, {"encoder": ["a"], "decoder": []}, plan(how))


def test_other_phases_are_another_training() -> None:
    assert changes(recipe(TWO), recipe([{**TWO[0], "lr": 1e-3}, TWO[1]]))
    assert changes(recipe(TWO), recipe([]))
    assert not changes(recipe(TWO), recipe(TWO, loop={"steps": 90}))


# ---- trainings


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, n in (("train", 12), ("dev", 2), ("test", 2)):
        make_corpus(tmp_path / "corpus", n, seed=n, name=name)
    return tmp_path / "corpus"


def experiment(corpus: Path, phases: list, **sections: dict) -> Path:
    """Three steps an epoch, eight steps, dropout everywhere."""
    scratch = {**recipe_dict(corpus)["model"]["from_scratch"], "dropout": 0.2}
    sections.setdefault("loop", {"steps": 8, "step_utts": 4, "save_every_steps": 1, "keep_last": 99})
    raw = recipe_dict(
        corpus, model={"from_scratch": scratch}, eval={"every_steps": 4, "before_training": False}, **sections
    )
    return write_experiment(corpus.parent / "a.yaml", {**raw, "phases": phases})


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model" / "model.safetensors")


def optimiser_state(run: Path, step: int) -> dict:
    return torch.load(run / "checkpoints" / f"step-{step:08d}" / "state" / "optimizer.pt")["adamw"]["state"]


THREE = [
    {"from_epoch": 0, "train": ["decoder"], "lr": 5e-3, "warmup_steps": 2},
    {"from_epoch": 1, "train": ["encoder"], "warmup_steps": 2},
    {"from_epoch": 2, "train": "all", "rates": {"encoder": 0.3}, "warmup_share": 0.5},
]


def test_what_is_closed_stays_bit_for_bit_and_has_no_gradient_state_or_dropout(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = Optimiser.step

    def step(self: Optimiser, *lost: torch.Tensor):
        named = self.named()
        with_grad = {"encoder" if "encoder." in n else "decoder" for n, p in named.items() if p.grad is not None}
        rates = {g["name"]: g["lr"] for g in self.adamw.param_groups}
        in_training = {type(m).__name__ for m in module[0].modules() if m.training}
        seen.append((with_grad, rates, in_training))
        return real(self, *lost)

    module = []
    real_open = trainer.loop.open_phase
    monkeypatch.setattr(Optimiser, "step", step)
    monkeypatch.setattr(trainer.loop, "open_phase", lambda m, *a: (module.append(m), real_open(m, *a)))
    train(experiment(corpus, THREE, optim={"schedule": "constant"}), RunDir(tmp_path / "run"))
    for n, (with_grad, rates, in_training) in enumerate(seen):
        open_groups = [{"decoder"}, {"encoder"}, {"encoder", "decoder"}][n // 3]
        assert with_grad == open_groups
        assert ("WhisperEncoder" in in_training) == ("encoder" in open_groups), "evaluating changes no mode"
        assert ("WhisperDecoder" in in_training) == ("decoder" in open_groups)
        assert all((rates[g] > 0) == (g in open_groups) for g in rates)
        before, after = (weights(tmp_path / "run", s) if s else None for s in (n, n + 1))
        for name in after if before else ():
            group = "encoder" if ".encoder." in name else "decoder"
            moved = not torch.equal(before[name], after[name])
            assert moved <= (group in open_groups), name
    lrs = [max(rates.values()) for _, rates, _ in seen]
    assert lrs == pytest.approx([2.5e-3, 5e-3, 5e-3, 1.5e-3, 3e-3, 3e-3, 3e-3, 3e-3])
    assert seen[7][1] == {"encoder": pytest.approx(9e-4), "decoder": pytest.approx(3e-3)}
    sizes = {s: len(optimiser_state(tmp_path / "run", s)) for s in (3, 4, 7)}
    assert sizes[7] == sizes[3] + sizes[4], "a group's state begins when it opens, and ends when it closes"
    steps = {int(v["step"]) for v in optimiser_state(tmp_path / "run", 8).values()}
    assert steps == {2, 5}, "what opened again began anew"


ONCE = [([5], [2]), ([7], [3]), ([9], [4])]


@pytest.mark.parametrize(
    ("questions", "after"), [([5, 3, 3], [2, 3, 4]), *(pytest.param(*case, marks=pytest.mark.slow) for case in ONCE)]
)
def test_stopped_around_a_boundary_and_resumed_it_ends_bit_identical(
    corpus: Path, tmp_path: Path, questions: list[int], after: list[int]
) -> None:
    """Just before a phase opens, at its opening, just after; and at each."""
    file = experiment(corpus, THREE, averaging={"ema": 0.9})
    train(file, RunDir(tmp_path / "whole"))
    stopped = []
    for n in questions:
        with pytest.raises(StopAsked) as caught:
            train(file, RunDir(tmp_path / "stopped"), stop=After(n))
        stopped.append(int(caught.value.message.split()[3]))
    assert stopped == after
    train(file, RunDir(tmp_path / "stopped"))
    for step in (3, 6, 8):
        one, two = (weights(tmp_path / r, step) for r in ("whole", "stopped"))
        assert all(torch.equal(one[k], two[k]) for k in one), step
    one, two = (optimiser_state(tmp_path / r, 8) for r in ("whole", "stopped"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[p][k], two[p][k]) for p in one for k in one[p])
    one, two = (
        torch.load(tmp_path / r / "checkpoints" / "step-00000008" / "state" / "ema.pt") for r in ("whole", "stopped")
    )
    assert one["n"] == two["n"] == 8
    assert all(torch.equal(one["mean"][k], two["mean"][k]) for k in one["mean"])


def test_the_log_says_what_trains(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trainer")
    late = [*THREE, {"from_epoch": 99, "train": "all"}]
    train(experiment(corpus, late, loop={"steps": 8, "step_utts": 4}), RunDir(tmp_path / "run"))
    said = [r.message for r in caplog.records if r.message.startswith("phase ")]
    assert "phase 4 never opens: the training ends before its epoch" in said
    assert any("steps 4 to 6:" in line and "weights of encoder train" in line for line in said)
    assert any("encoder × 0.3, decoder" in line for line in said)
    numbers = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [n["phase"] for n in numbers if "phase" in n] == [1, 2, 2, 3]


@pytest.mark.parametrize("family", ["ctc", "tdt"])
def test_batch_statistics_of_what_is_frozen_stand_still(corpus: Path, tmp_path: Path, family: str) -> None:
    make = {"ctc": ctc_dict, "tdt": tdt_dict}[family]
    raw = make(
        corpus,
        model={"batch_statistics": "live"},
        loop={"steps": 4, "step_utts": 6, "save_every_steps": 1, "keep_last": 9},
        eval={"every_steps": 9, "before_training": False},
    )
    phases = [{"from_epoch": 0, "train": ["head"]}, {"from_epoch": 1, "train": "all"}]
    train(write_experiment(tmp_path / "a.yaml", {**raw, "phases": phases}), RunDir(tmp_path / "run"))
    one, two, four = (weights(tmp_path / "run", s) for s in (1, 2, 4))
    for name in one:
        if "encoder." in name:
            assert torch.equal(one[name], two[name]), name
    assert any("running_mean" in n and not torch.equal(two[n], four[n]) for n in two)


def test_debug_opens_every_phase(corpus: Path, tmp_path: Path) -> None:
    file = experiment(corpus, [{**p, "from_epoch": 30 * p["from_epoch"]} for p in THREE], loop={"steps": 999})
    train(file, RunDir(tmp_path / "run"), debug=True)
    numbers = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {n["phase"] for n in numbers if "phase" in n} == {1, 2, 3}


def test_where_a_layer_has_an_adapter_all_its_dropout_is_on_and_a_stack_without_any_is_still(corpus: Path) -> None:
    task = make_task(parse_recipe(recipe_dict(corpus)))
    task.export(task.build().module, corpus.parent / "base")
    for targets, still in ((r".*\.encoder\..*\.q_proj", "decoder"), ("decoder", "encoder")):
        raw = {**recipe_dict(corpus, adapters={"targets": targets}), "model": {"name": str(corpus.parent / "base")}}
        module = make_task(parse_recipe(raw)).build().module
        set_modes(module)
        inside = module.get_base_model().model
        assert not any(m.training for m in inside.get_submodule(still).modules())
        trains = "encoder" if still == "decoder" else "decoder"
        assert all(m.training for m in inside.get_submodule(f"{trains}.layers.0").modules())


@pytest.mark.parametrize(
    ("raw", "deepest"),
    [
        (recipe_dict, {"encoder.conv1": 2, "encoder.layers.0": 1, "encoder.layer_norm": 0, "embed_tokens": 0}),
        (lambda c, **s: ctc_dict(c, "parakeet", **s), {"subsampling.": 2, "layers.0": 1, "ctc_head": 0}),
        (lambda c, **s: ctc_dict(c, "wav2vec2", **s), {"feature_ext": 2, "encoder.layer_norm": 2, "lm_head": 0}),
        (lambda c, **s: ctc_dict(c, "wavlm", **s), {"pos_conv_embed": 2, "encoder.layers.0": 1, "lm_head": 0}),
        (lambda c, **s: tdt_dict(c, "tdt", **s), {"subsampling.": 2, "decoder.emb": 2, "lstm": 1, "joint": 0}),
    ],
)
def test_every_family_numbers_its_layers_from_the_top(tmp_path: Path, raw, deepest: dict[str, int]) -> None:
    task = make_task(parse_recipe(raw(tmp_path)))
    depths = task.depths(task.build().module)
    for part, depth in deepest.items():
        found = {d for n, d in depths.items() if part in n and ("subsampling" not in n or "subsampling" in part)}
        assert found == {depth}, (part, found)
