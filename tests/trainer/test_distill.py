"""A frozen teacher says what it says alone; what is learnt of it is the definition; it never changes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.seq2seq import make_model, seq2seq_dict
from support.speech import (
    WIDER,
    ctc_dict,
    distilled,
    distilled_ctc,
    distilled_whisper,
    make_corpus,
    make_teacher,
    recipe_dict,
    tdt_dict,
    write_experiment,
)
from torch import nn

from remote.rundir import EPOCH_ENV, RunDir
from trainer.__main__ import main
from trainer.data.manifest import open_manifests
from trainer.errors import BadRecipe, StopAsked
from trainer.frozen import weights_hash
from trainer.losses.distill import divergence, flattened
from trainer.machine import placed, start_machine
from trainer.recipe.load import parse_recipe
from trainer.recipe.loss import Distill
from trainer.task import Draw, Parts, make_task
from trainer.tasks.teacher import places_of
from trainer.train import train


def distilled_seq2seq(corpus: Path, **sections: Any) -> dict[str, Any]:
    """A very small Moonshine, and a wider one of a kind that hears features: both write the same bytes."""
    if not (corpus / "teacher").exists():
        make_model(corpus / "teacher", "speech_to_text", seed=3, width=24)
    return distilled(seq2seq_dict(corpus, "moonshine", **sections), corpus / "teacher", weight=0.8, temperature=2.0)


FAMILIES: dict[str, Callable[..., dict[str, Any]]] = {
    "whisper": distilled_whisper,
    "ctc": distilled_ctc,
    "seq2seq": distilled_seq2seq,
}
OWN = {"whisper": "ce", "ctc": "ctc", "seq2seq": "ce"}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def batch_of(task: Any, corpus: Path, n: int = 8) -> Any:
    """On the CPU, not prepared: as many utterances as are of the first one's length."""
    manifest = open_manifests([make_corpus(corpus, n)], task.recipe.data, corpus, corpus / "cache")
    items = task.load([manifest[i] for i in range(n)], [Draw(i) for i in range(n)])
    return task.collate([i for i in items if i.padded == items[0].padded])


def made(corpus: Path, train: dict[str, Any]) -> tuple[Any, Parts]:
    task = make_task(parse_recipe(train))
    torch.manual_seed(0)
    return task, placed(task.build(), start_machine(task.recipe.loop))


# the loss


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_the_divergence_and_its_gradient_are_torch_s(temperature: float) -> None:
    torch.manual_seed(0)
    student = (3 * torch.randn(7, 11, dtype=torch.float64)).requires_grad_()
    teacher = 3 * torch.randn(7, 11, dtype=torch.float64)
    scale = torch.rand(7, dtype=torch.float64)
    ours = divergence(student, flattened(teacher, temperature), temperature)
    (slow,) = torch.autograd.grad((scale * ours).sum(), student)
    wanted = temperature**2 * nn.functional.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="none"
    ).sum(-1)
    (reference,) = torch.autograd.grad((scale * wanted).sum(), student)
    assert torch.allclose(ours, wanted, rtol=1e-12)
    assert torch.allclose(slow, reference, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: divergence(x, flattened(teacher, temperature), temperature), student)


def test_in_half_precision_it_is_computed_in_single() -> None:
    student, teacher = torch.randn(3, 5).bfloat16(), torch.randn(3, 5)
    assert divergence(student, flattened(teacher, 2.0), 2.0).dtype == torch.float32
    assert flattened(teacher.bfloat16(), 2.0).dtype == torch.float32


