"""CTC (Graves et al., 2006): wav2vec 2.0, HuBERT and WavLM over the wave, Parakeet over log-mel, and one linear layer.

What an utterance yields is what the stock model yields for it alone and unpadded: padding is masked everywhere, also
where the stock model does not (wav2vec 2.0's first norm, over all padded time). Exports load in plain transformers.

B batch · T samples (16 kHz) · M mel bins · F mel frames (10 ms) · P encoder frames · D model width · L labels
V vocabulary
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    HubertConfig,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WavLMConfig,
)

from trainer.data.audio import AudioCache, padded_samples, samples_of
from trainer.data.drawn import Drawn, draw_lengths, draw_spans, read_drawn
from trainer.data.features import ParakeetMel, mask_spans, stack_spans
from trainer.errors import AudioError, BadRecipe
from trainer.metrics.transcripts import score_transcripts
from trainer.norms import OwnGroupNorm, keep_batch_norms_still
from trainer.recipe.ctc import CtcRecipe, CtcScratch
from trainer.recipe.eval import Decode
from trainer.recipe.written import written
from trainer.task import Bad, Draw, Example, Fitted, Parts, Report, Row, Size
from trainer.tasks.letters import Strangers, encoded, parakeet_letters, wave_letters

WAVES = ("wav2vec2", "hubert", "wavlm")
FAMILIES = (*WAVES, "parakeet_ctc")
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
PARAKEET_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
SHORTEST = 400  # samples: two mel frames, one frame of a wave encoder
LORA_TARGETS = {
    "all-linear": r".*\.(q_proj|k_proj|v_proj|out_proj|o_proj|intermediate_dense|output_dense|linear1|linear2)",
    "attention": r".*\.(q_proj|v_proj)",
}
# WavLM hands its attention's weights to torch by themselves: adapters around them are passed by (transformers 5.23)
WAVLM_TARGETS = {"all-linear": r".*\.(intermediate_dense|output_dense)"}


@dataclass(frozen=True)
class CtcItem:
    """One utterance ready to be padded: wave (T,), token ids, spans that will be masked."""

    id: str
    wave_T: np.ndarray
    padded: int
    tokens: list[int]
    freq_spans: list[tuple[int, int]]
    time_spans: list[tuple[int, int]]


@dataclass(frozen=True)
class CtcBatch:
    """Utterances of one padded length. Lengths that the loss asks for stay on the host; `prepare` adds `mel_BFM`."""

    ids: Sequence[str]
    counts: Mapping[str, int]
    n_frames: tuple[int, ...]  # of the encoder, an utterance's own
    n_labels: tuple[int, ...]
    wave_BT: Tensor  # float32
    samples_B: Tensor  # int64: own lengths
    first_B: Tensor  # int64: own frames after the first convolution over the wave
    frames_B: Tensor  # int64: as n_frames
    label_BL: Tensor  # int64, filled up with the blank
    freq_spans: Tensor  # (B, n, 2) int64: over mel bins, or over the width of what the convolutions made of a wave
    time_spans: Tensor  # over mel frames, or over encoder frames of a wave
    mel_BFM: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> "CtcBatch":
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


class CtcTask:
    """Task `ctc`: see trainer.task.Task for what each method promises."""

    losses_of = ("ctc",)

    def __init__(self, recipe: CtcRecipe) -> None:
        self.recipe = recipe
        self.family = _family(recipe)
        self.is_wave = self.family in WAVES
        self.extractor = _extractor(recipe)
        self.tokenizer = _tokenizer(recipe, self.is_wave)
        self.config = _config(recipe, self.family, self.tokenizer)
        self.blank = int(self.config.pad_token_id)
        self._audio = AudioCache(recipe.data.cache_gb)
        self._strangers = Strangers(self.tokenizer)
        self._mel = None if self.is_wave else ParakeetMel(self.extractor)

    # ---- networks

    def build(self, saved: Path | None = None) -> Parts:
        lora = self.recipe.adapters
        if saved is None or lora is not None:
            model = self._base()
        else:
            model = _loaded(str(saved), None, self.config, torch.float32, fresh_head=False)
        if self.is_wave:
            base = getattr(model, model.base_model_prefix)
            first = base.feature_extractor.conv_layers[0]
            if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
                first.layer_norm.__class__ = OwnGroupNorm
            if self._freezes_features():
                model.freeze_feature_encoder()
            if hasattr(base, "masked_spec_embed") and self.recipe.augment.spec is None:
                base.masked_spec_embed.requires_grad_(False)  # nothing uses it: it would wait for a gradient for ever
        if self.recipe.model.batch_statistics == "frozen":
            keep_batch_norms_still(model)
        if self.recipe.loop.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        module: nn.Module = model
        if lora is not None:
            from peft import LoraConfig, PeftModel, get_peft_model

            if saved is not None:
                module = PeftModel.from_pretrained(model, str(saved), is_trainable=True)
            else:
                head = ["lm_head" if self.is_wave else "ctc_head"] if self._fresh_head() else None
                config = LoraConfig(
                    r=lora.r,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=self._targets(lora.targets, model),
                    modules_to_save=head,  # fresh, so it is trained whole
                )
                module = get_peft_model(model, config)
        return Parts(module)

    def groups(self, module: nn.Module) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {"features": [], "encoder": [], "head": []}
        for name, p in module.named_parameters():
            if p.requires_grad:
                found[_group_of(name)].append(name)
        return found

    def save(self, module: nn.Module, directory: Path) -> None:
        # peft takes another vocabulary for a resized embedding, and CTC has none (0.21)
        more = {"save_embedding_layers": False} if self.recipe.adapters is not None else {}
        module.save_pretrained(str(directory), **more)  # type: ignore[operator]
        self._processor().save_pretrained(str(directory))

    def export(self, module: nn.Module, directory: Path) -> None:
        if self.recipe.adapters is not None:
            module = module.float().merge_and_unload()  # type: ignore[operator]  # a bf16 base would round them off
        _plain(module).save_pretrained(str(directory))
        self._processor().save_pretrained(str(directory))

    # ---- an utterance

    def drawn(self, example: Example, draw: Draw | None) -> Drawn:
        data = self.recipe.data
        return draw_lengths(example, draw, self.recipe.augment, data.edge_s, data.max_s, self.fits)

    def fits(self, text: str, n_samples: int) -> bool:
        """Whether the frames of so many samples can hold the text: a frame a token, and one between equal ones."""
        n = self.n_frames(n_samples)
        return 2 * len(text) <= n or _frames_needed(self._tokens(text)) <= n

    def n_frames(self, n_samples: int) -> int:
        """The encoder's frames of so many samples."""
        if self._mel is None:
            for size, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
                n_samples = (n_samples - size) // stride + 1
            return max(0, n_samples)
        e, n = self.config.encoder_config, self._mel.frames(n_samples)
        size, stride = e.subsampling_conv_kernel_size, e.subsampling_conv_stride
        for _ in range(int(math.log2(e.subsampling_factor))):
            n = (n + (size - 1) // 2 * 2 - size) // stride + 1
        return n

    def size(self, example: Example, draw: Draw | None) -> Size:
        drawn = self.drawn(example, draw)
        return Size(drawn.padded_s, drawn.audio_s, len(drawn.text))

    def load(self, examples: Sequence[Example], draws: Sequence[Draw | None]) -> Sequence[CtcItem | Bad]:
        return [self._load(e, d) for e, d in zip(examples, draws, strict=True)]

    def _load(self, example: Example, draw: Draw | None) -> CtcItem | Bad:
        drawn = self.drawn(example, draw)
        n_frames = self.n_frames(drawn.n_samples)
        if n_frames < 1 or drawn.n_samples < SHORTEST:
            return Bad(example.id, f"{drawn.audio_s:.3f} s is too short for this encoder")
        tokens: list[int] = []
        if draw is not None:
            tokens = self._tokens(drawn.text)
            reason = self._unusable(drawn.text, tokens, n_frames)
            if reason:
                return Bad(example.id, reason)
        try:
            wave_T = read_drawn(self._audio, example, drawn, draw, self.recipe.augment)
        except AudioError as e:
            return Bad(example.id, e.message)
        if self.is_wave and self.extractor.do_normalize:
            wave_T = ((wave_T - wave_T.mean()) / np.sqrt(wave_T.var() + 1e-7)).astype(np.float32)
        bins = self.config.hidden_size if self._mel is None else int(self.extractor.feature_size)
        frames = n_frames if self._mel is None else self._mel.frames(drawn.n_samples)
        freq, time = draw_spans(draw, self.recipe.augment.spec, bins, frames)
        return CtcItem(example.id, wave_T, drawn.padded, tokens, freq, time)

    def _unusable(self, text: str, tokens: list[int], n_frames: int) -> str:
        """Why a transcript can't be learnt from so many frames; empty where it can."""
        if not tokens:
            return f"nothing is left of its transcript {text!r} as train.model.text writes it"
        missing = self._strangers.missing(text, self.recipe.model.text)
        if missing:
            return f"the vocabulary lacks {missing!r} of its transcript: see train.model.text and .vocabulary"
        if self.blank in tokens:
            return "its transcript holds the blank's own name"
        needed = _frames_needed(tokens)
        if needed > n_frames:
            return (
                f"its transcript needs {needed} frames (one a token, one between equal ones), its audio has {n_frames}"
            )
        return ""

    def collate(self, items: Sequence[CtcItem]) -> CtcBatch:
        padded = items[0].padded
        assert all(i.padded == padded for i in items), "a micro-batch is homogeneous in padded length"
        wave_BT = torch.zeros(len(items), padded)
        label_BL = torch.full((len(items), max(1, *(len(i.tokens) for i in items), 1)), self.blank, dtype=torch.int64)
        for b, item in enumerate(items):
            wave_BT[b, : len(item.wave_T)] = torch.from_numpy(item.wave_T)
            label_BL[b, : len(item.tokens)] = torch.tensor(item.tokens, dtype=torch.int64)
        samples = [len(i.wave_T) for i in items]
        n_frames = tuple(self.n_frames(n) for n in samples)
        size, stride = (self.config.conv_kernel[0], self.config.conv_stride[0]) if self.is_wave else (1, 1)
        return CtcBatch(
            ids=[i.id for i in items],
            counts={"ctc": sum(len(i.tokens) for i in items)},
            n_frames=n_frames,
            n_labels=tuple(len(i.tokens) for i in items),
            wave_BT=wave_BT,
            samples_B=torch.tensor(samples),
            first_B=torch.tensor([(n - size) // stride + 1 for n in samples]),
            frames_B=torch.tensor(n_frames),
            label_BL=label_BL,
            freq_spans=stack_spans([i.freq_spans for i in items]),
            time_spans=stack_spans([i.time_spans for i in items]),
        )

    def dummy(self, n: int, seconds: float, tokens: int) -> CtcBatch:
        padded = padded_samples(samples_of(seconds), self.recipe.data.edge_s)
        noise = np.random.default_rng(0).normal(0, 0.1, size=padded).astype(np.float32)
        some = [i for i in range(self.config.vocab_size) if i != self.blank][:2]
        ids = [some[i % len(some)] for i in range(max(1, min(tokens, self.n_frames(padded) // 2)))]
        return self.collate([CtcItem(f"dummy-{i}", noise, padded, ids, [], []) for i in range(n)])

    # ---- a batch, on the device

    def prepare(self, batch: CtcBatch, parts: Parts, train: bool) -> CtcBatch:
        dtype = next(parts.module.parameters()).dtype
        if self._mel is None:
            return replace(batch, wave_BT=batch.wave_BT.to(dtype))
        mel_BFM = self._mel.to(batch.wave_BT.device)(batch.wave_BT, batch.samples_B)
        if train and batch.freq_spans.shape[1] + batch.time_spans.shape[1]:
            mel_BFM = mask_spans(mel_BFM.transpose(1, 2), batch.freq_spans, batch.time_spans).transpose(1, 2)
        return replace(batch, mel_BFM=mel_BFM.to(dtype))

    def losses(self, module: nn.Module, batch: CtcBatch) -> dict[str, Tensor]:
        logits_BPV = self.logits(module, batch)
        if logits_BPV.dtype != torch.float64:
            logits_BPV = logits_BPV.float()
        # lengths as numbers of the host: as tensors on a GPU they would be fetched, and waited for
        ctc_B = F.ctc_loss(
            logits_BPV.log_softmax(-1).transpose(0, 1),
            batch.label_BL,
            batch.n_frames,  # type: ignore[arg-type]
            batch.n_labels,  # type: ignore[arg-type]
            blank=self.blank,
            reduction="none",
            zero_infinity=True,  # `load` lets none through: this is the second line
        )
        return {"ctc": ctc_B}

    def logits(self, module: nn.Module, batch: CtcBatch) -> Tensor:
        """(B, P, V); frames beyond an utterance's own mean nothing."""
        model = _plain(module)
        if self._mel is None:
            return self._wave_logits(model, batch, module.training)
        own_BF = torch.arange(batch.mel_BFM.shape[1], device=batch.mel_BFM.device) < (
            batch.samples_B // self._mel.hop
        ).unsqueeze(1)
        states_BPD = model.encoder(input_features=batch.mel_BFM, attention_mask=own_BF).last_hidden_state
        logits_BPV: Tensor = model.ctc_head(states_BPD)
        return logits_BPV

    def _wave_logits(self, model: Any, batch: CtcBatch, training: bool) -> Tensor:
        base = getattr(model, model.base_model_prefix)
        first = base.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), OwnGroupNorm):
            first.layer_norm.frames_B = batch.first_B
        made_BDP = base.feature_extractor(batch.wave_BT)
        projected = base.feature_projection(made_BDP.transpose(1, 2))
        hidden_BPD: Tensor = projected[0] if isinstance(projected, tuple) else projected
        if training and self.recipe.augment.spec is not None:
            hidden_BPD = _masked(hidden_BPD, batch, getattr(base, "masked_spec_embed", None))
        own_BP = torch.arange(hidden_BPD.shape[1], device=hidden_BPD.device) < batch.frames_B[:, None]
        states_BPD = base.encoder(hidden_BPD, attention_mask=own_BP).last_hidden_state
        logits_BPV: Tensor = model.lm_head(model.dropout(states_BPD))
        return logits_BPV

    def predict(self, module: nn.Module, batch: CtcBatch, decode: Decode) -> list[Row]:
        """The best token a frame, equal neighbours joined, blanks dropped; rows hold `id` and `text`."""
        best_BP = self.logits(module, batch).argmax(-1).tolist()
        rows = []
        for i, best_P, n in zip(batch.ids, best_BP, batch.n_frames, strict=True):
            tokens = collapsed(best_P[:n], self.blank)
            text = self.tokenizer.decode(tokens, group_tokens=False, skip_special_tokens=True)
            rows.append({"id": i, "text": text.strip()})
        return rows

    def final_decodes(self, decode: Decode) -> Mapping[str, Decode]:
        return {"greedy": decode}

    def score(self, rows: Iterable[Row], fitted: Fitted | None = None) -> Report:
        return score_transcripts(rows, self.recipe.eval)

    # ---- helpers

    def _tokens(self, text: str) -> list[int]:
        return encoded(self.tokenizer, written(text, self.recipe.model.text))

    def _processor(self) -> Any:
        if self.is_wave:
            return Wav2Vec2Processor(self.extractor, self.tokenizer)
        return ParakeetProcessor(self.extractor, self.tokenizer, decoder_type="ctc")

    def _fresh_head(self) -> bool:
        return self.recipe.model.vocabulary == "transcripts"

    def _freezes_features(self) -> bool:
        asked = self.recipe.model.freeze_features
        return self.recipe.model.name is not None if asked is None else asked

    def _base(self) -> Any:
        how = self.recipe.model
        if how.from_scratch is not None:
            return AutoModelForCTC.from_config(self.config, attn_implementation=self.config._attn_implementation)
        assert how.name is not None
        bf16 = self.recipe.adapters is not None and self.recipe.adapters.base_dtype == "bf16"
        dtype = torch.bfloat16 if bf16 else torch.float32
        return _loaded(how.name, how.revision, self.config, dtype, fresh_head=self._fresh_head())

    def _targets(self, asked: str, model: Any) -> str:
        """The expression of a preset, or the one that was asked for, if it hits a layer that would feel it."""
        presets = WAVLM_TARGETS if self.family == "wavlm" else LORA_TARGETS
        if self.family == "wavlm" and asked == "attention":
            raise BadRecipe.one("train.adapters.targets", "WavLM's attention passes adapters by: say all-linear")
        expression = presets.get(asked, asked)
        hit = [n for n, _ in model.named_modules() if re.fullmatch(expression, n)]
        if not hit:
            raise BadRecipe.one("train.adapters.targets", f"{asked!r} names no layer of this model")
        if self.family == "wavlm" and any(".attention." in n for n in hit):
            raise BadRecipe.one("train.adapters.targets", "WavLM's attention passes adapters by: name its feed_forward")
        return expression


def collapsed(best: Sequence[int], blank: int) -> list[int]:
    """CTC's rule: of equal neighbours one, then no blanks."""
    return [t for n, t in enumerate(best) if t != blank and (n == 0 or best[n - 1] != t)]


def _frames_needed(tokens: Sequence[int]) -> int:
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _masked(hidden_BPD: Tensor, batch: CtcBatch, embed_D: Tensor | None) -> Tensor:
    """SpecAugment as wav2vec 2.0 has it: frames become a learnt vector, spans of the width become zero."""
    frames = torch.arange(hidden_BPD.shape[1], device=hidden_BPD.device)
    width = torch.arange(hidden_BPD.shape[2], device=hidden_BPD.device)

    def inside(spans: Tensor, axis: Tensor) -> Tensor:
        return ((axis >= spans[..., :1]) & (axis < spans[..., 1:])).any(dim=1)

    with_D = torch.zeros_like(hidden_BPD[0, 0]) if embed_D is None else embed_D.to(hidden_BPD.dtype)
    hidden_BPD = torch.where(inside(batch.time_spans, frames)[:, :, None], with_D, hidden_BPD)
    return hidden_BPD.masked_fill(inside(batch.freq_spans, width)[:, None, :], 0.0)


def _group_of(name: str) -> str:
    if "lm_head" in name or "ctc_head" in name:
        return "head"
    return "features" if ".feature_extractor." in name else "encoder"


def _plain(module: nn.Module) -> Any:
    """The model inside, with or without adapters around its layers."""
    plain: Any = module
    return plain.get_base_model() if hasattr(module, "get_base_model") else plain


def _family(recipe: CtcRecipe) -> str:
    how = recipe.model
    if how.from_scratch is not None:
        return {"parakeet": "parakeet_ctc"}.get(how.from_scratch.family, how.from_scratch.family)
    config = _said(AutoConfig, recipe)
    if config.model_type not in FAMILIES:
        raise BadRecipe.one(
            "train.model.name", f"{how.name} is a {config.model_type}: known here are {', '.join(FAMILIES)}"
        )
    if getattr(config, "add_adapter", False):
        raise BadRecipe.one("train.model.name", f"{how.name} has convolutions behind its encoder (add_adapter)")
    return str(config.model_type)


def _extractor(recipe: CtcRecipe) -> Any:
    how = recipe.model.from_scratch
    if how is None:
        return _said(AutoFeatureExtractor, recipe)
    if how.family == "parakeet":
        return ParakeetFeatureExtractor(feature_size=how.mels)
    return Wav2Vec2FeatureExtractor(return_attention_mask=how.norm == "layer")


def _tokenizer(recipe: CtcRecipe, is_wave: bool) -> Any:
    how = recipe.model
    if how.vocabulary == "tokenizer":
        return _said(AutoTokenizer, recipe)
    assert how.letters is not None, "Recipe.resolved found none"
    return wave_letters(how.letters) if is_wave else parakeet_letters(how.letters)


def _config(recipe: CtcRecipe, family: str, tokenizer: Any) -> Any:
    how = recipe.model
    config = _said(AutoConfig, recipe) if how.from_scratch is None else _scratch_config(how.from_scratch)
    inner = config.encoder_config if family == "parakeet_ctc" else config
    if how.vocabulary == "transcripts":
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    inner.layerdrop = 0.0  # its chance would be a micro-batch's, and several ranks would wait for the dropped layers
    if how.dropout is not None:
        for name in PARAKEET_DROPOUTS if family == "parakeet_ctc" else DROPOUTS:
            setattr(inner, name, how.dropout)
    attention = "eager" if family == "wavlm" else how.attention  # WavLM has but one
    config._attn_implementation = inner._attn_implementation = attention
    return config


def _scratch_config(how: CtcScratch) -> Any:
    if how.family == "parakeet":
        encoder = ParakeetEncoderConfig(
            hidden_size=how.d_model,
            num_hidden_layers=how.layers,
            num_attention_heads=how.heads,
            intermediate_size=how.ffn,
            num_mel_bins=how.mels,
            subsampling_factor=how.subsampling,
            subsampling_conv_channels=how.channels,
            **dict.fromkeys(PARAKEET_DROPOUTS, how.dropout),
        )
        return ParakeetCTCConfig(encoder_config=encoder.to_dict())
    cls = {"wav2vec2": Wav2Vec2Config, "hubert": HubertConfig, "wavlm": WavLMConfig}[how.family]
    return cls(
        hidden_size=how.d_model,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        intermediate_size=how.ffn,
        conv_dim=(how.channels,) * 7,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=how.heads,
        feat_extract_norm=how.norm,
        conv_bias=how.norm == "layer",
        do_stable_layer_norm=how.norm == "layer",
        **dict.fromkeys(DROPOUTS, how.dropout),
    )


def _said(what: Any, recipe: CtcRecipe) -> Any:
    """Something of the model's that lies beside its weights. Raises BadRecipe."""
    how = recipe.model
    try:
        return what.from_pretrained(how.name, revision=how.revision or "main")
    except (OSError, ValueError, KeyError, TypeError) as e:
        hint = "; with vocabulary: transcripts it needs no tokenizer" if what is AutoTokenizer else ""
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise BadRecipe.one("train.model.name", f"{how.name} can't be loaded: {reason}{hint}") from None


def _loaded(name: str, revision: str | None, config: Any, dtype: torch.dtype, *, fresh_head: bool) -> Any:
    try:
        return AutoModelForCTC.from_pretrained(
            name,
            revision=revision or "main",
            config=config,
            dtype=dtype,
            attn_implementation=config._attn_implementation,
            ignore_mismatched_sizes=fresh_head,
        )
    except (OSError, ValueError, RuntimeError) as e:
        raise BadRecipe.one("train.model.name", f"{name} can't be loaded: {str(e).splitlines()[0]}") from None
