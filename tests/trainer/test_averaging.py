"""Means of weights: over steps, over the best checkpoints of a run, over models. A report says what it measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.runs import lines
from support.speech import ctc_dict, make_corpus, recipe_dict, write_experiment
from torch import nn
from transformers import WhisperForConditionalGeneration

from remote.rundir import RunDir
from trainer.__main__ import main
from trainer.checkpoint import complete_checkpoints
from trainer.ema import Ema, decay_at
from trainer.errors import BadRecipe, StopAsked
from trainer.recipe.load import changes, parse_recipe
from trainer.task import make_task
from trainer.train import train


@given(st.floats(0.5, 0.9999), st.integers(1, 40), st.integers(0, 100))
def test_the_running_mean_is_its_recurrence(decay: float, steps: int, seed: int) -> None:
    """Against a reference of numbers, one by one."""
    rng = torch.Generator().manual_seed(seed)
    weight, late = (nn.Parameter(torch.randn(3, generator=rng, dtype=torch.float64)) for _ in range(2))
    named = {"weight": weight, "late": late}
    ema = Ema(decay)
    ema.join({"weight": weight})
    expected = {"weight": weight.tolist()}
    for n in range(steps):
        if n == steps // 2:
            ema.join(named)
            expected.setdefault("late", late.tolist())
        with torch.no_grad():
            weight += torch.randn(3, generator=rng, dtype=torch.float64)
            late.mul_(0.9)
        ema.update(named)
        d = min(decay, (1 + n) / (10 + n))
        assert d == decay_at(n, decay)
        for name, mean in expected.items():
            expected[name] = [d * m + (1 - d) * w for m, w in zip(mean, named[name].tolist(), strict=True)]
    assert {k: v.tolist() for k, v in ema.mean.items()} == {k: pytest.approx(v, abs=1e-12) for k, v in expected.items()}


def test_a_mean_stands_in_for_the_weights_and_gives_them_back_whatever_happens() -> None:
    p = nn.Parameter(torch.ones(2))
    ema = Ema(0.9)
    ema.join({"p": p})
    with torch.no_grad():
        p.mul_(3)
    seen = []

    def stopped_in_the_middle() -> None:
        with ema.in_place({"p": p}):
            seen.append(p.tolist())
            raise StopAsked("now")

    with pytest.raises(StopAsked):
        stopped_in_the_middle()
    assert seen == [[1, 1]]
    assert p.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("averaging", "says"),
    [
        ({"ema": 1}, "less than 1"),
        ({"best": 1}, "greater than or equal to 2"),
        ({"evaluate": "raw"}, "without ema there is one kind"),
    ],
)
def test_what_check_can_know_of_means_it_says(tmp_path: Path, averaging: dict, says: str) -> None:
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(recipe_dict(tmp_path, averaging=averaging))
    assert says in str(caught.value)


# ---- trainings


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, n in (("train", 12), ("dev", 3), ("test", 2)):
        make_corpus(tmp_path / "corpus", n, seed=n, name=name)
    return tmp_path / "corpus"


def trained(corpus: Path, name: str, **sections: Any) -> RunDir:
    run = RunDir(corpus.parent / name)
    train(write_experiment(corpus.parent / f"{name}.yaml", recipe_dict(corpus, **sections)), run)
    return run


def test_the_running_mean_is_what_is_measured_exported_and_measured_again(corpus: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"optim": {"lr": 0.02}, "averaging": {"ema": 0.5}, "loop": {"keep_last": 9}}
    run = trained(corpus, "mean", **sections)
    best = json.loads(run.summary.read_text())["best_step"]
    state = torch.load(run.checkpoints / f"step-{best:08d}" / "state" / "ema.pt")
    raw = load_file(run.checkpoints / f"step-{best:08d}" / "model" / "model.safetensors")
    exported = load_file(run.export / "model.safetensors")
    assert state["n"] == best
    assert all(t.dtype == torch.float32 for t in state["mean"].values())
    for name, mean in state["mean"].items():
        assert torch.equal(exported[name], mean), name
    assert any(not torch.equal(exported[name], raw[name]) for name in state["mean"]), "raw weights are kept beside it"
    told = [line["provenance"]["weights"] for line in lines(run.reports / "test.jsonl")]
    assert told == ["as it came", *[f"step {best}, running mean 0.5"] * 2]
    assert [x["provenance"]["weights"] for x in lines(run.reports / "dev.jsonl")] == [
        "as it came",
        "step 3, running mean 0.5",
        "step 6, running mean 0.5",
    ]
    assert f"; step {best}, running mean 0.5; before" in json.loads(run.summary.read_text())["headline"]
    reported = lines(run.reports / "test.jsonl")[1]["metrics"]
    for place in (["--run", str(run.root)], ["--model", str(run.export)]):
        out = tmp_path / place[0]
        assert main(["evaluate", *place, str(corpus / "test.jsonl"), "--out", str(out)]) == 0
        assert lines(next(out.glob("evaluate-*.json")))[-1]["metrics"] == reported


def test_a_running_mean_changes_no_training_and_is_measured_only_where_that_is_asked(corpus: Path) -> None:
    sections: dict[str, Any] = {"loop": {"steps": 3}, "eval": {"before_training": False}}
    means = {"mean": {"ema": 0.5}, "raw": {"ema": 0.5, "evaluate": "raw"}, "none": {}}
    runs = {name: trained(corpus, name, **sections, averaging=how) for name, how in means.items()}
    weights = [load_file(r.checkpoints / "step-00000003" / "model" / "model.safetensors") for r in runs.values()]
    assert all(torch.equal(weights[0][k], w[k]) for w in weights for k in w)
    exports = {name: load_file(r.export / "model.safetensors") for name, r in runs.items()}
    assert all(torch.equal(exports["raw"][k], v) for k, v in exports["none"].items())
    assert not all(torch.equal(exports["mean"][k], v) for k, v in exports["none"].items())


def test_the_best_k_are_kept_and_their_mean_is_the_model(corpus: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "trainer")
    loop = {"steps": 4, "keep_last": 1, "save_every_s": 1e6}
    run = trained(corpus, "best", averaging={"best": 2, "ema": 0.6}, loop=loop, eval={"every_steps": 1})
    dev = [(x["metrics"]["wer"], x["step"]) for x in lines(run.reports / "dev.jsonl") if x["step"] > 0][:4]
    steps = sorted(step for _, step in sorted(dev)[:2])
    assert set(steps) <= {c.step for c in complete_checkpoints(run.checkpoints)}, "kept, though one is the last's rule"
    means = [torch.load(run.checkpoints / f"step-{s:08d}" / "state" / "ema.pt")["mean"] for s in steps]
    exported = load_file(run.export / "model.safetensors")
    for name in means[0]:
        assert torch.allclose(exported[name], torch.stack([m[name] for m in means]).mean(0), atol=1e-7), name
    weights = f"mean of steps {', '.join(map(str, steps))}, running mean 0.6"
    assert json.loads(run.summary.read_text())["weights"] == weights
    assert json.loads((run.export / "provenance.json").read_text())["weights"] == weights
    (mean,) = lines(run.reports / "dev-mean.json")
    assert mean["provenance"]["weights"] == weights, "its worth on dev is said"
    assert main(["evaluate", "--run", str(run.root)]) == 0
    again = lines(next(run.reports.glob("evaluate-*.json")))[-1]
    assert again["metrics"] == lines(run.reports / "test.jsonl")[1]["metrics"]
    assert again["provenance"]["weights"] == weights


def test_how_many_are_averaged_may_change_for_a_resume_and_the_decay_may_not(tmp_path: Path) -> None:
    old = parse_recipe(recipe_dict(tmp_path, averaging={"ema": 0.9, "best": 2}))
    assert not changes(old, parse_recipe(recipe_dict(tmp_path, averaging={"ema": 0.9, "best": 3})))
    assert changes(old, parse_recipe(recipe_dict(tmp_path, averaging={"ema": 0.8, "best": 2})))


# ---- trainer average


@pytest.fixture
def two_runs(corpus: Path) -> list[RunDir]:
    """Adapters of two runs on one base, far enough from it that factors and products can be told apart."""
    task = make_task(parse_recipe(recipe_dict(corpus)))
    torch.manual_seed(0)
    task.export(task.build().module, corpus.parent / "base")
    runs = []
    for seed, kind in ((1, "lora"), (2, "dora")):
        raw = recipe_dict(
            corpus,
            adapters={"r": 2, "kind": kind},
            optim={"lr": 0.1},
            loop={"seed": seed, "steps": 3},
            eval={"before_training": False},
        )
        raw["model"] = {"name": str(corpus.parent / "base")}
        run = RunDir(corpus.parent / f"run-{seed}")
        train(write_experiment(corpus.parent / f"{seed}.yaml", raw), run)
        runs.append(run)
    return runs


def test_the_mean_of_two_runs_adapters_is_the_mean_of_their_merged_weights(
    corpus: Path, two_runs: list[RunDir], tmp_path: Path, capsys: Any
) -> None:
    one, two = (load_file(r.export / "model.safetensors") for r in two_runs)
    checkpoint = str(next(two_runs[1].checkpoints.glob("step-*")))
    for n, sources in enumerate(
        ([str(two_runs[0].root), str(two_runs[1].root)], [str(two_runs[0].export), checkpoint + "/model"])
    ):
        out = tmp_path / f"mean-{n}"
        assert main(["average", *sources, "--out", str(out)]) == 0
        mean = load_file(out / "model.safetensors")
        assert mean.keys() == one.keys()
        for name in mean:
            assert torch.allclose(mean[name], (one[name] + two[name]) / 2, rtol=0, atol=1e-6), name
    key = "model.encoder.layers.0.fc1.weight"
    base = load_file(tmp_path / "base" / "model.safetensors")[key]
    factors = [load_file(next(r.checkpoints.glob("step-*")) / "model/adapter_model.safetensors") for r in two_runs]
    a, b = (sum(f[f"base_model.model.model.encoder.layers.0.fc1.lora_{x}.weight"] for f in factors) / 2 for x in "AB")
    assert not torch.allclose(mean[key], base + 16 * b @ a, atol=1e-3), "which is not what the mean of factors makes"
    WhisperForConditionalGeneration.from_pretrained(out)
    assert main(["evaluate", "--model", str(out), str(corpus / "test.jsonl"), "--out", str(tmp_path / "rows")]) == 0
    report = json.loads(next((tmp_path / "rows").glob("evaluate-*.json")).read_text())
    assert report["provenance"]["weights"] == "mean of 2 models"
    assert [m["weights"] for m in report["provenance"]["of"]] == ["step 3", "step 3"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".mean")) == []


def test_a_mean_is_not_rounded_on_its_way_and_saved_as_its_sources_were(corpus: Path, tmp_path: Path) -> None:
    task = make_task(parse_recipe(recipe_dict(corpus)))
    sources, values = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        path = tmp_path / f"m{seed}"
        task.export(task.build().module.to(torch.bfloat16), path)
        values.append(load_file(path / "model.safetensors"))
        sources.append(str(path))
    assert main(["average", *sources, "--out", str(tmp_path / "out")]) == 0
    for name, t in load_file(tmp_path / "out" / "model.safetensors").items():
        assert t.dtype == torch.bfloat16
        assert torch.equal(t, (sum(v[name].double() for v in values) / 3).to(torch.bfloat16)), name


def test_a_model_in_several_files_is_averaged_file_by_file(corpus: Path, tmp_path: Path) -> None:
    task = make_task(parse_recipe(recipe_dict(corpus)))
    model = task.build().module
    task.export(model, tmp_path / "whole")
    model.save_pretrained(str(tmp_path / "parts"), max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    (tmp_path / "parts" / "pytorch_model.bin").write_bytes(b"other weights")
    for n, sources in enumerate((["whole", "parts"], ["parts", "whole", "whole"])):
        out = tmp_path / f"out-{n}"
        assert main(["average", *(str(tmp_path / s) for s in sources), "--out", str(out)]) == 0
        again = WhisperForConditionalGeneration.from_pretrained(out).state_dict()
        assert all(torch.equal(again[k], v) for k, v in model.state_dict().items()), "the mean of equals is they"
        assert not (out / "pytorch_model.bin").exists()


def test_what_has_no_mean_is_refused_in_a_sentence(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    scratch = recipe_dict(corpus)["model"]["from_scratch"]
    models = {
        "small": recipe_dict(corpus),
        "wide": recipe_dict(corpus, model={"from_scratch": {**scratch, "ffn": 48}}),
        "deep": recipe_dict(corpus, model={"from_scratch": {**scratch, "encoder_layers": 2}}),
        "ctc": ctc_dict(corpus, "wav2vec2"),
        "letters": ctc_dict(corpus, "wav2vec2", model={"letters": sorted("zyxwvut")}),
    }
    for name, raw in models.items():
        task = make_task(parse_recipe(raw))
        task.export(task.build().module, tmp_path / name)
    shutil.copytree(tmp_path / "small", tmp_path / "broken")
    weights = load_file(tmp_path / "small" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text("{}")
    for sources, says in (
        (["small", "wide"], "differ in model.decoder.layers.0.fc1.bias: [32] and [48]"),
        (["small", "deep"], "do not both have model.encoder.layers.1"),
        (["small", "ctc"], "is a whisper"),
        (["ctc", "letters"], "different vocabularies (vocab.json)"),
        (["small", "broken"], "not finite"),
        (["small", "empty"], "is no model"),
        (["small", "nowhere"], "is no model"),
        (["small", "alone"], "adapters without the training"),
        (["small"], "one model is its own mean"),
        (["small", "small", "--out", str(tmp_path / "small")], "is there already"),
    ):
        out = [] if "--out" in sources else ["--out", str(tmp_path / "out")]
        argv = [str(tmp_path / s) if not s.startswith(("-", "/")) else s for s in sources]
        assert main(["average", *argv, *out]) == 2, sources
        said = capsys.readouterr().err.strip().splitlines()
        said = [line for line in said if "it/s" not in line]
        assert says in said[-2], (sources, said)
        assert said[-1].startswith("→ ")
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.*"))
