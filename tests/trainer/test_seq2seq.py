"""Task seq2seq: what an utterance yields is what the stock model yields for it alone and unpadded, of any kind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from support.seq2seq import KINDS, make_model, seq2seq_dict
from support.speech import make_corpus, tone
from torch import nn
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer
from transformers.generation.utils import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

from trainer.data.audio import RATE, samples_of
from trainer.data.loader import StepLoader
from trainer.data.manifest import Manifest, open_manifests
from trainer.errors import BadRecipe
from trainer.recipe.load import parse_recipe
from trainer.task import Bad, Draw, Example, Parts
from trainer.tasks.seq2seq import Seq2SeqTask
from trainer.tasks.seq2seq_families import JOINED, PLAIN, REFUSED, family_of

QUICK = ("speech_to_text", "moonshine", "wav2vec2-mbart")  # features, a wave, and a model joined of two


@pytest.fixture(params=[k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[k if k == "moonshine" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def some_kind(request) -> str:
    """For what the kinds have in common: one of them all day, the others when there is time."""
    return request.param


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_task(folder: Path, kind: str, **sections: Any) -> Seq2SeqTask:
    return Seq2SeqTask(parse_recipe(seq2seq_dict(folder, kind, **sections)))


def corpus(folder: Path, task: Seq2SeqTask, n: int = 12) -> Manifest:
    return open_manifests([make_corpus(folder, n)], task.recipe.data, folder, folder / "cache")


def built(task: Seq2SeqTask) -> Parts:
    parts = task.build()
    parts.module.eval()
    return parts


def by_length(task: Seq2SeqTask, manifest: Manifest | list[Example]) -> list[list[Example]]:
    found: dict[float, list[Example]] = {}
    for i in range(len(manifest)):
        found.setdefault(task.size(manifest[i], None).padded_s, []).append(manifest[i])
    return list(found.values())


def odd(manifest: Manifest) -> list[Example]:
    """Cut where no frame ends: every length is another, and none a multiple of anything."""
    return [
        replace(manifest[i], duration_s=manifest[i].duration_s - 0.00585 * (1 + i % 3)) for i in range(len(manifest))
    ]


def batch_of(task: Seq2SeqTask, parts: Parts, examples: list[Example], train: bool = False) -> Any:
    items = task.load(examples, [Draw(i) if train else None for i in range(len(examples))])
    assert not any(isinstance(i, Bad) for i in items), items
    return task.prepare(task.collate(items), parts, train)


def stock(task: Seq2SeqTask, folder: Path) -> Any:
    """As anybody would load it."""
    return AutoModelForSpeechSeq2Seq.from_pretrained(folder, attn_implementation=task.attention).eval()


def stock_inputs(model: Any, folder: Path, example: Example) -> dict[str, torch.Tensor]:
    """Of the utterance alone and unpadded, by the library's own features."""
    wave, _ = soundfile.read(example.audio, dtype="float32")
    wave = wave[: samples_of(example.duration_s)]
    more: dict[str, Any] = {}
    if model.config.model_type == "moonshine_streaming":  # as its own processor asks
        more = {"padding": True, "pad_to_multiple_of": 80, "return_attention_mask": True}
    inputs = AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=RATE, return_tensors="pt", **more)
    names = ("input_values", "input_features", "attention_mask")
    dtype = next(model.parameters()).dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items() if k in names}


def test_an_utterance_yields_what_the_stock_model_yields_for_it_alone_and_unpadded(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind, data={"edge_s": 0.7})
    parts = built(task)
    parts.module.double()
    model = stock(task, tmp_path / f"model-{kind}").double()
    losses = []
    for examples in by_length(task, odd(corpus(tmp_path, task, 10))):
        batch = batch_of(task, parts, examples, train=True)
        assert batch.sound.shape[1] > max(batch.inputs_B), "a test of padding needs padding"
        with torch.no_grad():
            ours = task.losses(parts.module, batch)["ce"]
        for b, example in enumerate(examples):
            tokens = task._tokens(example.text)
            read = torch.tensor([[*task.prompt, *tokens[:-1]]])
            with torch.no_grad():
                inputs = stock_inputs(model, tmp_path / f"model-{kind}", example)
                logits = model(**inputs, decoder_input_ids=read).logits[0, len(task.prompt) - 1 :]
            wanted = nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum")
            assert ours[b].item() == pytest.approx(wanted.item(), rel=1e-6), kind
            losses.append(wanted.item() / len(tokens))
    assert max(losses) - min(losses) > 1e-3, "a model that hears nothing would pass"


