"""Task tdt: Parakeet's transducers, equal to the stock model alone and unpadded, in loss and in what they say."""

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from support.speech import make_corpus, tdt_dict, tone
from support.waits import Waits
from torch import nn
from transformers import AutoProcessor, ParakeetForRNNT, ParakeetForTDT
from transformers.loss.loss_tdt import tdt_loss

import trainer.tasks.tdt as tdt
from trainer.data.audio import RATE
from trainer.data.manifest import Manifest, open_manifests
from trainer.errors import BadRecipe
from trainer.recipe.load import parse_recipe
from trainer.task import Bad, Draw, Example, Parts
from trainer.tasks.tdt import TdtTask

CLASSES = {"tdt": ParakeetForTDT, "rnnt": ParakeetForRNNT}


@pytest.fixture(params=["tdt", "rnnt"])
def kind(request) -> str:
    return request.param


def make_task(folder: Path, kind: str = "tdt", **sections: dict) -> TdtTask:
    torch.manual_seed(0)
    return TdtTask(parse_recipe(tdt_dict(folder, kind, **sections)))


def corpus(folder: Path, task: TdtTask, n: int = 12) -> Manifest:
    return open_manifests([make_corpus(folder, n)], task.recipe.data, folder, folder / "cache")


def built(task: TdtTask, seed: int = 0) -> Parts:
    """An untrained model says the same to everyone: this one listens, to the audio and to itself."""
    torch.manual_seed(seed)
    parts = task.build()
    parts.module.eval()
    with torch.no_grad():
        for name, p in parts.module.named_parameters():
            loud = 30.0 if "encoder_projector.weight" in name or "decoder_projector.weight" in name else 3.0
            p.mul_(loud if p.ndim > 1 else 1.0)
        for name, b in parts.module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
    return parts


def batch_of(task: TdtTask, parts: Parts, examples: list[Example], train: bool = False):
    items = task.load(examples, [Draw(i) if train else None for i in range(len(examples))])
    assert not any(isinstance(i, Bad) for i in items), items
    return task.prepare(task.collate(items), parts, train)


def by_length(task: TdtTask, manifest: Manifest) -> list[list[Example]]:
    found: dict[float, list[Example]] = {}
    for i in range(len(manifest)):
        found.setdefault(task.size(manifest[i], None).padded_s, []).append(manifest[i])
    return list(found.values())


def stock_inputs(task: TdtTask, module: nn.Module, example: Example) -> dict[str, torch.Tensor]:
    wave, _ = soundfile.read(example.audio, dtype="float32")
    inputs = task.extractor(wave, sampling_rate=RATE, return_tensors="pt")
    dtype = next(module.parameters()).dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def test_the_loss_is_the_stock_model_s_for_the_utterance_alone_and_unpadded(tmp_path: Path) -> None:
    task = make_task(tmp_path, data={"edge_s": 1.0}, transducer={"sigma": 0.05})
    parts = built(task)
    again = ParakeetForTDT(task.config).eval()
    again.load_state_dict(parts.module.state_dict())
    lengths = by_length(task, corpus(tmp_path, task, 10))
    assert max(map(len, lengths)) > 2
    for examples in lengths:
        batch = batch_of(task, parts, examples, train=True)
        ours = task.losses(parts.module, batch)["transducer"]
        for b, example in enumerate(examples):
            labels = torch.tensor([task._tokens(example.text)])
            fed = torch.cat([torch.tensor([[task.blank]]), labels], dim=1)
            out = again(**stock_inputs(task, again, example), decoder_input_ids=fed)
            n = int(batch.frames_B[b])
            V, U = task.config.vocab_size, labels.shape[1]
            logits = out.logits.view(1, -1, U + 1, V + 5)
            args = labels.int(), torch.tensor([n]), torch.tensor([U]), task.blank, [0, 1, 2, 3, 4]
            stock = tdt_loss(logits[..., :V], logits[..., V:], *args, sigma=0.05, reduction="none")
            assert ours[b].item() == pytest.approx(stock.item(), rel=1e-4)


