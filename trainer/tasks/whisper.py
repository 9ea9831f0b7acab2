"""Whisper (Radford et al., 2022): encoder-decoder speech recognition, from the Hub, from a directory, or from nothing.

Short audio is not padded to the window: the encoder runs on as many positions as the utterance's padded length has.
At the full window this is the stock forward, bit for bit; exports load in plain transformers.

B batch · T samples (16 kHz) · M mel bins · F frames (10 ms) · P encoder positions (20 ms) · L label tokens · K labelled
positions of the whole batch · D model width · V vocabulary
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from trainer.data.audio import RATE, fit, padded_samples, samples_of
from trainer.data.drawn import Spans, augmented, own, spans
from trainer.data.features import LogMel, mask_spans, stack_spans
from trainer.data.noise import noise_of, open_noises
from trainer.data.places import open_cache
from trainer.errors import AudioError, BadRecipe
from trainer.frozen import FrozenStates
from trainer.losses.distill import divergence
from trainer.losses.labelled import cross_entropy, sum_by_row
from trainer.machine import autocast, resolved_precision
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.eval import Decode
from trainer.recipe.whisper import WhisperRecipe, WhisperScratch
from trainer.task import Bad, Draw, Example, Fitted, Parts, Report, Row, Size
from trainer.tasks import hub
from trainer.tasks.depths import depths_of
from trainer.tasks.hub import plain
from trainer.tasks.teacher import Teacher
from trainer.tasks.utterances import Utterance, labelled, moved, noise, stack_waves

SAMPLES_A_POSITION = 320  # 20 ms: two frames, one encoder position
SPECIALS = (
    "<|startoftranscript|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
LORA_TARGETS = {
    "all-linear": r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    "attention": r".*\.(q_proj|v_proj)",
    "decoder": r".*\.decoder\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
}


@dataclass(frozen=True)
class Shape:
    """What becomes of one utterance in one draw, in samples; a function of the manifest row and the draw alone."""

    n_samples: int
    padded: int
    speed: float = 1.0
    joined: tuple[tuple[int, Example], ...] = ()  # (samples of quiet before it, utterance)


@dataclass(frozen=True)
class WhisperBatch:
    """Utterances of one padded length. `mel_BMF` appears in `prepare`."""

    ids: Sequence[str]
    counts: Mapping[str, int]
    wave_BT: Tensor  # float32
    input_BL: Tensor  # int64: prompt and text, padded with the closing token, which no loss looks at
    label_index_K: Tensor  # int64: which of the B·L positions are labelled
    label_K: Tensor  # int64
    label_row_K: Tensor  # int64: whose label it is
    freq_spans: Tensor  # (B, n, 2) int64
    time_spans: Tensor
    kept_BN: Tensor  # bool: LayerDrop, which of all N layers an utterance passes; (B, 0) where it is not used
    mel_BMF: Tensor = field(default_factory=lambda: torch.empty(0))
    states_BPD: Tensor = field(default_factory=lambda: torch.empty(0))  # where a frozen encoder has spoken already
    sources: Sequence[Example] = ()  # where it is to be kept what the encoder will say
    teacher_KV: Tensor | None = None  # what a teacher says at the labelled positions: log-probabilities

    def to(self, device: torch.device) -> "WhisperBatch":
        return moved(self, device)


class WhisperTask:
    """Task `whisper`: see trainer.task.Task for what each method promises."""

    def __init__(self, recipe: WhisperRecipe) -> None:
        self.recipe = recipe
        self.processor = _processor(recipe)
        self.tokenizer = self.processor.tokenizer
        self.extractor = self.processor.feature_extractor
        self.window = int(self.extractor.n_samples)  # samples
        self.prompt: list[int] = list(self.tokenizer.prefix_tokens)
        self.end: int = int(self.tokenizer.eos_token_id)
        self.max_tokens = 448 if recipe.model.from_scratch is None else recipe.model.from_scratch.max_tokens
        self._audio = open_cache(recipe.data)
        self._mel = LogMel(self.extractor)
        self._noises = open_noises(recipe)
        self._frozen = FrozenStates(recipe)
        self._width = 0  # of the encoder
        self._layers, self._layerdrop = (0, 0), (0.0, 0.0)  # of encoder and decoder, known once the model is built
        self._teacher = Teacher(recipe, WhisperTask) if recipe.loss.distill else None

    @property
    def losses_of(self) -> Sequence[str]:
        return ("ce", "kl") if self._teacher else ("ce",)

    # ---- networks

    def build(self, saved: Path | None = None) -> Parts:
        lora = self.recipe.adapters
        if saved is None or lora is not None:
            model = _base_model(self.recipe, self.processor)
        else:
            model = _loaded(str(saved), None, hub.saved_dtype(self.recipe.loop), self.recipe.model.attention)
        self.max_tokens = int(model.config.max_target_positions)
        self._width = int(model.config.d_model)
        self._layers = (len(model.model.encoder.layers), len(model.model.decoder.layers))
        self._layerdrop = (float(model.config.encoder_layerdrop), float(model.config.decoder_layerdrop))
        # sinusoids, fixed in the paper; loading from a file would quietly make them trainable (transformers 5.23)
        model.model.encoder.embed_positions.requires_grad_(False)
        if self.recipe.loop.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._frozen.watch(model.model.encoder, model.config)
        module = hub.adapted(model, lora, saved, LORA_TARGETS)
        if self._teacher is None:
            return Parts(module)
        network = self._teacher.join(saved)
        self._check_teacher(model, self._teacher, plain(network))
        return Parts(module, {"teacher": network})

    def _check_teacher(self, model: Any, teacher: "Teacher[WhisperTask]", network: Any) -> None:
        """Both write with the same tokens, and the teacher hears and writes as far as the student does."""
        name, theirs = self.recipe.model.name or "the student", teacher.task
        teacher.share_words(
            (name, self.tokenizer.get_vocab(), model.config.vocab_size),
            (theirs.tokenizer.get_vocab(), network.config.vocab_size),
        )
        asked = [*self.prompt, self.end]
        teacher.same(
            "prompt and closing token",
            name,
            teacher.token_of(torch.tensor(asked)).tolist(),
            [*theirs.prompt, theirs.end],
        )
        teacher.longer("seconds", name, self.window / RATE, theirs.window / RATE)
        teacher.longer("tokens", name, self.max_tokens, theirs.max_tokens)

    def groups(self, module: nn.Module) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {group: [] for group in self.recipe.GROUPS}
        for name, p in module.named_parameters():
            if p.requires_grad:
                found["encoder" if re.search(r"(^|\.)encoder\.", name) else "decoder"].append(name)
        return found

    def depths(self, module: nn.Module) -> Mapping[str, int]:
        names = (name for name, _ in module.named_parameters())
        return depths_of(names, r"encoder\.conv\d|embed_positions")  # the decoder's embedding is its head as well

    def save(self, module: nn.Module, directory: Path) -> None:
        hub.save(module, directory, self.processor)
        if self._teacher:
            self._teacher.leave_word(directory)

    def export(self, module: nn.Module, directory: Path) -> None:
        hub.export(module, directory, self.processor)

    # ---- an utterance

    def shape(self, example: Example, draw: Draw | None) -> Shape:
        """Lengths and draws of an utterance: augmentation that would not fit into the window is left out."""
        how = own(draw, self.recipe)
        n = samples_of(example.duration_s)
        if draw is None:
            return Shape(n, self._padded(n, self.recipe.eval.decode.window == "full"))
        rng = np.random.default_rng(draw.seed)
        late = draw.done >= 1.0 - self.recipe.model.full_window_last - 1e-9
        full = rng.random() < self.recipe.model.full_window_share and late
        speed = float(rng.choice(how.speed)) if how.speed else 1.0
        joined = []
        letters = len(example.text.encode())
        for partner in draw.partners:
            gap = samples_of(rng.uniform(*how.join_gap_s))
            longer = n + gap + samples_of(partner.duration_s)
            letters += 1 + len(partner.text.encode())  # a byte is a token at least
            if longer / speed > self.window or letters + len(self.prompt) > self.max_tokens:
                break
            joined.append((gap, partner))
            n = longer
        if n / speed > self.window:
            speed = 1.0
        length = round(n / speed)
        return Shape(length, self._padded(length, full), speed, tuple(joined))

    def size(self, example: Example, draw: Draw | None) -> Size:
        shape = self.shape(example, draw)
        letters = sum(len(e.text) + 1 for e in (example, *(p for _, p in shape.joined)))
        return Size(shape.padded / RATE, shape.n_samples / RATE, letters)

    def load(self, examples: Sequence[Example], draws: Sequence[Draw | None]) -> Sequence[Utterance | Bad]:
        states: Sequence[Tensor | None] | None = None
        if self._frozen.is_on and all(draws):
            states = self._frozen.find(examples, self.shape(examples[0], draws[0]).padded, self._width)
        states = states or [None] * len(examples)
        return [self._load(e, d, s) for e, d, s in zip(examples, draws, states, strict=True)]

    def _load(self, example: Example, draw: Draw | None, states_PD: Tensor | None) -> Utterance | Bad:
        shape = self.shape(example, draw)
        if shape.n_samples > self.window:
            return Bad(
                example.id, f"{example.duration_s:.2f} s is longer than the model's {self.window // RATE} s window"
            )
        parts = [example, *(p for _, p in shape.joined)]
        text = " ".join(" ".join(e.text.split()) for e in parts)
        try:
            waves = [] if states_PD is not None else [self._audio.read(e.audio, e.start_s, e.duration_s) for e in parts]
        except AudioError as e:
            return Bad(example.id, e.message)
        wave_T = waves[0] if waves else np.zeros(0, dtype=np.float32)
        tokens = [*self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, self.end]
        if len(self.prompt) + len(tokens) - 1 > self.max_tokens and draw is not None:
            return Bad(example.id, f"a transcript of {len(tokens)} tokens does not fit the decoder's {self.max_tokens}")
        freq: Spans = []
        time: Spans = []
        if draw is not None and waves:
            rng = np.random.default_rng([draw.seed, 1])
            for (gap, _), wave in zip(shape.joined, waves[1:], strict=True):
                wave_T = np.concatenate([wave_T, np.zeros(gap, dtype=np.float32), wave])
            how = own(draw, self.recipe)
            wave_T = augmented(wave_T, shape.speed, how, rng, noise_of(how, self._noises))
            frames = shape.n_samples // (SAMPLES_A_POSITION // 2)
            freq, time = spans(how.spec, int(self.extractor.feature_size), frames, rng)
        kept = self._kept(draw)
        wave_T = fit(wave_T, shape.n_samples) if waves else wave_T
        source = example if draw is not None and self._frozen.is_on else None
        return Utterance(example.id, wave_T, shape.padded, tokens, freq, time, kept, source, states_PD)

    def collate(self, items: Sequence[Utterance]) -> WhisperBatch:
        texts = labelled(self.prompt, [i.tokens for i in items], self.end)
        known = [i.states_PD for i in items if i.states_PD is not None]
        return WhisperBatch(
            ids=[i.id for i in items],
            counts=dict.fromkeys(self.losses_of, len(texts.label_K)),
            wave_BT=stack_waves(items),
            input_BL=texts.input_BL,
            label_index_K=texts.index_K,
            label_K=texts.label_K,
            label_row_K=texts.row_K,
            freq_spans=stack_spans([i.freq_spans for i in items]),
            time_spans=stack_spans([i.time_spans for i in items]),
            kept_BN=torch.tensor([i.kept for i in items], dtype=torch.bool).reshape(len(items), -1),
            states_BPD=torch.stack(known) if len(known) == len(items) else torch.empty(0),
            sources=tuple(i.source for i in items if i.source is not None),
        )

    def dummy(self, n: int, seconds: float, tokens: int) -> WhisperBatch:
        padded = self._padded(samples_of(seconds), False)
        ids = [self.end] * max(1, min(tokens, self.max_tokens - len(self.prompt)))
        return self.collate(noise(n, padded, ids))

    # ---- a batch, on the device

    def prepare(self, batch: WhisperBatch, parts: Parts, train: bool) -> WhisperBatch:
        if batch.states_BPD.numel():
            return batch
        if train and self._teacher is not None:
            batch = replace(batch, teacher_KV=self._taught(self._teacher, parts.frozen["teacher"], batch))
        parameter = next(parts.module.parameters())
        mel_BMF = self._mel.to(batch.wave_BT.device)(batch.wave_BT)
        if train and batch.freq_spans.shape[1] + batch.time_spans.shape[1]:
            mel_BMF = mask_spans(mel_BMF, batch.freq_spans, batch.time_spans)
        mel_BMF = mel_BMF.to(parameter.dtype)
        if train and batch.sources:
            encoder, padded = plain(parts.module).model.encoder, batch.wave_BT.shape[1]
            with autocast(resolved_precision(self.recipe.loop), mel_BMF.device):
                states = self._frozen.encode(batch.sources, padded, lambda b: encode(encoder, mel_BMF[b : b + 1]))
            return replace(batch, states_BPD=states)
        return replace(batch, mel_BMF=mel_BMF)

    def _taught(self, teacher: "Teacher[WhisperTask]", network: nn.Module, batch: WhisperBatch) -> Tensor:
        """What the teacher says where the student is asked: of the same sound at the same length, without its masks."""
        hears = teacher.task.prepare(batch, Parts(network), False)
        hears = replace(hears, input_BL=teacher.token_of(batch.input_BL))
        return teacher.says(lambda: teacher.task.logits(network, hears), batch.wave_BT.device)

    def losses(self, module: nn.Module, batch: WhisperBatch) -> dict[str, Tensor]:
        logits_KV = self.logits(module, batch)
        n, row_K = len(batch.ids), batch.label_row_K
        smoothing = self.recipe.loss.label_smoothing if module.training else 0.0
        found = {"ce": cross_entropy(logits_KV, batch.label_K, row_K, n, smoothing)}
        if self._teacher:
            assert batch.teacher_KV is not None, "prepare asks the teacher"
            kl_K = divergence(logits_KV, batch.teacher_KV, self._teacher.how.temperature)
            found["kl"] = sum_by_row(kl_K, row_K, n)
        return found

    def logits(self, module: nn.Module, batch: WhisperBatch) -> Tensor:
        """(K, V): at the labelled positions alone."""
        model = plain(module)
        kept_BN = batch.kept_BN if module.training else None
        n = self._layers[0]
        if batch.states_BPD.numel():
            states_BPD = batch.states_BPD
        else:
            states_BPD = encode(model.model.encoder, batch.mel_BMF, kept_BN)
        hidden_BLD = read(model.model.decoder, batch.input_BL, states_BPD, None if kept_BN is None else kept_BN[:, n:])
        labelled_KD = hidden_BLD.flatten(0, 1).index_select(0, batch.label_index_K)
        logits_KV: Tensor = model.proj_out(labelled_KD)
        return logits_KV

    def weights(self, done: float) -> Mapping[str, float]:
        distill = self.recipe.loss.distill
        return distill.weights("ce", done) if distill else {"ce": 1.0}

    def predict(self, module: nn.Module, batch: WhisperBatch, decode: Decode) -> list[Row]:
        """Greedy or beam search by transformers' own generation; rows hold `id` and `text`."""
        model = plain(module)
        states_BPD = encode(model.model.encoder, batch.mel_BMF)
        prompt_BL = torch.tensor([self.prompt], device=states_BPD.device).expand(len(batch.ids), -1)
        # Whisper's own generate() adds long-form seeking and language detection; here both are decided already.
        tokens_BL = GenerationMixin.generate(
            model,
            decoder_input_ids=prompt_BL,
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BPD),
            max_new_tokens=min(decode.max_new_tokens, model.config.max_target_positions - len(self.prompt)),
            num_beams=decode.beams,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(tokens_BL[:, len(self.prompt) :], skip_special_tokens=True)
        return [{"id": i, "text": t.strip()} for i, t in zip(batch.ids, texts, strict=True)]

    def final_decodes(self, decode: Decode) -> Mapping[str, Decode]:
        """As the recipe says, and the other way of padding: others will serve this model with the full window."""
        other = "full" if decode.window == "own" else "own"
        names = {"own": "padded to its own length", "full": "padded to the full window"}
        return {names[decode.window]: decode, names[other]: decode.model_copy(update={"window": other})}

    def score(self, rows: Iterable[Row], fitted: Fitted | None = None) -> Report:
        return score_transcripts(rows, self.recipe.eval)

    # ---- helpers

    def _kept(self, draw: Draw | None) -> list[bool]:
        """LayerDrop (Fan et al., 2020) of a training draw: which layers are passed, encoder first."""
        if draw is None or not any(self._layerdrop):
            return []
        chance = np.repeat(self._layerdrop, self._layers)
        return [bool(x) for x in np.random.default_rng([draw.seed, 4]).random(len(chance)) >= chance]

    def _padded(self, n_samples: int, full: bool) -> int:
        if full:
            return self.window
        return min(self.window, padded_samples(n_samples, self.recipe.data.edge_s, SAMPLES_A_POSITION))


