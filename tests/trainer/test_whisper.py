"""Task whisper: equal to the stock model where it must be, and what an utterance yields is its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.speech import make_corpus, recipe_dict, tone
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from trainer.data.audio import RATE
from trainer.data.features import LogMel, mask_spans, stack_spans
from trainer.data.loader import StepLoader
from trainer.data.manifest import Manifest, open_manifests
from trainer.errors import BadRecipe
from trainer.recipe.load import parse_recipe
from trainer.task import Bad, Draw, Example, Parts
from trainer.tasks.whisper import WhisperTask, encode, read


def make_task(folder: Path, **sections: dict) -> WhisperTask:
    torch.manual_seed(0)
    return WhisperTask(parse_recipe(recipe_dict(folder, **sections)))


def corpus(folder: Path, task: WhisperTask, n: int = 12) -> Manifest:
    path = make_corpus(folder, n)
    return open_manifests([path], task.recipe.data, folder, folder / "cache")


def built(task: WhisperTask) -> Parts:
    torch.manual_seed(0)
    parts = task.build()
    parts.module.eval()
    return parts


def batch_of(task: WhisperTask, parts: Parts, examples: list[Example], draws: list[Draw | None] | None = None):
    items = task.load(examples, draws or [None] * len(examples))
    assert not any(isinstance(i, Bad) for i in items), items
    return task.prepare(task.collate(items), parts, draws is not None)


@pytest.fixture
def saved_whisper(tmp_path: Path) -> Path:
    """A tiny Whisper in the Hub's layout, as if it had been downloaded."""
    task = make_task(tmp_path)
    task.export(built(task).module, tmp_path / "hub")
    return tmp_path / "hub"


def from_hub(folder: Path, saved: Path, **sections: dict) -> WhisperTask:
    model = {"from_scratch": None, "name": str(saved), "full_window_share": 0.0}
    return make_task(folder, **{**sections, "model": {**model, **sections.get("model", {})}})


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.99, 2.0])
def test_features_equal_the_stock_extractor_s(tmp_path: Path, seconds: float) -> None:
    task = make_task(tmp_path)
    wave = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    theirs = task.extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
    padded = torch.zeros(1, task.window)
    padded[0, : len(wave)] = torch.from_numpy(wave)
    assert torch.equal(LogMel(task.extractor)(padded), theirs)


def test_a_loud_neighbour_does_not_change_a_quiet_clip_s_features(tmp_path: Path) -> None:
    mel = LogMel(make_task(tmp_path).extractor)
    quiet, loud = torch.randn(1, RATE) * 1e-3, torch.randn(1, RATE)
    assert torch.equal(mel(torch.cat([quiet, loud]))[:1], mel(quiet))


def test_at_the_full_window_the_encoder_is_the_stock_one_bit_for_bit(tmp_path: Path) -> None:
    module = built(make_task(tmp_path)).module
    mel = torch.randn(3, 16, 200)
    with torch.no_grad():
        assert torch.equal(encode(module.model.encoder, mel), module.model.encoder(mel).last_hidden_state)


def test_at_thirty_seconds_the_encoder_is_the_stock_one_bit_for_bit_in_training_too(tmp_path: Path) -> None:
    task = make_task(tmp_path, model={"from_scratch": {**SCRATCH, "window_s": 30, "dropout": 0.1}})
    encoder = built(task).module.model.encoder.train()
    mel = torch.randn(1, 16, 3000)
    torch.manual_seed(5)
    ours = encode(encoder, mel)
    torch.manual_seed(5)
    assert torch.equal(ours, encoder(mel).last_hidden_state)


SCRATCH = recipe_dict(Path())["model"]["from_scratch"]


