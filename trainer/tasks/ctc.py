"""CTC (Graves et al., 2006): wav2vec 2.0, HuBERT and WavLM over the wave, Parakeet over log-mel, and one linear layer.

What an utterance yields is what the stock model yields for it alone and unpadded: padding is masked everywhere, also
where the stock model does not (wav2vec 2.0's first norm, over all padded time). Exports load in plain transformers.

B batch · T samples (16 kHz) · M mel bins · F mel frames (10 ms) · P encoder frames · D model width · L labels
V vocabulary · N own encoder frames of the whole batch
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    HubertConfig,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WavLMConfig,
)

from trainer.data.audio import padded_samples, samples_of
from trainer.data.features import ParakeetMel, stack_spans
from trainer.errors import BadRecipe
from trainer.losses.distill import divergence
from trainer.losses.labelled import sum_by_row, wide
from trainer.norms import OwnGroupNorm, keep_batch_norms_still
from trainer.recipe.ctc import CtcModel, CtcRecipe, CtcScratch
from trainer.recipe.eval import Decode
from trainer.task import Parts, Row
from trainer.tasks import hub
from trainer.tasks.acoustic import (
    PARAKEET_DROPOUTS,
    AcousticTask,
    own_tokenizer,
    parakeet_frames,
    parakeet_mel,
    parakeet_scratch,
    steadied,
    trained_config,
)
from trainer.tasks.hub import plain
from trainer.tasks.letters import parakeet_letters, wave_letters
from trainer.tasks.teacher import Teacher
from trainer.tasks.utterances import Utterance, moved, noise, stack_tokens, stack_waves

WAVES = ("wav2vec2", "hubert", "wavlm")
FAMILIES = (*WAVES, "parakeet_ctc")
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
LORA_TARGETS = {
    "all-linear": r".*\.(q_proj|k_proj|v_proj|out_proj|o_proj|intermediate_dense|output_dense|linear1|linear2)",
    "attention": r".*\.(q_proj|v_proj)",
}
# WavLM hands its attention's weights to torch by themselves: adapters around them are passed by (transformers 5.23)
WAVLM_TARGETS = {"all-linear": r".*\.(intermediate_dense|output_dense)"}


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
    frame_index_N: Tensor = field(default_factory=lambda: torch.empty(0))  # int64: which of the B·P frames are own
    frame_row_N: Tensor = field(default_factory=lambda: torch.empty(0))  # int64: and whose
    by_teacher: "CtcBatch | None" = None  # the same utterances as the teacher hears them
    teacher_NV: Tensor | None = None  # what the teacher says of every own frame: log-probabilities

    def to(self, device: torch.device) -> "CtcBatch":
        return moved(self, device)


class CtcTask(AcousticTask[CtcRecipe]):
    """Task `ctc`: see trainer.task.Task for what each method promises."""

    def __init__(self, recipe: CtcRecipe) -> None:
        self.family = _family(recipe.model)
        self.is_wave = self.family in WAVES
        tokenizer = _tokenizer(recipe.model, self.is_wave)
        config = _config(recipe.model, self.family, tokenizer)
        super().__init__(recipe, _extractor(recipe.model), tokenizer, config, int(config.pad_token_id))
        self._mel = None if self.is_wave else ParakeetMel(self.extractor)
        self._masks = any(a.spec is not None for a in recipe.augments)
        self._teacher = Teacher(recipe, CtcTask) if recipe.loss.distill else None
        if self._teacher:
            self._check_frames(self._teacher)

    @property
    def losses_of(self) -> Sequence[str]:
        return ("ctc", "kl") if self._teacher else ("ctc",)

    # ---- networks

    def build(self, saved: Path | None = None) -> Parts:
        lora = self.recipe.adapters
        if saved is None or lora is not None:
            model = self._base()
        else:
            model = self._loaded(str(saved), None, hub.saved_dtype(self.recipe.loop), fresh_head=False)
        if self.is_wave:
            base = getattr(model, model.base_model_prefix)
            first = base.feature_extractor.conv_layers[0]
            if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
                first.layer_norm.__class__ = OwnGroupNorm
            if self._freezes_features():
                model.freeze_feature_encoder()
            if hasattr(base, "masked_spec_embed") and not self._masks:
                base.masked_spec_embed.requires_grad_(False)  # nothing uses it: it would wait for a gradient for ever
        if self.recipe.model.batch_statistics == "frozen":
            keep_batch_norms_still(model)
        if self.recipe.loop.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        whole = ["lm_head" if self.is_wave else "ctc_head"] if self.recipe.model.makes_vocabulary else None
        if lora is not None and self.family == "wavlm":
            _check_wavlm_feels(model, lora.targets)
        module = hub.adapted(model, lora, saved, self._presets, whole)
        if self._teacher is None:
            return Parts(module)
        network = self._teacher.join(saved)
        self._check_teacher(model, self._teacher, plain(network))
        return Parts(module, {"teacher": network})

    def _check_frames(self, teacher: "Teacher[CtcTask]") -> None:
        """Both make as many frames of any sound: 20 lengths of up to a second tell them apart."""
        lengths = range(2000, 16000, 700)
        ours, theirs = ([task.n_frames(n) for n in lengths] for task in (self, teacher.task))
        teacher.same("number of frames in sounds of some lengths", self._name, ours, theirs)

    def _check_teacher(self, model: Any, teacher: "Teacher[CtcTask]", network: Any) -> None:
        """Both write with the same tokens, and the same of them is the blank."""
        theirs = teacher.task
        teacher.share_words(
            (self._name, self.tokenizer.get_vocab(), model.config.vocab_size),
            (theirs.tokenizer.get_vocab(), network.config.vocab_size),
        )
        blank = int(teacher.token_of(torch.tensor(self.blank)))
        teacher.same("blank", self._name, blank, theirs.blank)

    @property
    def _name(self) -> str:
        return self.recipe.model.name or "the student"

    def save(self, module: nn.Module, directory: Path) -> None:
        super().save(module, directory)
        if self._teacher:
            self._teacher.leave_word(directory)

    def _group_of(self, name: str) -> str:
        if "lm_head" in name or "ctc_head" in name:
            return "head"
        return "features" if ".feature_extractor." in name else "encoder"

    @property
    def _below(self) -> str:
        if not self.is_wave:
            return r"\.subsampling\."
        below = r"\.(feature_extractor|feature_projection|pos_conv_embed)\.|masked_spec_embed"
        return below if self.config.do_stable_layer_norm else below + r"|\.encoder\.layer_norm\."

    # ---- an utterance

    def fits(self, text: str, n_samples: int) -> bool:
        """Whether the frames of so many samples can hold the text: a frame a token, and one between equal ones."""
        n = self.n_frames(n_samples)
        return 2 * len(text) <= n or frames_needed(self._tokens(text)) <= n

    def n_frames(self, n_samples: int) -> int:
        """The encoder's frames of so many samples."""
        if self._mel is None:
            for size, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
                n_samples = (n_samples - size) // stride + 1
            return max(0, n_samples)
        return parakeet_frames(self.config.encoder_config, self._mel.frames(n_samples))

    @property
    def frame_samples(self) -> int:
        """From one frame of the encoder to the next, in samples."""
        if self._mel is None:
            return math.prod(self.config.conv_stride)
        return self._mel.hop * int(self.config.encoder_config.subsampling_factor)

    def _why_not(self, tokens: list[int], n_frames: int) -> str:
        needed = frames_needed(tokens)
        return f"its transcript needs {needed} frames (one a token, one between equal ones), its audio has {n_frames}"

    def _masked_over(self, n_samples: int) -> tuple[int, int]:
        if self._mel is None:
            return int(self.config.hidden_size), self.n_frames(n_samples)
        return int(self.extractor.feature_size), self._mel.frames(n_samples)

    def _levelled(self, wave_T: np.ndarray) -> np.ndarray:
        if not (self.is_wave and self.extractor.do_normalize):
            return wave_T
        return ((wave_T - wave_T.mean()) / np.sqrt(wave_T.var() + 1e-7)).astype(np.float32)

    def collate(self, items: Sequence[Utterance]) -> CtcBatch:
        samples = [len(i.wave_T) for i in items]
        n_frames = tuple(self.n_frames(n) for n in samples)
        counts = {"ctc": sum(len(i.tokens) for i in items)}
        more: dict[str, Any] = {}
        if self._teacher and items[0].heard_T is not None:
            counts["kl"] = sum(n_frames)
            more = self._for_teacher(self._teacher, items, n_frames)
        size, stride = (self.config.conv_kernel[0], self.config.conv_stride[0]) if self.is_wave else (1, 1)
        return CtcBatch(
            ids=[i.id for i in items],
            counts=counts,
            n_frames=n_frames,
            n_labels=tuple(len(i.tokens) for i in items),
            wave_BT=stack_waves(items),
            samples_B=torch.tensor(samples),
            first_B=torch.tensor([(n - size) // stride + 1 for n in samples]),
            frames_B=torch.tensor(n_frames),
            label_BL=stack_tokens([i.tokens for i in items], self.blank, at_least=1),
            freq_spans=stack_spans([i.freq_spans for i in items]),
            time_spans=stack_spans([i.time_spans for i in items]),
            **more,
        )

    def _for_teacher(
        self, teacher: "Teacher[CtcTask]", items: Sequence[Utterance], n_frames: Sequence[int]
    ) -> dict[str, Any]:
        """The sound as the teacher levels it, unmasked, and where in a stack of padded frames the own ones are."""
        task = teacher.task
        waves = [i.wave_T if i.heard_T is None else task._levelled(i.heard_T) for i in items]
        heard = [replace(i, wave_T=w, freq_spans=[], time_spans=[]) for i, w in zip(items, waves, strict=True)]
        width = self.n_frames(items[0].padded)
        return {
            "by_teacher": task.collate(heard),
            "frame_index_N": torch.cat([torch.arange(n) + b * width for b, n in enumerate(n_frames)]),
            "frame_row_N": torch.arange(len(items)).repeat_interleave(torch.tensor(n_frames)),
        }

    def dummy(self, n: int, seconds: float, tokens: int) -> CtcBatch:
        padded = padded_samples(samples_of(seconds), self.recipe.data.edge_s)
        some = [i for i in range(self.config.vocab_size) if i != self.blank][:2]
        ids = [some[i % len(some)] for i in range(max(1, min(tokens, self.n_frames(padded) // 2)))]
        return self.collate(noise(n, padded, ids))

    # ---- a batch, on the device

    def prepare(self, batch: CtcBatch, parts: Parts, train: bool) -> CtcBatch:
        dtype = next(parts.module.parameters()).dtype
        if train and self._teacher is not None and batch.by_teacher is not None:
            teacher, network = self._teacher, parts.frozen["teacher"]
            hears = teacher.task.prepare(batch.by_teacher, Parts(network), False)
            said_NV = teacher.says(lambda: own_frames(teacher.task.logits(network, hears), batch), batch.wave_BT.device)
            batch = replace(batch, by_teacher=None, teacher_NV=said_NV)
        if self._mel is None:
            return replace(batch, wave_BT=batch.wave_BT.to(dtype))
        return replace(batch, mel_BFM=parakeet_mel(self._mel, batch, train).to(dtype))

    def losses(self, module: nn.Module, batch: CtcBatch) -> dict[str, Tensor]:
        logits_BPV = wide(self.logits(module, batch))
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
        if self._teacher is None:
            return {"ctc": ctc_B}
        assert batch.teacher_NV is not None, "prepare asks the teacher"
        kl_N = divergence(own_frames(logits_BPV, batch), batch.teacher_NV, self._teacher.how.temperature)
        return {"ctc": ctc_B, "kl": sum_by_row(kl_N, batch.frame_row_N, len(batch.ids))}

    def logits(self, module: nn.Module, batch: CtcBatch) -> Tensor:
        """(B, P, V); frames beyond an utterance's own mean nothing."""
        model = plain(module)
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
        if training and self._masks:
            hidden_BPD = _masked(hidden_BPD, batch, getattr(base, "masked_spec_embed", None))
        own_BP = torch.arange(hidden_BPD.shape[1], device=hidden_BPD.device) < batch.frames_B[:, None]
        states_BPD = base.encoder(hidden_BPD, attention_mask=own_BP).last_hidden_state
        logits_BPV: Tensor = model.lm_head(model.dropout(states_BPD))
        return logits_BPV

    def weights(self, done: float) -> Mapping[str, float]:
        distill = self.recipe.loss.distill
        return distill.weights("ctc", done) if distill else {"ctc": 1.0}

    def predict(self, module: nn.Module, batch: CtcBatch, decode: Decode) -> list[Row]:
        """The best token a frame, equal neighbours joined, blanks dropped; rows hold `id` and `text`."""
        best_BP = self.logits(module, batch).argmax(-1).tolist()
        said = (collapsed(best_P[:n], self.blank) for best_P, n in zip(best_BP, batch.n_frames, strict=True))
        return self._rows(batch.ids, said)

    # ---- helpers

    def _processor(self) -> Any:
        if self.is_wave:
            return Wav2Vec2Processor(self.extractor, self.tokenizer)
        return ParakeetProcessor(self.extractor, self.tokenizer, decoder_type="ctc")

    def _freezes_features(self) -> bool:
        asked = self.recipe.model.freeze_features
        return self.recipe.model.name is not None if asked is None else asked

    def _base(self) -> Any:
        how = self.recipe.model
        if how.from_scratch is not None:
            return AutoModelForCTC.from_config(self.config, attn_implementation=self.config._attn_implementation)
        assert how.name is not None
        dtype = hub.base_dtype(self.recipe.adapters)
        return self._loaded(how.name, how.revision, dtype, fresh_head=how.makes_vocabulary)

    def _loaded(self, name: str, revision: str | None, dtype: torch.dtype, *, fresh_head: bool) -> Any:
        return hub.with_weights(
            AutoModelForCTC,
            name,
            revision,
            config=self.config,
            dtype=dtype,
            attn_implementation=self.config._attn_implementation,
            ignore_mismatched_sizes=fresh_head,
        )

    @property
    def _presets(self) -> Mapping[str, str]:
        return WAVLM_TARGETS if self.family == "wavlm" else LORA_TARGETS


def _check_wavlm_feels(model: nn.Module, asked: str) -> None:
    """Raises BadRecipe where WavLM would pass by the adapters that were asked for."""
    if asked == "attention":
        raise BadRecipe.one("train.adapters.targets", "WavLM's attention passes adapters by: say all-linear")
    expression = WAVLM_TARGETS.get(asked, asked)
    if any(".attention." in n and re.fullmatch(expression, n) for n, _ in model.named_modules()):
        raise BadRecipe.one("train.adapters.targets", "WavLM's attention passes adapters by: name its feed_forward")


def own_frames(logits_BPV: Tensor, batch: CtcBatch) -> Tensor:
    """(N, V): those of every utterance's own frames, one after the other."""
    return logits_BPV.flatten(0, 1).index_select(0, batch.frame_index_N)


def collapsed(best: Sequence[int], blank: int) -> list[int]:
    """CTC's rule: of equal neighbours one, then no blanks."""
    return [t for n, t in enumerate(best) if t != blank and (n == 0 or best[n - 1] != t)]


def frames_needed(tokens: Sequence[int]) -> int:
    """The fewest frames that hold these tokens: one each, and one between two that are equal."""
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


def _family(how: CtcModel) -> str:
    if how.from_scratch is not None:
        return {"parakeet": "parakeet_ctc"}.get(how.from_scratch.family, how.from_scratch.family)
    config = trained_config(how)
    if config.model_type not in FAMILIES:
        raise BadRecipe.one(
            "train.model.name", f"{how.name} is a {config.model_type}: known here are {', '.join(FAMILIES)}"
        )
    if getattr(config, "add_adapter", False):
        raise BadRecipe.one("train.model.name", f"{how.name} has convolutions behind its encoder (add_adapter)")
    return str(config.model_type)


def _extractor(how: CtcModel) -> Any:
    if how.from_scratch is None:
        return hub.beside_weights(AutoFeatureExtractor, how.name, how.revision)
    if how.from_scratch.family == "parakeet":
        return ParakeetFeatureExtractor(feature_size=how.from_scratch.mels)
    return Wav2Vec2FeatureExtractor(return_attention_mask=how.from_scratch.norm == "layer")


def _tokenizer(how: CtcModel, is_wave: bool) -> Any:
    if not how.makes_vocabulary:
        return own_tokenizer(how)
    assert how.letters is not None, "Recipe.resolved found none"
    return wave_letters(how.letters) if is_wave else parakeet_letters(how.letters)


def _config(how: CtcModel, family: str, tokenizer: Any) -> Any:
    config = trained_config(how) if how.from_scratch is None else _scratch_config(how.from_scratch)
    if how.makes_vocabulary:
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    attention = "eager" if family == "wavlm" else how.attention  # WavLM has but one
    if family == "parakeet_ctc":
        steadied(config, config.encoder_config, how, PARAKEET_DROPOUTS, attention)
    else:
        steadied(config, config, how, DROPOUTS, attention)
    return config


def _scratch_config(how: CtcScratch) -> Any:
    if how.family == "parakeet":
        return ParakeetCTCConfig(encoder_config=parakeet_scratch(how))
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