def encode(encoder: Any, mel_BMF: Tensor, kept_BN: Tensor | None = None) -> Tensor:
    """(B, M, F) → (B, P, D) for any even number of frames; at the window's own length equal to the stock forward.

    LayerDrop is an utterance's: what it does not keep of a layer is computed and not taken, so that no neighbour, no
    cut and no number of ranks changes what it yields, and every rank has a gradient for every layer.
    """
    x_BDP = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel_BMF))))
    x_BPD = x_BDP.permute(0, 2, 1)
    x_BPD = x_BPD + encoder.embed_positions.weight[: x_BPD.shape[1]]
    x_BPD = F.dropout(x_BPD, encoder.dropout, encoder.training)
    for n, layer in enumerate(encoder.layers):
        x_BPD = _passed(layer(x_BPD, None), x_BPD, kept_BN, n)
    states_BPD: Tensor = encoder.layer_norm(x_BPD)
    return states_BPD


def read(decoder: Any, input_BL: Tensor, states_BPD: Tensor, kept_BN: Tensor | None = None) -> Tensor:
    """(B, L) tokens, all of whose positions are there → (B, L, D), equal to the stock forward in training.

    Which asks the device at every call whether several texts are packed in a row (transformers 5.23), and waits.
    """
    L = input_BL.shape[1]
    x_BLD = decoder.embed_tokens(input_BL) + decoder.embed_positions.weight[:L]
    x_BLD = F.dropout(x_BLD, decoder.dropout, decoder.training)
    mask_LL = None  # sdpa and its kin know by themselves that this is causal
    if decoder.config._attn_implementation == "eager":
        mask_LL = torch.full((L, L), torch.finfo(x_BLD.dtype).min, dtype=x_BLD.dtype, device=x_BLD.device).triu(1)
        mask_LL = mask_LL[None, None]
    for n, layer in enumerate(decoder.layers):
        passed_BLD = layer(x_BLD, mask_LL, encoder_hidden_states=states_BPD, use_cache=False)
        x_BLD = _passed(passed_BLD, x_BLD, kept_BN, n)
    hidden_BLD: Tensor = decoder.layer_norm(x_BLD)
    return hidden_BLD