def test_an_utterance_s_loss_is_its_own_whoever_sits_beside_it(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = built(task)
    parts.module.double()
    for examples in by_length(task, corpus(tmp_path, task, 16)):
        together = task.losses(parts.module, batch_of(task, parts, examples, train=True))["transducer"]
        alone = [
            task.losses(parts.module, task.prepare(task.collate(task.load([e], [Draw(i)])), parts, True))["transducer"][
                0
            ]
            for i, e in enumerate(examples)
        ]
        assert torch.allclose(together, torch.stack(alone), rtol=0, atol=1e-9)


def test_what_is_said_is_what_the_stock_generation_says_after_export(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind, eval={"decode": {"max_new_tokens": 10_000}})
    texts = set()
    for seed in range(2):
        parts = built(task, seed)
        manifest = corpus(tmp_path, task, 6)
        task.export(parts.module, tmp_path / "export")
        model = CLASSES[kind].from_pretrained(tmp_path / "export").eval()
        processor = AutoProcessor.from_pretrained(tmp_path / "export")
        for examples in by_length(task, manifest):
            with torch.no_grad():
                rows = task.predict(parts.module, batch_of(task, parts, examples), task.recipe.eval.decode)
            for example, row in zip(examples, rows, strict=True):
                inputs = processor(soundfile.read(example.audio, dtype="float32")[0], sampling_rate=RATE)
                said = model.generate(**inputs).sequences
                assert processor.decode(said, skip_special_tokens=True)[0].strip() == row["text"]
                texts.add(row["text"])
    assert len(texts) > 3, "a model that says one thing to all would pass any such test"


def test_decoding_ends_at_the_asked_number_of_tokens(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind, eval={"decode": {"max_new_tokens": 3}})
    parts = built(task)
    with torch.no_grad():
        parts.module.joint.head.bias[task.blank] = -100.0
    batch = batch_of(task, parts, by_length(task, corpus(tmp_path, task, 4))[0])
    said = task._greedy(parts.module, task._heard(parts.module, batch), batch, 3)
    assert all(len(s) == 3 for s in said)


def test_the_joint_network_in_pieces_gives_the_same_loss_and_gradient(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(tmp_path, kind)
    found = []
    for numbers in (1 << 25, 2000):
        monkeypatch.setattr(tdt, "JOINT_NUMBERS", numbers)
        parts = built(task)
        parts.module.double()
        batch = task.prepare(task.dummy(2, 1.0, 6), parts, True)
        loss = task.losses(parts.module, batch)["transducer"]
        loss.sum().backward()
        found.append([loss.detach(), *(p.grad for p in parts.module.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*found, strict=True))


def test_a_saved_module_comes_back_bit_for_bit_and_every_parameter_has_its_group(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = built(task)
    task.save(parts.module, tmp_path / "saved")
    again = task.build(tmp_path / "saved").module
    ours, theirs = parts.module.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    groups = task.groups(again)
    assert groups == task.groups(parts.module)
    assert all(groups.values())
    assert all("encoder." in n for n in groups["encoder"])
    names = [n for group in groups.values() for n in group]
    assert sorted(names) == sorted(n for n, p in again.named_parameters() if p.requires_grad)


def from_hub(folder: Path, saved: Path, **sections: dict) -> TdtTask:
    model = {"from_scratch": None, "name": str(saved), "vocabulary": "tokenizer", "letters": None}
    return make_task(folder, **{**sections, "model": {**model, **sections.get("model", {})}})


@pytest.mark.parametrize("letters", [None, list("xyzlowmidhg")])
def test_adapters_are_trained_with_what_a_new_vocabulary_makes_fresh_and_merged(
    tmp_path: Path, kind: str, letters: list[str] | None
) -> None:
    task = make_task(tmp_path, kind)
    task.export(built(task).module, tmp_path / "hub")
    model = {} if letters is None else {"vocabulary": "transcripts", "letters": letters}
    tuned = from_hub(tmp_path, tmp_path / "hub", model=model, adapters={"r": 2})
    assert (tuned.durations is None) == (kind == "rnnt")
    parts = tuned.build()
    parts.module.eval()
    trained = {n for n, p in parts.module.named_parameters() if p.requires_grad}
    assert any("joint.head" in n for n in trained) == any("embedding" in n for n in trained) == (letters is not None)
    batch = batch_of(tuned, parts, [corpus(tmp_path, tuned, 3)[0]], train=True)
    tuned.losses(parts.module, batch)["transducer"].sum().backward()
    assert {n for n, p in parts.module.named_parameters() if p.grad is not None} == trained
    with torch.no_grad():
        for n, p in parts.module.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.1)
    loss = tuned.losses(parts.module, batch)["transducer"]
    tuned.save(parts.module, tmp_path / "saved")
    again = tuned.build(tmp_path / "saved")
    again.module.eval()
    assert torch.equal(tuned.losses(again.module, batch)["transducer"], loss)
    tuned.export(parts.module, tmp_path / "export")
    merged = from_hub(tmp_path, tmp_path / "export")
    whole = merged.build()
    whole.module.eval()
    assert torch.allclose(merged.losses(whole.module, batch)["transducer"], loss, rtol=1e-4)


def test_in_half_precision_losses_are_single_and_near(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = task.build()
    batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
    exact = task.losses(parts.module, batch)["transducer"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = task.losses(parts.module, batch)["transducer"]
    assert near.dtype == torch.float32
    assert torch.allclose(near, exact, rtol=0.05)
    near.sum().backward()


def test_what_can_not_be_learnt_is_bad_with_its_reason(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    soundfile.write(tmp_path / "a.wav", tone(["low"] * 4), RATE)
    good = Example("a", str(tmp_path / "a.wav"), 0.0, 0.8, "low " * 3)
    wrong = [replace(good, text="Low"), replace(good, text="<blank>low"), replace(good, duration_s=0.02)]
    answers = task.load([*wrong, good], [Draw(0)] * 4)
    assert [isinstance(a, Bad) for a in answers] == [True, True, True, False]
    assert "lacks 'L'" in answers[0].reason
    assert "blank" in answers[1].reason
    assert not isinstance(task.load([replace(good, text="low " * 90)], [Draw(0)])[0], Bad), "tokens may last no frame"
    task.durations = [1, 2, 3]
    (bad,) = task.load([replace(good, text="low " * 9)], [Draw(0)])
    assert "35 tokens does not fit the 20 frames" in bad.reason


def test_a_step_asks_the_device_nothing(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind, augment={"spec": {"p": 1.0}}, transducer={"omega": 0.1})
    parts = task.build()
    parts.module.train()
    examples = by_length(task, corpus(tmp_path, task, 8))[0]
    batch = task.collate(task.load(examples, [Draw(i) for i in range(len(examples))]))
    with Waits() as waits:
        task.losses(parts.module, task.prepare(batch, parts, True))["transducer"].sum().backward()
    assert not waits.found


def test_a_model_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"train\.model\.name.*nowhere can't be loaded"):
        from_hub(tmp_path, tmp_path / "nowhere")