def test_layer_drop_is_an_utterance_s_own_and_what_is_dropped_is_not_heard(tmp_path: Path, saved_whisper: Path) -> None:
    config = json.loads((saved_whisper / "config.json").read_text())
    (saved_whisper / "config.json").write_text(
        json.dumps({**config, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5})
    )
    task = from_hub(tmp_path, saved_whisper)
    parts = built(task)
    parts.module.double().train()
    manifest = corpus(tmp_path, task, 20)
    same = [manifest[i] for i in range(20) if task.size(manifest[i], Draw(i)).padded_s == 0.5]
    draws = [Draw(i) for i in range(len(same))]
    batch = batch_of(task, parts, same, draws)
    assert batch.kept_BN.shape == (len(same), 2)
    assert all(0 < int(n) < len(same) for n in batch.kept_BN.sum(0))
    together = task.losses(parts.module, batch)["ce"]
    alone = [
        task.losses(parts.module, batch_of(task, parts, [e], [d]))["ce"][0] for e, d in zip(same, draws, strict=True)
    ]
    assert torch.allclose(together, torch.stack(alone), rtol=0, atol=1e-10)
    encoder = parts.module.model.encoder
    kept, dropped = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    mel = batch.mel_BMF[:1]
    assert torch.equal(encode(encoder, mel, kept), encode(encoder, mel))
    layers, encoder.layers = encoder.layers, encoder.layers[:0]
    nothing = encode(encoder, mel)
    encoder.layers = layers
    assert torch.equal(encode(encoder, mel, dropped), nothing)


def padded_in(task: WhisperTask, loader: StepLoader, step: int) -> list[bool]:
    """Of the step's utterances, whether each is padded to the whole window."""
    _, micros = loader.micros_of(step)
    sizes = [task.size(e, d) for examples, draws in micros for e, d in zip(examples, draws, strict=True)]
    return [round(s.padded_s * RATE) == task.window for s in sizes]


def test_whole_windows_come_in_the_last_tenth_of_the_steps_and_in_their_share(tmp_path: Path) -> None:
    how = {"full_window_share": 0.5, "full_window_last": 0.1}
    task = make_task(tmp_path, model=how, loop={**recipe_dict(Path())["loop"], "steps": 100, "step_utts": 10})
    manifest = corpus(tmp_path, task, 40)
    short = manifest.subset(np.flatnonzero(manifest.column("duration_s") < 1.4))
    loader = StepLoader(task, short, task.recipe)
    assert not any(any(padded_in(task, loader, s)) for s in range(90))
    late = [full for s in range(90, 100) for full in padded_in(task, loader, s)]
    assert 0.3 < np.mean(late) < 0.7
    again = StepLoader(task, short, task.recipe)
    assert padded_in(task, again, 97) == padded_in(task, loader, 97), "a function of the step's place alone"


def test_the_shipped_default_is_a_tenth_of_windows_in_the_last_tenth(tmp_path: Path) -> None:
    train = recipe_dict(tmp_path)
    train["model"] = {"from_scratch": train["model"]["from_scratch"]}
    model = parse_recipe(train).model
    assert (model.full_window_share, model.full_window_last) == (0.1, 0.1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_is_the_stock_one_bit_for_bit(tmp_path: Path, attention: str, dtype: torch.dtype) -> None:
    task = make_task(tmp_path, model={"attention": attention, "from_scratch": {**SCRATCH, "dropout": 0.1}})
    decoder = built(task).module.model.decoder.train()
    tokens, states = torch.randint(0, 256, (3, 9)), torch.randn(3, 20, 16)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
        torch.manual_seed(5)
        ours = read(decoder, tokens, states)
        torch.manual_seed(5)
        stock = decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False).last_hidden_state
    assert torch.equal(ours, stock)


def test_the_loss_is_the_stock_loss_a_sum_an_utterance_over_text_and_end(tmp_path: Path) -> None:
    task = make_task(tmp_path, model={"full_window_share": 1.0})
    parts = built(task)
    manifest = corpus(tmp_path, task, 4)
    batch = batch_of(task, parts, [manifest[i] for i in range(4)], [Draw(i) for i in range(4)])
    ours = task.losses(parts.module, batch)["ce"]
    labels = torch.full_like(batch.input_BL, -100).flatten()
    labels[batch.label_index_K] = batch.label_K
    with torch.no_grad():
        stock = parts.module(
            input_features=batch.mel_BMF, decoder_input_ids=batch.input_BL, labels=labels.view_as(batch.input_BL)
        ).loss
    assert ours.shape == (4,)
    assert ours.sum().item() / batch.counts["ce"] == pytest.approx(stock.item(), rel=1e-5)


