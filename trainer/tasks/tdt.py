"""Parakeet transducers: TDT (Xu et al., 2023), whose tokens last some frames, and RNN-T (Graves, 2012), whose do not.

A conformer hears log-mel, an LSTM reads the tokens said so far, a joint network scores each pair of both. The loss is
ours (trainer.losses.transducer); exports load in plain transformers, whose greedy generation says the same.

B batch · T samples (16 kHz) · M mel bins · F mel frames (10 ms) · P encoder frames · H joint width · L labels
U token positions (L + 1) · V vocabulary with the blank · D durations
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    GenerationConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForRNNT,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)

from trainer.data.audio import AudioCache, padded_samples, samples_of
from trainer.data.drawn import Drawn, draw_lengths, draw_spans, read_drawn
from trainer.data.features import ParakeetMel, mask_spans, stack_spans
from trainer.errors import AudioError, BadRecipe
from trainer.losses.transducer import arc_scores, has_path, rnnt_losses, tdt_losses
from trainer.metrics.transcripts import score_transcripts
from trainer.norms import keep_batch_norms_still
from trainer.recipe.eval import Decode
from trainer.recipe.tdt import TdtRecipe, TdtScratch
from trainer.recipe.written import written
from trainer.task import Bad, Draw, Example, Fitted, Parts, Report, Row, Size
from trainer.tasks.letters import Strangers, encoded, parakeet_letters

MODELS = {"parakeet_tdt": ParakeetForTDT, "parakeet_rnnt": ParakeetForRNNT}
SHORTEST = 400  # samples: two mel frames
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
JOINT_NUMBERS = 1 << 25  # logits of the joint network held at once: 128 MiB, and as much again for their gradient
LORA_TARGETS = {
    "all-linear": r".*\.(q_proj|k_proj|v_proj|o_proj|linear1|linear2)",
    "attention": r".*\.(q_proj|v_proj)",
}
FRESH = ["decoder.embedding", "joint.head"]  # what another vocabulary makes anew


@dataclass(frozen=True)
class TdtItem:
    """One utterance ready to be padded: wave (T,), token ids, spans that will be masked."""

    id: str
    wave_T: np.ndarray
    padded: int
    tokens: list[int]
    freq_spans: list[tuple[int, int]]
    time_spans: list[tuple[int, int]]


@dataclass(frozen=True)
class TdtBatch:
    """Utterances of one padded length. `mel_BFM` appears in `prepare`."""

    ids: Sequence[str]
    counts: Mapping[str, int]
    most_steps: tuple[int, ...]  # of decoding, an utterance's own
    wave_BT: Tensor  # float32
    samples_B: Tensor  # int64: own lengths
    frames_B: Tensor  # int64: own frames of the encoder
    tokens_B: Tensor  # int64: own labels
    label_BL: Tensor  # int64, filled up with the blank
    freq_spans: Tensor  # (B, n, 2) int64
    time_spans: Tensor
    mel_BFM: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: torch.device) -> "TdtBatch":
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


class TdtTask:
    """Task `tdt`: see trainer.task.Task for what each method promises."""

    losses_of = ("transducer",)

    def __init__(self, recipe: TdtRecipe) -> None:
        self.recipe = recipe
        self.extractor = _extractor(recipe)
        self.tokenizer = _tokenizer(recipe)
        self.config = _config(recipe, self.tokenizer)
        self.blank = int(self.config.blank_token_id)
        self.durations: list[int] | None = (
            list(self.config.durations) if self.config.model_type == "parakeet_tdt" else None
        )
        self._audio = AudioCache(recipe.data.cache_gb)
        self._strangers = Strangers(self.tokenizer)
        self._mel = ParakeetMel(self.extractor)

    # ---- networks

    def build(self, saved: Path | None = None) -> Parts:
        lora = self.recipe.adapters
        if saved is None or lora is not None:
            model = self._base()
        else:
            model = self._loaded(str(saved), None, torch.float32, fresh=False)
        model.generation_config = self._generation()
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
                targets = LORA_TARGETS.get(lora.targets, lora.targets)
                if not any(re.fullmatch(targets, n) for n, _ in model.named_modules()):
                    raise BadRecipe.one("train.adapters.targets", f"{lora.targets!r} names no layer of this model")
                config = LoraConfig(
                    r=lora.r,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=targets,
                    modules_to_save=FRESH if self._is_fresh() else None,
                )
                module = get_peft_model(model, config)
        return Parts(module)

    def groups(self, module: nn.Module) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {"encoder": [], "decoder": [], "head": []}
        for name, p in module.named_parameters():
            if p.requires_grad:
                found[_group_of(name)].append(name)
        return found

    def save(self, module: nn.Module, directory: Path) -> None:
        # peft takes another vocabulary for a resized embedding; here it is saved with the adapters (0.21)
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
        """Whether there is a path through the lattice: always, where a token may last no frame at all."""
        n = self.n_frames(self._mel.frames(n_samples))
        if self.durations is None or {0, 1} <= set(self.durations):
            return n >= 1
        return has_path(n, len(self._tokens(text)), self.durations)

    def n_frames(self, n_mel: int) -> int:
        """The encoder's frames of so many mel frames."""
        e = self.config.encoder_config
        size, stride = e.subsampling_conv_kernel_size, e.subsampling_conv_stride
        for _ in range(int(math.log2(e.subsampling_factor))):
            n_mel = (n_mel + (size - 1) // 2 * 2 - size) // stride + 1
        return n_mel

    def size(self, example: Example, draw: Draw | None) -> Size:
        drawn = self.drawn(example, draw)
        return Size(drawn.padded_s, drawn.audio_s, len(drawn.text))

    def load(self, examples: Sequence[Example], draws: Sequence[Draw | None]) -> Sequence[TdtItem | Bad]:
        return [self._load(e, d) for e, d in zip(examples, draws, strict=True)]

    def _load(self, example: Example, draw: Draw | None) -> TdtItem | Bad:
        drawn = self.drawn(example, draw)
        if drawn.n_samples < SHORTEST:
            return Bad(example.id, f"{drawn.audio_s:.3f} s is too short for this encoder")
        tokens: list[int] = []
        if draw is not None:
            tokens = self._tokens(drawn.text)
            reason = self._unusable(drawn, tokens)
            if reason:
                return Bad(example.id, reason)
        try:
            wave_T = read_drawn(self._audio, example, drawn, draw, self.recipe.augment)
        except AudioError as e:
            return Bad(example.id, e.message)
        bins, frames = int(self.extractor.feature_size), self._mel.frames(drawn.n_samples)
        freq, time = draw_spans(draw, self.recipe.augment.spec, bins, frames)
        return TdtItem(example.id, wave_T, drawn.padded, tokens, freq, time)

    def _unusable(self, drawn: Drawn, tokens: list[int]) -> str:
        """Why a transcript can't be learnt from its audio; empty where it can."""
        if not tokens:
            return f"nothing is left of its transcript {drawn.text!r} as train.model.text writes it"
        missing = self._strangers.missing(drawn.text, self.recipe.model.text)
        if missing:
            return f"the vocabulary lacks {missing!r} of its transcript: see train.model.text and .vocabulary"
        if self.blank in tokens:
            return "its transcript holds the blank's own name"
        if not self.fits(drawn.text, drawn.n_samples):
            n = self.n_frames(self._mel.frames(drawn.n_samples))
            return f"its transcript of {len(tokens)} tokens does not fit the {n} frames of its audio"
        return ""

    def collate(self, items: Sequence[TdtItem]) -> TdtBatch:
        padded = items[0].padded
        assert all(i.padded == padded for i in items), "a micro-batch is homogeneous in padded length"
        wave_BT = torch.zeros(len(items), padded)
        longest = max(len(i.tokens) for i in items)
        label_BL = torch.full((len(items), longest), self.blank, dtype=torch.int64)
        for b, item in enumerate(items):
            wave_BT[b, : len(item.wave_T)] = torch.from_numpy(item.wave_T)
            label_BL[b, : len(item.tokens)] = torch.tensor(item.tokens, dtype=torch.int64)
        mel = [self._mel.frames(len(i.wave_T)) for i in items]
        most = int(self.config.max_symbols_per_step)
        return TdtBatch(
            ids=[i.id for i in items],
            counts={"transducer": sum(len(i.tokens) for i in items)},
            most_steps=tuple(most * self.n_frames(n + 1) - 1 for n in mel),  # as ParakeetForTDT.generate has it
            wave_BT=wave_BT,
            samples_B=torch.tensor([len(i.wave_T) for i in items]),
            frames_B=torch.tensor([self.n_frames(n) for n in mel]),
            tokens_B=torch.tensor([len(i.tokens) for i in items]),
            label_BL=label_BL,
            freq_spans=stack_spans([i.freq_spans for i in items]),
            time_spans=stack_spans([i.time_spans for i in items]),
        )

    def dummy(self, n: int, seconds: float, tokens: int) -> TdtBatch:
        padded = padded_samples(samples_of(seconds), self.recipe.data.edge_s)
        noise = np.random.default_rng(0).normal(0, 0.1, size=padded).astype(np.float32)
        some = next(i for i in range(self.config.vocab_size) if i != self.blank)
        return self.collate([TdtItem(f"dummy-{i}", noise, padded, [some] * max(1, tokens), [], []) for i in range(n)])

    # ---- a batch, on the device

    def prepare(self, batch: TdtBatch, parts: Parts, train: bool) -> TdtBatch:
        mel_BFM = self._mel.to(batch.wave_BT.device)(batch.wave_BT, batch.samples_B)
        if train and batch.freq_spans.shape[1] + batch.time_spans.shape[1]:
            mel_BFM = mask_spans(mel_BFM.transpose(1, 2), batch.freq_spans, batch.time_spans).transpose(1, 2)
        return replace(batch, mel_BFM=mel_BFM.to(next(parts.module.parameters()).dtype))

    def losses(self, module: nn.Module, batch: TdtBatch) -> dict[str, Tensor]:
        model, how = _plain(module), self.recipe.transducer
        heard_BPH = self._heard(model, batch)
        read_BUH = model.decoder(torch.nn.functional.pad(batch.label_BL, (1, 0), value=self.blank))
        blank_BPU, token_BPU, duration_BPUD = self._scores(model, heard_BPH, read_BUH, batch.label_BL)
        if self.durations is None:
            losses_B = rnnt_losses(blank_BPU, token_BPU, batch.frames_B, batch.tokens_B)
        else:
            losses_B = tdt_losses(
                blank_BPU, token_BPU, duration_BPUD, self.durations, batch.frames_B, batch.tokens_B, how.omega
            )
        return {"transducer": losses_B}

    def _heard(self, model: Any, batch: TdtBatch) -> Tensor:
        """(B, P, H): what the joint network hears; frames beyond an utterance's own mean nothing."""
        frames = torch.arange(batch.mel_BFM.shape[1], device=batch.mel_BFM.device)
        own_BF = frames < (batch.samples_B // self._mel.hop)[:, None]
        states = model.encoder(input_features=batch.mel_BFM, attention_mask=own_BF).last_hidden_state
        heard_BPH: Tensor = model.encoder_projector(states)
        return heard_BPH

    def _scores(
        self, model: Any, heard_BPH: Tensor, read_BUH: Tensor, label_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the lattice needs of the joint network, frames by frames, so that its logits never exist all at once.

        Where one piece is not enough, each is computed again in the backward pass: a second joint network's compute for
        memory that no longer grows with the length of the audio.
        """
        B, P, _ = heard_BPH.shape
        width = self.config.vocab_size + len(self.durations or ())
        step = max(1, JOINT_NUMBERS // (B * read_BUH.shape[1] * width))
        if step >= P:
            return self._piece(model, heard_BPH, read_BUH, label_BL)
        pieces = [
            checkpoint(
                self._piece, model, piece, read_BUH, label_BL, use_reentrant=False, preserve_rng_state=False
            )  # nothing in it is drawn
            for piece in heard_BPH.split(step, dim=1)
        ]
        blank, token, duration = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        return blank, token, duration

    def _piece(self, model: Any, heard: Tensor, read: Tensor, label_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = model.joint(encoder_hidden_states=heard[:, :, None], decoder_hidden_states=read[:, None])
        V = self.config.vocab_size
        sigma = self.recipe.transducer.sigma if self.durations is not None else 0.0
        blank, token = arc_scores(logits[..., :V], label_BL, self.blank, sigma)
        duration = logits[..., V:]
        whole = duration if duration.dtype == torch.float64 else duration.float()
        return blank, token, whole.log_softmax(-1) if whole.shape[-1] else whole

    def predict(self, module: nn.Module, batch: TdtBatch, decode: Decode) -> list[Row]:
        """The best token, and its best duration, step by step; rows hold `id` and `text`."""
        model = _plain(module)
        said = self._greedy(model, self._heard(model, batch), batch, decode.max_new_tokens)
        rows = []
        for i, tokens in zip(batch.ids, said, strict=True):
            text = self.tokenizer.decode(tokens, group_tokens=False, skip_special_tokens=True)
            rows.append({"id": i, "text": text.strip()})
        return rows

    def _greedy(self, model: Any, heard_BPH: Tensor, batch: TdtBatch, max_tokens: int) -> list[list[int]]:
        """Token ids an utterance. An RNN-T goes on after `max_symbols_per_step` tokens on one frame, as NeMo's does."""
        device, B = heard_BPH.device, len(batch.ids)
        rows = torch.arange(B, device=device)
        at_B = torch.zeros(B, dtype=torch.int64, device=device)
        on_frame_B, n_said_B = torch.zeros_like(at_B), torch.zeros_like(at_B)
        most_B = torch.tensor(batch.most_steps, device=device)
        read_B1H, state = self._read(model, torch.full((B, 1), self.blank, device=device), None)
        said = []
        for step in range(max(batch.most_steps)):
            going_B = (at_B < batch.frames_B) & (step < most_B) & (n_said_B < max_tokens)
            if step % 8 == 0 and not bool(going_B.any()):  # asking the device is a wait: not at every step
                break
            heard_B1H = heard_BPH[rows, at_B.clamp(max=heard_BPH.shape[1] - 1)][:, None]
            logits_BV = model.joint(encoder_hidden_states=heard_B1H, decoder_hidden_states=read_B1H)[:, 0]
            token_B = logits_BV[:, : self.config.vocab_size].argmax(-1)
            is_token_B = going_B & (token_B != self.blank)
            if self.durations is not None:
                place_B = logits_BV[:, self.config.vocab_size :].argmax(-1)
                ahead_B = torch.zeros_like(at_B)
                for i, d in enumerate(self.durations):
                    ahead_B = torch.where(place_B == i, d, ahead_B)
                ahead_B = torch.where(token_B == self.blank, ahead_B.clamp(min=1), ahead_B)
            else:
                on_frame_B = torch.where(is_token_B, on_frame_B + 1, 0)
                ahead_B = ((token_B == self.blank) | (on_frame_B >= model.max_symbols_per_step)).long()
                on_frame_B = torch.where(ahead_B > 0, 0, on_frame_B)
            said.append(torch.where(is_token_B, token_B, self.blank))
            at_B, n_said_B = at_B + ahead_B, n_said_B + is_token_B
            fresh_B1H, fresh = self._read(model, token_B[:, None], state)
            read_B1H = torch.where(is_token_B[:, None, None], fresh_B1H, read_B1H)
            state = tuple(torch.where(is_token_B[:, None], f, s) for f, s in zip(fresh, state, strict=True))
        table = torch.stack(said, dim=1).tolist() if said else [[] for _ in range(B)]
        return [[t for t in row if t != self.blank] for row in table]

    @staticmethod
    def _read(model: Any, token_B1: Tensor, state: Any) -> tuple[Tensor, Any]:
        out, state = model.decoder.lstm(model.decoder.embedding(token_B1), state)
        return model.decoder.decoder_projector(out), state

    def final_decodes(self, decode: Decode) -> Mapping[str, Decode]:
        return {"greedy": decode}

    def score(self, rows: Iterable[Row], fitted: Fitted | None = None) -> Report:
        return score_transcripts(rows, self.recipe.eval)

    # ---- helpers

    def _tokens(self, text: str) -> list[int]:
        return encoded(self.tokenizer, written(text, self.recipe.model.text))

    def _processor(self) -> Any:
        kind = "rnnt" if self.durations is None else "tdt"
        return ParakeetProcessor(self.extractor, self.tokenizer, decoder_type=kind)

    def _is_fresh(self) -> bool:
        return self.recipe.model.vocabulary == "transcripts"

    def _generation(self) -> Any:
        """What plain transformers needs to decode the export: it starts from the blank, and a duration is no token."""
        V = self.config.vocab_size
        return GenerationConfig(
            decoder_start_token_id=self.blank,
            pad_token_id=self.config.pad_token_id,
            suppress_tokens=list(range(V, V + len(self.durations))) if self.durations else None,
        )

    def _base(self) -> Any:
        how = self.recipe.model
        if how.from_scratch is not None:
            return MODELS[self.config.model_type](self.config)
        assert how.name is not None
        bf16 = self.recipe.adapters is not None and self.recipe.adapters.base_dtype == "bf16"
        return self._loaded(how.name, how.revision, torch.bfloat16 if bf16 else torch.float32, fresh=self._is_fresh())

    def _loaded(self, name: str, revision: str | None, dtype: torch.dtype, *, fresh: bool) -> Any:
        try:
            return MODELS[self.config.model_type].from_pretrained(
                name,
                revision=revision or "main",
                config=self.config,
                dtype=dtype,
                attn_implementation=self.recipe.model.attention,
                ignore_mismatched_sizes=fresh,
            )
        except (OSError, ValueError, RuntimeError) as e:
            raise BadRecipe.one("train.model.name", f"{name} can't be loaded: {str(e).splitlines()[0]}") from None


def _group_of(name: str) -> str:
    if "joint." in name or "encoder_projector." in name:
        return "head"
    return "decoder" if re.search(r"(^|\.)decoder\.", name) else "encoder"


def _plain(module: nn.Module) -> Any:
    """The model inside, with or without adapters around its layers."""
    plain: Any = module
    return plain.get_base_model() if hasattr(module, "get_base_model") else plain


def _extractor(recipe: TdtRecipe) -> Any:
    how = recipe.model.from_scratch
    return _said(AutoFeatureExtractor, recipe) if how is None else ParakeetFeatureExtractor(feature_size=how.mels)


def _tokenizer(recipe: TdtRecipe) -> Any:
    how = recipe.model
    if how.vocabulary == "tokenizer":
        return _said(AutoTokenizer, recipe)
    assert how.letters is not None, "Recipe.resolved found none"
    return parakeet_letters(how.letters, transducer=True)


def _config(recipe: TdtRecipe, tokenizer: Any) -> Any:
    how = recipe.model
    config = _said(AutoConfig, recipe) if how.from_scratch is None else _scratch_config(how.from_scratch)
    if config.model_type not in MODELS:
        raise BadRecipe.one("train.model.name", f"{how.name} is a {config.model_type}: known are {', '.join(MODELS)}")
    if how.vocabulary == "transcripts":
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        config.blank_token_id = tokenizer.convert_tokens_to_ids("<blank>")
    encoder = config.encoder_config
    encoder.layerdrop = 0.0  # its chance would be a micro-batch's, and several ranks would wait for the dropped layers
    if how.dropout is not None:
        for name in DROPOUTS:
            setattr(encoder, name, how.dropout)
    config._attn_implementation = encoder._attn_implementation = how.attention
    return config


def _scratch_config(how: TdtScratch) -> Any:
    encoder = ParakeetEncoderConfig(
        hidden_size=how.d_model,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        intermediate_size=how.ffn,
        num_mel_bins=how.mels,
        subsampling_factor=how.subsampling,
        subsampling_conv_channels=how.channels,
        **dict.fromkeys(DROPOUTS, how.dropout),
    )
    shared = {
        "encoder_config": encoder.to_dict(),
        "decoder_hidden_size": how.decoder_dim,
        "num_decoder_layers": how.decoder_layers,
    }
    return ParakeetRNNTConfig(**shared) if how.kind == "rnnt" else ParakeetTDTConfig(**shared, durations=how.durations)


def _said(what: Any, recipe: TdtRecipe) -> Any:
    """Something of the model's that lies beside its weights. Raises BadRecipe."""
    how = recipe.model
    try:
        return what.from_pretrained(how.name, revision=how.revision or "main")
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise BadRecipe.one("train.model.name", f"{how.name} can't be loaded: {reason}") from None