def test_an_utterance_s_loss_is_its_own_whoever_sits_beside_it(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    parts = built(task)
    parts.module.double()
    for examples in by_length(task, corpus(tmp_path, task, 16)):
        together = task.losses(parts.module, batch_of(task, parts, examples, train=True))["ce"]
        alone = [
            task.losses(parts.module, task.prepare(task.collate(task.load([e], [Draw(i)])), parts, True))["ce"][0]
            for i, e in enumerate(examples)
        ]
        assert torch.allclose(together, torch.stack(alone), rtol=0, atol=1e-9)
        assert together.min() > 0


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_transcript_is_the_stock_one_alone_and_in_a_batch_and_after_export(
    tmp_path: Path, kind: str, beams: int
) -> None:
    task = make_task(tmp_path, kind, eval={"decode": {"beams": beams, "max_new_tokens": 5}})
    parts = built(task)
    manifest = corpus(tmp_path, task, 10)
    task.export(parts.module, tmp_path / "export")
    model = stock(task, tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    for examples in by_length(task, odd(manifest)):
        with torch.no_grad():
            rows = task.predict(parts.module, batch_of(task, parts, examples), task.recipe.eval.decode)
        assert [r["id"] for r in rows] == [e.id for e in examples]
        for example, row in zip(examples, rows, strict=True):
            said = GenerationMixin.generate(
                model,
                **stock_inputs(model, tmp_path / "export", example),
                decoder_input_ids=torch.tensor([task.prompt]),
                max_new_tokens=5,
                num_beams=beams,
                do_sample=False,
            )
            assert tokenizer.decode(said[0, len(task.prompt) :], skip_special_tokens=True).strip() == row["text"]


def test_the_pad_token_s_own_number_in_a_transcript_is_a_label_like_any_other(tmp_path: Path) -> None:
    """Where padding and the closing token are one, whoever masks by number never learns to stop."""
    folder = make_model(tmp_path / "model-moonshine", "moonshine")
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, "pad_token_id": 2}))
    task = make_task(tmp_path, "moonshine")
    manifest = corpus(tmp_path, task, 4)
    items = task.load([manifest[i] for i in range(4)], [Draw(i) for i in range(4)])
    same = [i for i in items if i.padded == items[0].padded]
    batch = task.collate(same)
    assert batch.counts["ce"] == sum(len(i.tokens) for i in same) == len(batch.label_K)
    assert (batch.label_K == 2).sum() == len(same)
    assert batch.label_index_K.dtype == batch.label_K.dtype == torch.int64


def test_only_labelled_positions_reach_the_head(tmp_path: Path, some_kind: str) -> None:
    task = make_task(tmp_path, some_kind)
    parts = built(task)
    examples = max(by_length(task, corpus(tmp_path, task, 8)), key=len)
    batch = batch_of(task, parts, examples, train=True)
    seen = []
    head = parts.module.get_output_embeddings()
    head.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    task.losses(parts.module, batch)
    assert [s[-2] for s in seen] == [len(batch.label_K)]
    assert len(batch.label_K) < batch.input_BL.numel()


def test_every_weight_that_trains_is_felt_and_in_one_group(tmp_path: Path, some_kind: str) -> None:
    task = make_task(tmp_path, some_kind)
    parts = task.build()
    parts.module.train()
    batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
    task.losses(parts.module, batch)["ce"].sum().backward()
    trains = {n for n, p in parts.module.named_parameters() if p.requires_grad}
    assert {n for n, p in parts.module.named_parameters() if p.grad is not None} == trains
    groups = task.groups(parts.module)
    assert sorted(n for members in groups.values() for n in members) == sorted(trains)
    assert groups["encoder"]
    assert groups["decoder"]
    assert bool(groups["projector"]) == (
        some_kind in ("moonshine_streaming", "cohere_asr") or some_kind.endswith("-bert")
    )
    depths = task.depths(parts.module)
    assert {depths[n] for n in groups["encoder"]} >= {1}
    assert all(0 <= depths[n] <= 3 for n in trains)


def test_a_saved_module_comes_back_bit_for_bit(tmp_path: Path, some_kind: str) -> None:
    task = make_task(tmp_path, some_kind)
    parts = built(task)
    with torch.no_grad():
        for p in parts.module.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    task.save(parts.module, tmp_path / "saved")
    again = task.build(tmp_path / "saved").module
    ours, theirs = parts.module.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert task.groups(again) == task.groups(parts.module)