def test_the_whole_text_and_the_end_are_labelled_and_nothing_else(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    batch = batch_of(task, built(task), [corpus(tmp_path, task)[0]])
    text = task.tokenizer.decode(batch.label_K[:-1])
    assert text == corpus(tmp_path, task)[0].text
    assert batch.label_K[-1] == task.end
    fed = batch.input_BL.flatten()[batch.label_index_K]
    assert fed[0] == task.prompt[-1]
    assert torch.equal(fed[1:], batch.label_K[:-1])
    assert batch.counts["ce"] == len(batch.label_K)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_utterance_decodes_alike_alone_and_in_a_batch(tmp_path: Path, beams: int) -> None:
    task = make_task(tmp_path, eval={"decode": {"beams": beams, "max_new_tokens": 12}})
    parts = built(task)
    with torch.no_grad():  # an untrained model says the same to everyone: make it listen
        for p in parts.module.parameters():
            p.mul_(3.0)
    manifest = corpus(tmp_path, task, 30)
    by_length: dict[float, list[Example]] = {}
    for i in range(len(manifest)):
        by_length.setdefault(task.size(manifest[i], None).padded_s, []).append(manifest[i])
    texts = set()
    for examples in by_length.values():
        with torch.no_grad():
            together = task.predict(parts.module, batch_of(task, parts, examples), task.recipe.eval.decode)
            for example, row in zip(examples, together, strict=True):
                alone = task.predict(parts.module, batch_of(task, parts, [example]), task.recipe.eval.decode)
                assert alone == [row]
                texts.add(row["text"])
    assert len(by_length) >= 2
    assert len(texts) > 1, "a model that says one thing to all would pass any such test"


def test_an_utterance_s_loss_is_its_own_whoever_sits_beside_it(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    parts = built(task)
    parts.module.double()
    manifest = corpus(tmp_path, task, 20)
    same = [e for e in (manifest[i] for i in range(20)) if task.size(e, None).padded_s == 0.5]
    together = task.losses(parts.module, batch_of(task, parts, same))["ce"]
    alone = [task.losses(parts.module, batch_of(task, parts, [e]))["ce"][0] for e in same]
    assert len(same) > 2
    assert torch.allclose(together, torch.stack(alone), rtol=0, atol=1e-10)


def test_an_export_loads_in_plain_transformers_and_says_the_same(tmp_path: Path) -> None:
    task = make_task(tmp_path, eval={"decode": {"window": "full", "max_new_tokens": 10}})
    parts = built(task)
    with torch.no_grad():
        for p in parts.module.parameters():
            p.mul_(3.0)
    manifest = corpus(tmp_path, task, 6)
    examples = [manifest[i] for i in range(6)]
    with torch.no_grad():
        ours = [r["text"] for r in task.predict(parts.module, batch_of(task, parts, examples), task.recipe.eval.decode)]
    task.export(parts.module, tmp_path / "export")
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "export").eval()
    processor = WhisperProcessor.from_pretrained(tmp_path / "export")
    waves = [soundfile.read(e.audio, dtype="float32")[0] for e in examples]
    features = processor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    said = processor.batch_decode(model.generate(features, max_new_tokens=10), skip_special_tokens=True)
    assert [s.strip() for s in said] == ours


def test_a_saved_module_comes_back_bit_for_bit(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    parts = built(task)
    task.save(parts.module, tmp_path / "saved")
    again = task.build(tmp_path / "saved").module
    ours, theirs = parts.module.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert task.groups(again) == task.groups(parts.module), "what is trained is what was trained"


def test_adapters_are_trained_alone_saved_alone_and_merged_in_the_export(tmp_path: Path, saved_whisper: Path) -> None:
    task = from_hub(tmp_path, saved_whisper, adapters={"r": 2})
    parts = built(task)
    names = [n for group in task.groups(parts.module).values() for n in group]
    assert names
    assert all("lora_" in n for n in names)
    assert {"encoder", "decoder"} == {g for g, members in task.groups(parts.module).items() if members}
    with torch.no_grad():
        for n, p in parts.module.named_parameters():
            if "lora_B" in n:
                p.normal_()
    manifest = corpus(tmp_path, task, 3)
    batch = batch_of(task, parts, [manifest[i] for i in range(1)])
    loss = task.losses(parts.module, batch)["ce"]
    task.save(parts.module, tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    again = task.build(tmp_path / "saved")
    again.module.eval()
    assert torch.equal(task.losses(again.module, batch)["ce"], loss)
    task.export(parts.module, tmp_path / "export")
    merged = from_hub(tmp_path, tmp_path / "export").build()
    merged.module.eval()
    assert torch.allclose(task.losses(merged.module, batch)["ce"], loss, rtol=1e-4)


def test_every_trainable_parameter_is_in_exactly_one_group(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    module = task.build().module
    names = [n for group in task.groups(module).values() for n in group]
    assert sorted(names) == sorted(n for n, p in module.named_parameters() if p.requires_grad)


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    gradients = []
    for on in (False, True):
        task = make_task(tmp_path, loop={"gradient_checkpointing": on})
        parts = built(task)
        parts.module.train()
        batch = task.prepare(task.dummy(2, 1.0, 8), parts, True)
        task.losses(parts.module, batch)["ce"].sum().backward()
        gradients.append([p.grad for p in parts.module.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


AUGMENT = {
    "speed": [0.9, 1.1],
    "gain_db": 6,
    "noise_snr_db": [10, 20],
    "join_p": 0.7,
    "join_max": 3,
    "join_gap_s": [0.05, 0.1],
    "spec": {"p": 1.0, "freq_masks": 2, "freq_width": 4, "time_masks": 2, "time_share": 0.2},
}


def test_augmentation_is_a_function_of_seed_epoch_and_utterance(tmp_path: Path) -> None:
    task = make_task(tmp_path, augment=AUGMENT)
    manifest = corpus(tmp_path, task, 20)
    loader = StepLoader(task, manifest, task.recipe)
    differ = 0
    for i in range(20):
        draws = [loader.draw(manifest[i], epoch) for epoch in (0, 0, 1)]
        one, again, other = task.load([manifest[i]] * 3, draws)
        assert np.array_equal(one.wave_T, again.wave_T)
        assert (one.tokens, one.freq_spans, one.time_spans) == (again.tokens, again.freq_spans, again.time_spans)
        differ += not np.array_equal(one.wave_T, other.wave_T)
        size = task.size(manifest[i], draws[0])
        assert len(one.wave_T) <= one.padded == round(size.padded_s * RATE) <= task.window
        assert len(one.wave_T) == round(size.audio_s * RATE)
    assert differ == 20


def test_joined_utterances_are_of_one_speaker_and_fit_window_and_decoder(tmp_path: Path) -> None:
    task = make_task(tmp_path, augment={**AUGMENT, "join_p": 1.0, "join_max": 16})
    manifest = corpus(tmp_path, task, 20)
    loader = StepLoader(task, manifest, task.recipe)
    joined = 0
    for i in range(20):
        draw = loader.draw(manifest[i], 0)
        assert {p.speaker for p in draw.partners} <= {manifest[i].speaker}
        (item,) = task.load([manifest[i]], [draw])
        assert not isinstance(item, Bad)
        assert len(item.tokens) + len(task.prompt) - 1 <= task.max_tokens
        joined += len(task.tokenizer.decode(item.tokens[:-1]).split()) > len(manifest[i].text.split())
    assert joined > 5


def test_masks_zero_the_spans_of_their_own_clip_only() -> None:
    mel = torch.ones(2, 8, 10)
    masked = mask_spans(mel, stack_spans([[(1, 3)], []]), stack_spans([[(0, 2), (9, 10)], [(4, 4)]]))
    assert torch.equal(masked[1], mel[1])
    assert masked[0, 1:3].sum() == 0
    assert masked[0, :, :2].sum() == 0
    assert masked[0, 5, 2:9].sum() == 7


def test_evaluation_meets_no_chance(tmp_path: Path) -> None:
    task = make_task(tmp_path, augment=AUGMENT)
    manifest = corpus(tmp_path, task, 3)
    (item,) = task.load([manifest[0]], [None])
    wave, _ = soundfile.read(manifest[0].audio, dtype="float32")
    assert np.array_equal(item.wave_T, wave)
    assert (item.freq_spans, item.time_spans) == ([], [])


def test_what_does_not_fit_is_bad_with_its_reason(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    soundfile.write(tmp_path / "a.wav", tone(["low"] * 4), RATE)
    good = Example("a", str(tmp_path / "a.wav"), 0.0, 0.8, "low " * 3)
    answers = task.load(
        [replace(good, text="low " * 30), replace(good, duration_s=2.5), replace(good, audio="gone.wav"), good],
        [Draw(0)] * 4,
    )
    assert [isinstance(a, Bad) for a in answers] == [True, True, True, False]
    assert "does not fit the decoder" in answers[0].reason
    assert "longer than the model's 2 s window" in answers[1].reason


def test_any_script_goes_through_the_byte_vocabulary_and_back(tmp_path: Path) -> None:
    tokenizer = make_task(tmp_path).tokenizer
    for text in ("it's", "שלום עולם", "çà 你好 🙂", "a\tb"):
        assert tokenizer.decode(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_model_that_can_not_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"train\.model.*nowhere can't be loaded"):
        from_hub(tmp_path, tmp_path / "nowhere").build()


@pytest.fixture
def multilingual_whisper(tmp_path: Path) -> Path:
    """A tiny multilingual Whisper with languages, tasks and suppressed tokens, as OpenAI's are published."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperTokenizer,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}
    tokenizer = WhisperTokenizer(vocab={**letters, "<|endoftext|>": len(letters)}, merges=[])
    names = ["<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"]
    names += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": names})
    tokenizer.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(101)])
    tokenizer.pad_token = "<|endoftext|>"
    of = tokenizer.convert_tokens_to_ids
    end, start = of("<|endoftext|>"), of("<|startoftranscript|>")
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(3)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
            max_source_positions=100, max_target_positions=32, **special,
        )
    )  # fmt: skip
    for name, p in model.named_parameters():
        p.data.mul_(30.0 if "encoder_attn" in name else 3.0)  # untrained, it would not listen
    silent = [1, 2, *range(end + 1, len(tokenizer))]  # two letters, and all that is not text
    generation = GenerationConfig(suppress_tokens=silent, begin_suppress_tokens=[end], max_length=32, **special)
    generation.lang_to_id = {f"<|{code}|>": of(f"<|{code}|>") for code in LANGUAGES}
    generation.task_to_id = {task: of(f"<|{task}|>") for task in ("transcribe", "translate")}
    generation.no_timestamps_token_id = of("<|notimestamps|>")
    generation.is_multilingual = True
    model.generation_config = generation
    model.save_pretrained(tmp_path / "multilingual")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    WhisperProcessor(extractor, tokenizer).save_pretrained(tmp_path / "multilingual")
    return tmp_path / "multilingual"


def test_a_multilingual_model_needs_its_language(tmp_path: Path, multilingual_whisper: Path) -> None:
    with pytest.raises(BadRecipe, match=r"train\.model\.language: is missing"):
        from_hub(tmp_path, multilingual_whisper)


@pytest.mark.parametrize(("language", "job"), [("en", "transcribe"), ("he", "transcribe"), ("de", "translate")])
def test_a_multilingual_model_is_prompted_and_served_as_the_stock_one(
    tmp_path: Path, multilingual_whisper: Path, language: str, job: str
) -> None:
    how = {"language": language, "task": job}
    decode = {"window": "full", "max_new_tokens": 12}
    task = from_hub(tmp_path, multilingual_whisper, model=how, eval={"decode": decode})
    assert task.tokenizer.convert_ids_to_tokens(task.prompt) == [
        "<|startoftranscript|>",
        f"<|{language}|>",
        f"<|{job}|>",
        "<|notimestamps|>",
    ]
    parts = built(task)
    manifest = corpus(tmp_path, task, 6)
    examples = [manifest[i] for i in range(6)]
    with torch.no_grad():
        ours = [r["text"] for r in task.predict(parts.module, batch_of(task, parts, examples), task.recipe.eval.decode)]
    assert len(set(ours)) > 1 or language == "de", "an untrained model that says one thing to all shows little"
    task.export(parts.module, tmp_path / "export")
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "export").eval()
    processor = WhisperProcessor.from_pretrained(tmp_path / "export")
    waves = [soundfile.read(e.audio, dtype="float32")[0] for e in examples]
    features = processor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    stock = model.generate(features, max_new_tokens=12)  # language and task come with the export
    assert [s.strip() for s in processor.batch_decode(stock, skip_special_tokens=True)] == ours