def _passed(after: Tensor, before: Tensor, kept_BN: Tensor | None, n: int) -> Tensor:
    if kept_BN is None or not kept_BN.shape[1]:
        return after
    return torch.where(kept_BN[:, n, None, None], after, before)


def _processor(recipe: WhisperRecipe) -> Any:
    how = recipe.model
    if how.from_scratch is not None:
        extractor = WhisperFeatureExtractor(feature_size=how.from_scratch.mels, chunk_length=how.from_scratch.window_s)
        return WhisperProcessor(extractor, _byte_tokenizer())
    assert how.name is not None
    try:
        processor = WhisperProcessor.from_pretrained(how.name, revision=how.revision or "main")
        tokenizer = processor.tokenizer
        if how.language is None and "<|he|>" in tokenizer.get_vocab():
            raise BadRecipe.one("train.model.language", "is missing: this model is multilingual, say en, he, …")
        tokenizer.set_prefix_tokens(
            language=how.language, task=how.task if how.language else None, predict_timestamps=False
        )
    except (OSError, ValueError) as e:
        raise BadRecipe.one("train.model", f"{how.name} can't be loaded: {str(e).splitlines()[0]}") from None
    return processor


def _byte_tokenizer() -> WhisperTokenizer:
    """All 256 bytes and Whisper's special tokens: any text in any script, nothing to download."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={c: i for i, c in enumerate([*letters, "<|endoftext|>"])}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIALS)})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.set_prefix_tokens(predict_timestamps=False)
    return tokenizer


def _base_model(recipe: WhisperRecipe, processor: Any) -> Any:
    how = recipe.model
    if how.from_scratch is not None:
        model = _scratch_model(how.from_scratch, processor, how.attention)
    else:
        assert how.name is not None
        model = _loaded(how.name, how.revision, hub.base_dtype(recipe.adapters), how.attention)
        if how.language is not None:
            model.generation_config.language = how.language
            model.generation_config.task = how.task
    return model


def _scratch_model(how: WhisperScratch, processor: Any, attention: str) -> Any:
    tokenizer = processor.tokenizer
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=how.mels,
        d_model=how.d_model,
        encoder_layers=how.encoder_layers,
        decoder_layers=how.decoder_layers,
        encoder_attention_heads=how.heads,
        decoder_attention_heads=how.heads,
        encoder_ffn_dim=how.ffn,
        decoder_ffn_dim=how.ffn,
        max_source_positions=how.window_s * 50,
        max_target_positions=how.max_tokens,
        dropout=how.dropout,
        **special,
    )
    config._attn_implementation = attention
    model: Any = WhisperForConditionalGeneration(config)
    generation = GenerationConfig(suppress_tokens=[], begin_suppress_tokens=[], max_length=how.max_tokens, **special)
    generation.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    generation.is_multilingual = False
    generation.return_timestamps = False
    model.generation_config = generation
    return model


def _loaded(name: str, revision: str | None, dtype: torch.dtype, attention: str) -> Any:
    return hub.with_weights(WhisperForConditionalGeneration, name, revision, dtype=dtype, attn_implementation=attention)
