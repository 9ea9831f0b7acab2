"""Task ctc: what an utterance yields is what the stock model yields for it alone and unpadded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.speech import ctc_dict, make_corpus, tone
from support.waits import Waits
from torch import nn
from transformers import AutoModelForCTC, AutoProcessor

from trainer.data.audio import RATE
from trainer.data.features import ParakeetMel
from trainer.data.loader import StepLoader
from trainer.data.manifest import Manifest, open_manifests
from trainer.errors import BadRecipe
from trainer.norms import StillBatchNorm
from trainer.recipe.load import parse_recipe
from trainer.task import Bad, Draw, Example, Parts
from trainer.tasks.ctc import CtcTask, collapsed

KINDS = ["parakeet", "wav2vec2", "wav2vec2-layer", "hubert", "wavlm"]


def make_task(folder: Path, kind: str = "parakeet", **sections: dict) -> CtcTask:
    torch.manual_seed(0)
    family, _, norm = kind.partition("-")
    recipe = ctc_dict(folder, family, **sections)
    if norm and recipe["model"]["from_scratch"]:
        recipe["model"]["from_scratch"]["norm"] = norm
    return CtcTask(parse_recipe(recipe))


def corpus(folder: Path, task: CtcTask, n: int = 12) -> Manifest:
    return open_manifests([make_corpus(folder, n)], task.recipe.data, folder, folder / "cache")


def built(task: CtcTask, loud: float = 3.0) -> Parts:
    """An untrained model says the same to everyone: `loud` makes it listen."""
    torch.manual_seed(0)
    parts = task.build()
    parts.module.eval()
    with torch.no_grad():
        for name, p in parts.module.named_parameters():
            p.mul_(loud if p.ndim > 1 else 1.0)
            if name.endswith(("bias", "running_mean")):
                p.add_(torch.randn_like(p) * 0.1)
        for name, b in parts.module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
    return parts


def batch_of(task: CtcTask, parts: Parts, examples: list[Example], train: bool = False):
    items = task.load(examples, [Draw(i) if train else None for i in range(len(examples))])
    assert not any(isinstance(i, Bad) for i in items), items
    return task.prepare(task.collate(items), parts, train)


def by_length(task: CtcTask, manifest: Manifest) -> list[list[Example]]:
    found: dict[float, list[Example]] = {}
    for i in range(len(manifest)):
        found.setdefault(task.size(manifest[i], None).padded_s, []).append(manifest[i])
    return list(found.values())


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def stock_logits(task: CtcTask, module: nn.Module, example: Example) -> torch.Tensor:
    """Of the utterance alone and unpadded, by the library's own features and forward."""
    wave, _ = soundfile.read(example.audio, dtype="float32")
    inputs = task.extractor(wave, sampling_rate=RATE, return_tensors="pt")
    dtype = next(module.parameters()).dtype
    with torch.no_grad():
        return module(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}).logits[0]


def test_an_utterance_yields_what_the_stock_model_yields_for_it_alone_and_unpadded(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind, data={"edge_s": 1.0})
    parts = built(task)
    parts.module.double()
    manifest = corpus(tmp_path, task, 10)
    again = AutoModelForCTC.from_config(task.config).double().eval()  # no module of ours in it
    again.load_state_dict(parts.module.state_dict())
    lengths = by_length(task, manifest)
    assert max(map(len, lengths)) > 2
    for examples in lengths:
        batch = batch_of(task, parts, examples)
        assert batch.wave_BT.shape[1] > max(batch.samples_B), "a test of padding needs padding"
        with torch.no_grad():
            ours = task.logits(parts.module, batch)
        for b, example in enumerate(examples):
            stock = stock_logits(task, again, example)[: batch.n_frames[b]]
            assert len(stock) == batch.n_frames[b]
            assert torch.allclose(ours[b, : batch.n_frames[b]], stock, rtol=0, atol=1e-5), kind
            assert stock.std() > 0.01