def test_the_teacher_s_share_falls_in_a_straight_line_and_is_a_function_of_what_is_done() -> None:
    how = Distill(teacher="t", weight=0.8, anneal={"to": 0.2, "over": 0.5})
    assert [how.share(d) for d in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    assert how.weights("ce", 0.25) == pytest.approx({"ce": 0.5, "kl": 0.5})
    assert Distill(teacher="t", weight=0.3).share(0.9) == 0.3


# what the teacher says


def test_the_teacher_hears_as_itself_and_says_what_it_says_alone(tmp_path: Path, family: str) -> None:
    """By a task of its own with its own features, an utterance at a time, where the student is asked."""
    task, parts = made(tmp_path, FAMILIES[family](tmp_path))
    cpu = batch_of(task, tmp_path)
    batch = task.prepare(cpu, parts, True)
    found = task.losses(parts.module, batch)
    assert tuple(found) == task.losses_of == (OWN[family], "kl")
    assert {k: batch.counts[k] for k in found}.keys() == set(found)
    told = json.loads(
        (tmp_path / ("teacher" if family == "seq2seq" else f"teacher-{family}") / "config.json").read_text()
    )
    assert told["model_type"] != "moonshine"
    model = task.recipe.model
    named = {"name": task.recipe.loss.distill.teacher}
    if family != "seq2seq":
        named["from_scratch"] = None
    if family == "ctc":
        named |= {"vocabulary": "tokenizer", "letters": None}
    alone = type(task)(
        task.recipe.model_copy(update={"loss": type(task.recipe.loss)(), "model": model.model_copy(update=named)})
    )
    network = alone.build().module.eval()
    manifest = open_manifests([tmp_path / "train.jsonl"], task.recipe.data, tmp_path, tmp_path / "cache")
    at = 0
    teacher_T = task.recipe.loss.distill.temperature
    for b, name in enumerate(cpu.ids):
        row = next(manifest[i] for i in range(len(manifest)) if manifest[i].id == name)
        one = alone.prepare(alone.collate(alone.load([row], [Draw(0)])), Parts(network), True)
        with torch.no_grad():
            said = alone.logits(network, one)
        if family == "ctc":
            said = said[0, : one.n_frames[0]]
            ours, student = batch.teacher_NV, task.logits(parts.module, batch)[b, : one.n_frames[0]]
        else:
            ours = batch.teacher_KV
            student = task.logits(parts.module, batch)[at : at + len(said)]
        wanted = (said / teacher_T).log_softmax(-1)
        assert torch.allclose(ours[at : at + len(said)], wanted, atol=1e-4)
        kl = teacher_T**2 * nn.functional.kl_div(
            (student / teacher_T).log_softmax(-1), wanted, reduction="sum", log_target=True
        )
        assert found["kl"][b].item() == pytest.approx(kl.item(), rel=1e-3)
        at += len(said)
    assert at == batch.counts["kl"]
    assert found["kl"].min() > 0.1


def test_a_student_that_is_its_teacher_has_nothing_to_learn_of_it(tmp_path: Path, family: str) -> None:
    train = FAMILIES[family](tmp_path)
    teacher = train["loss"]["distill"]["teacher"]
    model = {"name": teacher}
    if family == "ctc":
        model["vocabulary"] = "tokenizer"
    task, parts = made(tmp_path, {**train, "model": model})
    parts.module.eval()
    batch = task.prepare(batch_of(task, tmp_path), parts, True)
    found = task.losses(parts.module, batch)
    assert found["kl"].abs().max() < 1e-5  # with gradients torch may take other kernels
    with torch.no_grad():
        assert task.losses(parts.module, batch)["kl"].abs().max() == 0
    assert found[OWN[family]].min() > 0


def test_the_teacher_learns_nothing(tmp_path: Path, family: str) -> None:
    task, parts = made(tmp_path, FAMILIES[family](tmp_path))
    teacher = parts.frozen["teacher"]
    before = weights_hash(teacher)
    parts.module.train()
    for _ in range(2):
        found = task.losses(parts.module, task.prepare(batch_of(task, tmp_path), parts, True))
        sum(v.sum() for v in found.values()).backward()
    assert weights_hash(teacher) == before
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    mine = {id(p) for p in parts.module.parameters()}
    assert not mine & {id(p) for p in teacher.parameters()}
    named = {n for members in task.groups(parts.module).values() for n in members}
    assert named == {n for n, p in parts.module.named_parameters() if p.requires_grad}


def test_masks_are_the_student_s_alone(tmp_path: Path, family: str) -> None:
    task, parts = made(tmp_path, FAMILIES[family](tmp_path))
    batch = batch_of(task, tmp_path)
    spans = torch.tensor([[[0, 5]]]).expand(len(batch.ids), 1, 2)
    key = "teacher_NV" if family == "ctc" else "teacher_KV"
    with_masks, without = (
        getattr(task.prepare(b, parts, True), key) for b in (replace(batch, time_spans=spans, freq_spans=spans), batch)
    )
    assert torch.equal(with_masks, without)


def test_in_evaluation_nobody_asks_the_teacher(tmp_path: Path, family: str) -> None:
    task, parts = made(tmp_path, FAMILIES[family](tmp_path))
    parts.frozen["teacher"].register_forward_pre_hook(lambda *_: pytest.fail("it was asked"))
    for m in parts.frozen["teacher"].modules():
        m.register_forward_pre_hook(lambda *_: pytest.fail("it was asked"))
    manifest = open_manifests([make_corpus(tmp_path, 2)], task.recipe.data, tmp_path, tmp_path / "cache")
    batch = task.prepare(task.collate(task.load([manifest[0]], [None])), parts, False)
    parts.module.eval()
    assert len(task.predict(parts.module, batch, task.recipe.eval.decode)) == 1


def test_in_half_precision_the_teacher_is_held_so_and_heard_in_single(tmp_path: Path, family: str) -> None:
    train = FAMILIES[family](tmp_path, loop={"precision": "bf16"})
    task, parts = made(tmp_path, train)
    assert {p.dtype for p in parts.frozen["teacher"].parameters()} == {torch.bfloat16}
    batch = task.prepare(batch_of(task, tmp_path), parts, True)
    assert (batch.teacher_NV if family == "ctc" else batch.teacher_KV).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = task.losses(parts.module, batch)
    assert found["kl"].dtype == torch.float32
    found["kl"].sum().backward()


# whose teacher it may be


def test_a_teacher_may_know_more_tokens_and_its_others_are_left_out() -> None:
    ours, theirs = {"a": 0, "b": 1, "</s>": 2}, {"a": 0, "yue": 1, "b": 2, "</s>": 3}
    assert places_of("s", ours, 3, "t", dict(ours), 3) is None
    assert places_of("s", ours, 3, "t", theirs, 4).tolist() == [0, 2, 3]
    assert places_of("s", ours, 5, "t", {**ours, "c": 5}, 6).tolist() == [0, 1, 2, 3, 4]  # places without a name
    with pytest.raises(BadRecipe, match=r"t and s do not share a vocabulary: of 4 tokens .* 1 are unknown .* 'yue'"):
        places_of("s", theirs, 4, "t", ours, 3)
    with pytest.raises(BadRecipe, match=r"do not share a vocabulary"):
        places_of("s", ours, 4, "t", theirs, 4)


def test_a_whisper_with_one_language_more_teaches_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large-v3 and small: its tokens behind the new one stand a place further on."""
    import trainer.tasks.whisper as whisper

    fewer = whisper.SPECIALS
    monkeypatch.setattr(whisper, "SPECIALS", ("<|startoftranscript|>", "<|yue|>", *fewer[1:]))
    train = distilled_whisper(tmp_path)
    monkeypatch.setattr(whisper, "SPECIALS", fewer)
    task, parts = made(tmp_path, train)
    assert task._teacher.task.prompt != task.prompt
    batch = task.prepare(batch_of(task, tmp_path), parts, True)
    assert batch.teacher_KV.shape[1] == len(task.tokenizer)
    assert torch.allclose(batch.teacher_KV.exp().sum(-1), torch.ones(len(batch.teacher_KV)), atol=1e-5)
    assert torch.isfinite(task.losses(parts.module, batch)["kl"]).all()


def test_who_can_not_be_taught_is_told_in_a_sentence_that_names_both(tmp_path: Path) -> None:
    make_corpus(tmp_path, 2)
    other = ctc_dict(tmp_path, model={"letters": list("low")})
    make_teacher(tmp_path / "letters", other)
    with pytest.raises(BadRecipe, match=r"loss\.distill\.teacher: .*letters and the student do not share a vocabulary"):
        made(tmp_path, distilled(ctc_dict(tmp_path), tmp_path / "letters"))
    slow = ctc_dict(tmp_path)
    slow["model"]["from_scratch"]["subsampling"] = 4
    make_teacher(tmp_path / "slow", slow)
    with pytest.raises(BadRecipe, match=r"slow and the student do not have the same number of frames"):
        make_task(parse_recipe(distilled(ctc_dict(tmp_path), tmp_path / "slow")))
    short = recipe_dict(tmp_path)
    short["model"] = {"from_scratch": {**short["model"]["from_scratch"], **WIDER, "window_s": 1}}
    short["data"] = {**short["data"], "max_s": 1}
    make_teacher(tmp_path / "short", short)
    with pytest.raises(BadRecipe, match=r"short takes 1\.0 seconds, the student takes 2\.0"):
        made(tmp_path, distilled(recipe_dict(tmp_path), tmp_path / "short"))
    with pytest.raises(BadRecipe, match=r"train\.loss\.distill\.teacher: .*nowhere can't be loaded"):
        made(tmp_path, distilled(recipe_dict(tmp_path), tmp_path / "nowhere"))
    with pytest.raises(BadRecipe, match=r"loss\.distill is not for a transducer"):
        parse_recipe(distilled(tdt_dict(tmp_path), tmp_path / "slow"))
    cached = recipe_dict(tmp_path, data={"frozen_gb": 1}, optim={"rates": {"encoder": 0}})
    with pytest.raises(BadRecipe, match=r"data\.frozen_gb must be 0: loss\.distill is on"):
        parse_recipe(distilled(cached, tmp_path / "short"))


# a whole training


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PODCTL_VOLUME", EPOCH_ENV):
        monkeypatch.delenv(name, raising=False)
    for name, n in (("train", 20), ("dev", 4), ("test", 4)):
        make_corpus(tmp_path / "corpus", n, seed=n, name=name)
    return tmp_path / "corpus"


def ended(run: RunDir, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / "model" / "model.safetensors")


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for part in parts for t in tensors_in(part)]


def never() -> bool:
    return False


@pytest.mark.parametrize("family", ["whisper", pytest.param("ctc", marks=pytest.mark.slow)])
def test_a_teacher_without_a_share_changes_not_one_bit(corpus: Path, tmp_path: Path, family: str) -> None:
    taught = FAMILIES[family](corpus, loop={"steps": 3})
    taught["loss"] = {"distill": {**taught["loss"]["distill"], "weight": 0.0, "anneal": None}}
    runs = [RunDir(tmp_path / name) for name in ("alone", "taught")]
    for run, train_section in zip(runs, ({**taught, "loss": {}}, taught), strict=True):
        train(write_experiment(tmp_path / f"{run.root.name}.yaml", train_section), run, stop=never)
    alone, taught_too = (ended(run, 3) for run in runs)
    assert alone.keys() == taught_too.keys()
    assert all(torch.equal(alone[k], taught_too[k]) for k in alone)


@pytest.mark.parametrize(
    "family", ["whisper", pytest.param("ctc", marks=pytest.mark.slow), pytest.param("seq2seq", marks=pytest.mark.slow)]
)
def test_stopped_and_resumed_with_a_falling_share_it_ends_bit_identical_and_the_teacher_as_it_came(
    corpus: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = FAMILIES[family](corpus)
    taught["loss"]["distill"]["anneal"] = {"to": 0.1, "over": 0.7}
    file = write_experiment(tmp_path / "a.yaml", taught)
    folder = Path(taught["loss"]["distill"]["teacher"])
    before = (folder / "model.safetensors").read_bytes()
    whole, stopped = RunDir(tmp_path / "whole"), RunDir(tmp_path / "stopped")
    train(file, whole, stop=never)
    questions = iter(range(1000))
    with pytest.raises(StopAsked):
        train(file, stopped, stop=lambda: next(questions) >= 7)
    train(file, stopped, stop=never)
    one, two = ended(whole), ended(stopped)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert (folder / "model.safetensors").read_bytes() == before
    kept = whole.checkpoints / "step-00000006"
    told = json.loads((kept / "model" / "teacher.json").read_text())
    assert told["teacher"] == str(folder)
    assert len(told["weights"]) == 32
    moments = torch.load(kept / "state" / "optimizer.pt", weights_only=True)
    n_moments = sum(t.numel() for t in tensors_in(moments))
    assert n_moments < 2.5 * sum(t.numel() for t in one.values()), "the teacher is in no optimiser"
    numbers = [json.loads(line) for line in whole.metrics.read_text().splitlines()]
    assert {k for line in numbers for k in line if k.startswith("loss/")} == {f"loss/{OWN[family]}", "loss/kl"}
    folder.rename(folder.with_name("gone"))
    capsys.readouterr()
    for place in (["--run", str(whole.root)], ["--model", str(whole.export)]):
        assert main(["evaluate", *place, str(corpus / "test.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert main(["average", str(whole.root), str(stopped.root), "--out", str(tmp_path / "mean")]) == 0


def test_another_teacher_under_the_same_name_is_another_training(corpus: Path, tmp_path: Path) -> None:
    taught = distilled_whisper(corpus)
    file = write_experiment(tmp_path / "a.yaml", taught)
    questions = iter(range(1000))
    with pytest.raises(StopAsked):
        train(file, RunDir(tmp_path / "run"), stop=lambda: next(questions) >= 7)
    scratch = {**recipe_dict(corpus)["model"]["from_scratch"], **WIDER}
    make_teacher(corpus / "teacher-whisper", recipe_dict(corpus, model={"from_scratch": scratch}), seed=8)
    with pytest.raises(BadRecipe, match=r"loss\.distill\.teacher: .* is another model than this run was taught by"):
        train(file, RunDir(tmp_path / "run"), stop=never)


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(corpus: Path, tmp_path: Path) -> None:
    taught = distilled_whisper(corpus, loop={"steps": 30}, optim={"lr": 1e-2}, eval={"every_steps": 30})
    taught["loss"]["distill"] |= {"weight": 1.0, "anneal": None}
    run = RunDir(tmp_path / "run")
    train(write_experiment(tmp_path / "a.yaml", taught), run, stop=never)
    kl = [x["loss/kl"] for x in map(json.loads, run.metrics.read_text().splitlines()) if "loss/kl" in x]
    assert kl[-1] < 0.7 * kl[0]