@pytest.mark.parametrize("targets", ["all-linear", "attention", "decoder"])
def test_adapters_are_felt_saved_alone_and_merged_in_the_export(tmp_path: Path, some_kind: str, targets: str) -> None:
    task = make_task(tmp_path, some_kind, adapters={"r": 2, "targets": targets})
    parts = task.build()
    parts.module.eval()
    trains = {n for n, p in parts.module.named_parameters() if p.requires_grad}
    assert trains
    assert all("lora_" in n for n in trains)
    groups = task.groups(parts.module)
    assert bool(groups["encoder"]) == (
        targets != "decoder" and not (some_kind == "wavlm-bert" and targets == "attention")
    )
    assert groups["decoder"]
    batch = batch_of(task, parts, [corpus(tmp_path, task, 3)[0]], train=True)
    task.losses(parts.module, batch)["ce"].sum().backward()
    assert {n for n, p in parts.module.named_parameters() if p.grad is not None} == trains
    with torch.no_grad():
        for n, p in parts.module.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.1)
    loss = task.losses(parts.module, batch)["ce"]
    task.save(parts.module, tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    again = task.build(tmp_path / "saved")
    again.module.eval()
    assert torch.equal(task.losses(again.module, batch)["ce"], loss)
    task.export(parts.module, tmp_path / "export")
    whole = make_task(tmp_path, some_kind, model={"name": str(tmp_path / "export")})
    assert torch.allclose(whole.losses(built(whole).module, batch)["ce"], loss, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, some_kind: str) -> None:
    gradients = []
    for on in (False, True):
        task = make_task(tmp_path, some_kind, loop={"gradient_checkpointing": on})
        parts = task.build()
        parts.module.train()
        batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
        task.losses(parts.module, batch)["ce"].sum().backward()
        gradients.append([p.grad for p in parts.module.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(*gradients, strict=True))


def test_masks_reach_the_model_in_training_alone(tmp_path: Path, some_kind: str) -> None:
    task = make_task(tmp_path, some_kind)
    parts = built(task)
    (item,) = task.load([corpus(tmp_path, task, 1)[0]], [Draw(0)])
    bins, length = task.family.encoder.masked_over(len(item.input))
    spans = replace(item, freq_spans=[(0, bins // 2)], time_spans=[(length // 2, length)])
    for train in (False, True):
        parts.module.train(train)
        losses = [
            task.losses(parts.module, task.prepare(task.collate([x]), parts, train))["ce"].item() for x in (item, spans)
        ]
        assert (losses[0] != losses[1]) == train


def test_a_draw_is_a_function_of_seed_epoch_and_utterance(tmp_path: Path) -> None:
    augment = {"speed": [0.9, 1.1], "gain_db": 6, "join_p": 0.7, "spec": {"p": 1.0, "freq_width": 4}}
    task = make_task(tmp_path, "speech_to_text", augment=augment)
    manifest = corpus(tmp_path, task, 8)
    loader = StepLoader(task, manifest, task.recipe)
    for i in range(8):
        one, again, other = task.load([manifest[i]] * 3, [loader.draw(manifest[i], epoch) for epoch in (0, 0, 1)])
        assert torch.equal(torch.from_numpy(one.input), torch.from_numpy(again.input))
        assert one.input.shape != other.input.shape or (one.input != other.input).any()
        assert (one.tokens, one.time_spans, one.freq_spans) == (again.tokens, again.time_spans, again.freq_spans)


def test_what_can_not_be_learnt_is_bad_with_its_reason_and_only_in_training(tmp_path: Path, some_kind: str) -> None:
    task = make_task(tmp_path, some_kind)
    soundfile.write(tmp_path / "a.wav", tone(["low"] * 4), RATE)
    good = Example("a", str(tmp_path / "a.wav"), 0.0, 0.8, "low " * 3)
    short = replace(good, duration_s=0.01)
    answers = task.load([replace(good, text="low " * 60), replace(good, text="  "), short, good], [Draw(0)] * 4)
    assert [isinstance(a, Bad) for a in answers] == [True] * 3 + [False]
    assert "does not fit the decoder's" in answers[0].reason
    assert "nothing is left" in answers[1].reason
    assert "too short" in answers[2].reason
    heard = task.load([replace(good, text="low " * 60), short], [None] * 2)
    assert [isinstance(a, Bad) for a in heard] == [False, True], "in evaluation it is heard, whatever was said"


def test_in_half_precision_losses_are_single_and_near(tmp_path: Path, some_kind: str) -> None:
    task = make_task(tmp_path, some_kind)
    parts = built(task)
    batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
    exact = task.losses(parts.module, batch)["ce"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = task.losses(parts.module, batch)["ce"]
    assert near.dtype == torch.float32
    assert torch.allclose(near, exact, rtol=0.1)
    near.sum().backward()


# what is refused


def test_every_kind_that_transformers_knows_is_run_or_refused_with_its_reason() -> None:
    known = set(MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)
    assert known <= {JOINED, *PLAIN, *REFUSED}
    assert not set(PLAIN) & set(REFUSED)


def test_what_is_not_for_this_task_is_one_sentence_that_says_why(tmp_path: Path) -> None:
    class Config:
        model_type = "whisper"

    with pytest.raises(BadRecipe, match="m can't be trained as seq2seq: it is a whisper: say task: whisper"):
        family_of("m", Config())
    Config.model_type = "voxtral"
    with pytest.raises(BadRecipe, match="a language model that takes sound among its tokens"):
        family_of("m", Config())
    Config.model_type = "bert"
    with pytest.raises(BadRecipe, match="it is a bert: known here are speech-encoder-decoder, speech_to_text"):
        family_of("m", Config())
    Config.model_type, Config.encoder = JOINED, type("E", (), {"model_type": "wav2vec2-bert"})  # type: ignore[attr-defined]
    with pytest.raises(BadRecipe, match="its encoder is a wav2vec2-bert: known here are wav2vec2, hubert, wavlm"):
        family_of("m", Config())
    with pytest.raises(BadRecipe, match=r"train\.model\.name.*nowhere can't be loaded"):
        make_task(tmp_path, "moonshine", model={"name": str(tmp_path / "nowhere")})


def test_a_model_that_is_asked_for_a_language_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"train\.model\.language: is missing"):
        make_task(tmp_path, "seamless_m4t", model={"language": None})
    with pytest.raises(BadRecipe, match=r"train\.model\.language: 'xx' is not one"):
        make_task(tmp_path, "seamless_m4t", model={"language": "xx"})
    with pytest.raises(BadRecipe, match="is not asked for a language: leave it out"):
        make_task(tmp_path, "moonshine", model={"language": "en"})
    with pytest.raises(BadRecipe, match=r"train\.model\.language: is missing"):
        make_task(tmp_path, "cohere_asr", model={"language": None})
    asked = make_task(tmp_path, "moonshine", model={"prompt": "<s>ab"})
    assert asked.tokenizer.decode(asked.prompt) == "<s>ab"


def test_a_vocabulary_without_a_transcript_s_letters_is_told(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model-moonshine", "moonshine")
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["model"]["vocab"] = {k: v for k, v in backend["model"]["vocab"].items() if k != "w"}
    backend["model"]["unk_token"] = "<unk>"
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    task = make_task(tmp_path, "moonshine")
    manifest = corpus(tmp_path, task, 1)
    answers = task.load([replace(manifest[0], text=t) for t in ("mid", "low")], [Draw(0)] * 2)
    assert not isinstance(answers[0], Bad)
    assert "the vocabulary lacks 'w'" in answers[1].reason


@pytest.mark.parametrize("how", ["dora", "qlora"])
def test_adapters_of_every_kind_come_back_and_are_merged(tmp_path: Path, how: str) -> None:
    task = make_task(tmp_path, "moonshine", adapters={"r": 2, "kind": how})
    parts = task.build()
    parts.module.eval()
    with torch.no_grad():
        for n, p in parts.module.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.1)
    batch = batch_of(task, parts, [corpus(tmp_path, task, 3)[0]], train=True)
    loss = task.losses(parts.module, batch)["ce"]
    task.save(parts.module, tmp_path / "saved")
    again = task.build(tmp_path / "saved")
    again.module.eval()
    assert torch.equal(task.losses(again.module, batch)["ce"], loss)
    task.export(parts.module, tmp_path / "export")
    whole = make_task(tmp_path, "moonshine", model={"name": str(tmp_path / "export")})
    assert torch.allclose(whole.losses(built(whole).module, batch)["ce"], loss, rtol=1e-4)