def test_an_utterance_s_loss_is_its_own_whoever_sits_beside_it(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = built(task)
    parts.module.double()
    for examples in by_length(task, corpus(tmp_path, task, 20)):
        together = task.losses(parts.module, batch_of(task, parts, examples, train=True))["ctc"]
        alone = [
            task.losses(parts.module, task.prepare(task.collate(task.load([e], [Draw(i)])), parts, True))["ctc"][0]
            for i, e in enumerate(examples)
        ]
        assert torch.allclose(together, torch.stack(alone), rtol=0, atol=1e-9)
        assert together.min() > 0


def test_the_transcript_is_the_stock_one_alone_and_in_a_batch_and_after_export(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = built(task, 6.0)
    manifest = corpus(tmp_path, task, 16)
    task.export(parts.module, tmp_path / "export")
    model = AutoModelForCTC.from_pretrained(tmp_path / "export").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    texts = set()
    for examples in by_length(task, manifest):
        with torch.no_grad():
            rows = task.predict(parts.module, batch_of(task, parts, examples), task.recipe.eval.decode)
        for example, row in zip(examples, rows, strict=True):
            wave, _ = soundfile.read(example.audio, dtype="float32")
            inputs = processor(wave, sampling_rate=RATE, return_tensors="pt")
            with torch.no_grad():
                best = model(**inputs).logits.argmax(-1)
            if "attention_mask" in inputs and kind == "parakeet":
                best = model.generate(**inputs)
            stock = processor.batch_decode(best)[0]  # keeps what an untrained model says and ours never learns: <unk>
            assert stock.replace("<unk>", "").replace("<s>", "").replace("</s>", "").strip() == row["text"]
            texts.add(row["text"])
    assert len(texts) > 3, "a model that says one thing to all would pass any such test"


def test_the_loss_is_torch_s_a_sum_an_utterance_and_counts_are_of_tokens(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    parts = built(task)
    examples = max(by_length(task, corpus(tmp_path, task, 12)), key=len)
    batch = batch_of(task, parts, examples, train=True)
    found = task.losses(parts.module, batch)["ctc"]
    assert found.shape == (len(examples),)
    assert batch.counts["ctc"] == sum(len(e.text) for e in examples)
    for b, e in enumerate(examples):
        labels = torch.tensor([task._tokens(e.text)])
        logits = stock_logits(task, parts.module, e)[: batch.n_frames[b]]
        wanted = nn.functional.ctc_loss(
            logits.log_softmax(-1)[:, None], labels, [len(logits)], [labels.shape[1]], task.blank, reduction="sum"
        )
        assert found[b].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("seconds", [0.1, 0.313, 1.0, 1.99])
def test_parakeet_s_features_equal_the_stock_extractor_s_whatever_the_padding(tmp_path: Path, seconds: float) -> None:
    extractor = make_task(tmp_path).extractor
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    theirs = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
    padded = torch.from_numpy(rng.normal(0, 0.1, (2, 2 * RATE)).astype(np.float32))
    padded[1, : len(wave)] = torch.from_numpy(wave)
    padded[1, len(wave) :] = 0
    ours = ParakeetMel(extractor)(padded, torch.tensor([2 * RATE, len(wave)]))
    n = len(wave) // 160
    assert torch.allclose(ours[1, :n], theirs[0, :n], atol=1e-4)
    assert ours[1, n:].abs().max() == 0 if n < 200 else True


def test_what_can_not_be_learnt_is_bad_with_its_reason_and_only_in_training(tmp_path: Path) -> None:
    task = make_task(tmp_path, "wav2vec2")
    soundfile.write(tmp_path / "a.wav", tone(["low"] * 4), RATE)
    good = Example("a", str(tmp_path / "a.wav"), 0.0, 0.8, "low " * 3)
    wrong = [
        replace(good, text="low " * 11),
        replace(good, text="oo" * 13),  # 26 letters would fit 39 frames, 25 blanks between equal ones would not
        replace(good, text="Low"),
        replace(good, text="<pad>low"),
        replace(good, duration_s=0.02),
        replace(good, audio="gone.wav"),
    ]
    answers = task.load([*wrong, good], [Draw(0)] * 7)
    assert [isinstance(a, Bad) for a in answers] == [True] * 6 + [False]
    assert "needs 43 frames (one a token, one between equal ones), its audio has 39" in answers[0].reason
    assert "needs 51 frames" in answers[1].reason
    assert "lacks 'L'" in answers[2].reason
    assert "too short" in answers[4].reason
    assert not any(isinstance(a, Bad) for a in task.load(wrong[:4], [None] * 4)), "in evaluation they are heard"


def test_small_letters_for_a_model_of_capitals_are_told_before_an_epoch_is_wasted(tmp_path: Path) -> None:
    task = make_task(tmp_path, "wav2vec2", model={"letters": sorted(set("LOWMIDHIGH"))})
    soundfile.write(tmp_path / "a.wav", tone(["low"] * 4), RATE)
    good = Example("a", str(tmp_path / "a.wav"), 0.0, 0.8, "LOW")
    some = [good] * 30 + [replace(good, text="low")] * 25  # a minority is quarantined
    assert sum(isinstance(a, Bad) for a in task.load(some, [Draw(0)] * 55)) == 25
    task = make_task(tmp_path, "wav2vec2", model={"letters": sorted(set("LOWMIDHIGH"))})
    with pytest.raises(BadRecipe, match=r"train\.model\.text: 20 of the first 20 .*'low'.*: say upper"):
        task.load([replace(good, text="low")] * 40, [Draw(0)] * 40)


def test_in_half_precision_losses_are_single_and_near(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = task.build()
    batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
    exact = task.losses(parts.module, batch)["ctc"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = task.losses(parts.module, batch)["ctc"]
    assert near.dtype == torch.float32
    assert torch.allclose(near, exact, rtol=0.05)
    near.sum().backward()


def test_the_loss_of_an_impossible_target_is_zero_and_so_is_its_gradient(tmp_path: Path) -> None:
    """Beyond `load`: whatever reaches the loss never costs the step."""
    task = make_task(tmp_path, "wav2vec2")
    parts = built(task)
    (item,) = task.load([corpus(tmp_path, task, 1)[0]], [Draw(0)])
    bad = replace(item, tokens=[5] * 200)
    batch = task.prepare(task.collate([item, bad]), parts, True)
    found = task.losses(parts.module, batch)["ctc"]
    found.sum().backward()
    assert found[0] > 0
    assert found[1] == 0
    assert all(torch.isfinite(p.grad).all() for p in parts.module.parameters() if p.grad is not None)


def test_a_faster_draw_that_would_leave_too_few_frames_is_left_out(tmp_path: Path) -> None:
    task = make_task(tmp_path, "wav2vec2", augment={"speed": [1.9]})
    tight = Example("a", "a.wav", 0.0, 0.5, "low " * 5)
    assert task.fits(tight.text, 8000)
    assert not task.fits(tight.text, round(8000 / 1.9))
    assert task.drawn(tight, Draw(0)).speed == 1.0
    assert task.drawn(replace(tight, text="low"), Draw(0)).speed == 1.9


def test_joins_and_masks_are_functions_of_seed_epoch_and_utterance(tmp_path: Path, kind: str) -> None:
    augment = {
        "speed": [0.9, 1.1], "gain_db": 6, "noise_snr_db": [10, 20], "join_p": 0.7, "join_max": 3,
        "spec": {"p": 1.0, "freq_masks": 2, "freq_width": 4, "time_masks": 2, "time_share": 0.2},
    }  # fmt: skip
    task = make_task(tmp_path, kind, augment=augment)
    parts = built(task)
    manifest = corpus(tmp_path, task, 8)
    loader = StepLoader(task, manifest, task.recipe)
    for i in range(8):
        draws = [loader.draw(manifest[i], epoch) for epoch in (0, 0, 1)]
        one, again, other = task.load([manifest[i]] * 3, draws)
        assert np.array_equal(one.wave_T, again.wave_T)
        assert not np.array_equal(one.wave_T, other.wave_T)
        assert (one.tokens, one.freq_spans, one.time_spans) == (again.tokens, again.freq_spans, again.time_spans)
        size = task.size(manifest[i], draws[0])
        assert len(one.wave_T) == round(size.audio_s * RATE) <= one.padded
    spans = replace(one, freq_spans=[(0, 4)], time_spans=[(1, 3)])
    parts.module.train()
    losses = [
        task.losses(parts.module, task.prepare(task.collate([x]), parts, True))["ctc"].item()
        for x in (spans, replace(one, freq_spans=[], time_spans=[]))
    ]
    assert losses[0] != losses[1], "masks reach the model"


def test_batch_norms_stand_still_in_training_unless_asked_not_to(tmp_path: Path) -> None:
    for how in ("frozen", "live"):
        task = make_task(tmp_path, model={"batch_statistics": how})
        parts = task.build()
        parts.module.train()
        before = {n: b.clone() for n, b in parts.module.named_buffers() if "running" in n}
        task.losses(parts.module, task.prepare(task.dummy(2, 1.0, 4), parts, True))
        moved = any(not torch.equal(b, before[n]) for n, b in parts.module.named_buffers() if n in before)
        assert moved == (how == "live")
        assert bool(task.recipe.exceptions()) == (how == "live")
        norms = [m for m in parts.module.modules() if isinstance(m, nn.BatchNorm1d)]
        assert norms
        assert all(isinstance(m, StillBatchNorm) for m in norms) == (how == "frozen")


def test_a_saved_module_comes_back_bit_for_bit_and_trains_what_was_trained(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = built(task)
    task.save(parts.module, tmp_path / "saved")
    again = task.build(tmp_path / "saved").module
    ours, theirs = parts.module.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert task.groups(again) == task.groups(parts.module)
    names = [n for group in task.groups(again).values() for n in group]
    assert sorted(names) == sorted(n for n, p in again.named_parameters() if p.requires_grad)
    assert {"encoder", "head"} <= {g for g, members in task.groups(again).items() if members}


def from_hub(folder: Path, saved: Path, **sections: dict) -> CtcTask:
    model = {"from_scratch": None, "name": str(saved), "vocabulary": "tokenizer", "letters": None}
    return make_task(folder, **{**sections, "model": {**model, **sections.get("model", {})}})


@pytest.mark.parametrize("kind", ["parakeet", "wav2vec2", "wavlm"])
def test_fine_tuning_freezes_the_convolutions_over_the_wave(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    task.export(built(task).module, tmp_path / "hub")
    tuned = from_hub(tmp_path, tmp_path / "hub")
    module = tuned.build().module
    assert tuned.groups(module)["features"] == []
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad and "masked_spec" not in n]
    assert bool(frozen) == (kind != "parakeet")
    opened = from_hub(tmp_path, tmp_path / "hub", model={"freeze_features": False})
    assert bool(opened.groups(opened.build().module)["features"]) == (kind != "parakeet")


@pytest.mark.parametrize("kind", ["parakeet", "wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("letters", [None, list("xyz lowmidhg".replace(" ", ""))])
def test_adapters_are_trained_with_a_fresh_head_saved_alone_and_merged_in_the_export(
    tmp_path: Path, kind: str, letters: list[str] | None
) -> None:
    task = make_task(tmp_path, kind)
    task.export(built(task).module, tmp_path / "hub")
    model = {} if letters is None else {"vocabulary": "transcripts", "letters": letters}
    tuned = from_hub(tmp_path, tmp_path / "hub", model=model, adapters={"r": 2})
    parts = tuned.build()
    parts.module.eval()
    trained = {n for n, p in parts.module.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "head" in n for n in trained)
    assert any("head" in n for n in trained) == (letters is not None)
    manifest = corpus(tmp_path, tuned, 3)
    batch = batch_of(tuned, parts, [manifest[0]], train=True)
    tuned.losses(parts.module, batch)["ctc"].sum().backward()
    felt = [n for n, p in parts.module.named_parameters() if p.requires_grad and p.grad is not None]
    assert set(felt) == trained, "every adapter that is there is felt"
    with torch.no_grad():
        for n, p in parts.module.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.1)
    loss = tuned.losses(parts.module, batch)["ctc"]
    tuned.save(parts.module, tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    again = tuned.build(tmp_path / "saved")
    again.module.eval()
    assert torch.equal(tuned.losses(again.module, batch)["ctc"], loss)
    tuned.export(parts.module, tmp_path / "export")
    merged = from_hub(tmp_path, tmp_path / "export")
    whole = merged.build()
    whole.module.eval()
    assert torch.allclose(merged.losses(whole.module, batch)["ctc"], loss, rtol=1e-4)


def test_adapters_that_nothing_would_feel_are_refused(tmp_path: Path) -> None:
    for kind, targets, says in (
        ("wavlm", "attention", "passes adapters by"),
        ("wavlm", r".*\.q_proj", "passes adapters by"),
        ("hubert", r".*\.qkv", "names no layer"),
    ):
        task = make_task(tmp_path, kind)
        task.export(built(task).module, tmp_path / f"hub-{kind}")
        with pytest.raises(BadRecipe, match=says):
            from_hub(tmp_path, tmp_path / f"hub-{kind}", adapters={"targets": targets}).build()


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, kind: str) -> None:
    gradients = []
    for on in (False, True):
        task = make_task(tmp_path, kind, loop={"gradient_checkpointing": on})
        parts = built(task)
        parts.module.train()
        batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
        task.losses(parts.module, batch)["ctc"].sum().backward()
        gradients.append([p.grad for p in parts.module.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


# transformers looks whether a mask masks anything before it takes sdpa; `x[mask] = 0` becomes masked_fill on a GPU
KNOWN_WAITS = {"wav2vec2": {"_local_scalar_dense": 1, "boolean index": 2}, "wavlm": {"boolean index": 2}}


def test_a_step_asks_the_device_nothing_but_what_is_known(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind, augment={"spec": {"p": 1.0, "freq_width": 4}})
    parts = task.build()
    parts.module.train()
    examples = by_length(task, corpus(tmp_path, task, 8))[0]
    batch = task.collate(task.load(examples, [Draw(i) for i in range(len(examples))]))
    with Waits() as waits:
        task.losses(parts.module, task.prepare(batch, parts, True))["ctc"].sum().backward()
    family = {"wav2vec2-layer": "wav2vec2", "hubert": "wav2vec2"}.get(kind, kind)
    assert dict(waits.found) == KNOWN_WAITS.get(family, {})


def test_a_model_of_another_kind_or_without_a_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"train\.model\.name.*nowhere can't be loaded"):
        from_hub(tmp_path, tmp_path / "nowhere")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadRecipe, match=r"is a bert: known here are wav2vec2"):
        from_hub(tmp_path, tmp_path / "bert")
    task = make_task(tmp_path, "wav2vec2")
    task.export(built(task).module, tmp_path / "hub")
    for name in ("vocab.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / "hub" / name).unlink(missing_ok=True)
    task.extractor.save_pretrained(tmp_path / "hub")
    with pytest.raises(BadRecipe, match="vocabulary: transcripts"):
        from_hub(tmp_path, tmp_path / "hub")
    fresh = from_hub(tmp_path, tmp_path / "hub", model={"vocabulary": "transcripts", "letters": ["a", "b"]})
    assert fresh.build().module.lm_head.out_features == 7


def test_equal_neighbours_are_one_and_a_blank_parts_them() -> None:
    assert collapsed([0, 5, 5, 0, 5, 6, 6, 0], 0) == [5, 5, 6]
    assert collapsed([], 0) == []
    assert collapsed([0, 0], 0) == []
