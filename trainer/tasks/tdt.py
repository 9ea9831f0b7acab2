"""Parakeet transducers: TDT (Xu et al., 2023), whose tokens last some frames, and RNN-T (Graves, 2012), whose do not.

A conformer hears log-mel, an LSTM reads the tokens said so far, a joint network scores each pair of both. The loss is
ours (trainer.losses.transducer); exports load in plain transformers, whose greedy generation says the same.

B batch · T samples (16 kHz) · M mel bins · F mel frames (10 ms) · P encoder frames · H joint width · L labels
U token positions (L + 1) · V vocabulary with the blank · D durations
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoFeatureExtractor,
    GenerationConfig,
    ParakeetFeatureExtractor,
    ParakeetForRNNT,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)

from trainer.data.audio import padded_samples, samples_of
from trainer.data.features import ParakeetMel, stack_spans
from trainer.errors import BadRecipe
from trainer.losses.transducer import arc_scores, has_path, rnnt_losses, tdt_losses
from trainer.norms import keep_batch_norms_still
from trainer.recipe.eval import Decode
from trainer.recipe.tdt import TdtModel, TdtRecipe, TdtScratch
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
from trainer.tasks.letters import parakeet_letters
from trainer.tasks.utterances import Utterance, moved, noise, stack_tokens, stack_waves

MODELS = {"parakeet_tdt": ParakeetForTDT, "parakeet_rnnt": ParakeetForRNNT}
JOINT_NUMBERS = 1 << 25  # logits of the joint network held at once: 128 MiB, and as much again for their gradient
LORA_TARGETS = {
    "all-linear": r".*\.(q_proj|k_proj|v_proj|o_proj|linear1|linear2)",
    "attention": r".*\.(q_proj|v_proj)",
}
FRESH = ["decoder.embedding", "joint.head"]  # what another vocabulary makes anew


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
        return moved(self, device)


class TdtTask(AcousticTask[TdtRecipe]):
    """Task `tdt`: see trainer.task.Task for what each method promises."""

    losses_of = ("transducer",)

    def __init__(self, recipe: TdtRecipe) -> None:
        tokenizer = _tokenizer(recipe.model)
        config = _config(recipe.model, tokenizer)
        super().__init__(recipe, _extractor(recipe.model), tokenizer, config, int(config.blank_token_id))
        self.durations: list[int] | None = list(config.durations) if config.model_type == "parakeet_tdt" else None
        self._mel = ParakeetMel(self.extractor)

    # ---- networks

    def build(self, saved: Path | None = None) -> Parts:
        lora = self.recipe.adapters
        if saved is None or lora is not None:
            model = self._base()
        else:
            model = self._loaded(str(saved), None, hub.saved_dtype(self.recipe.loop), fresh=False)
        model.generation_config = self._generation()
        if self.recipe.model.batch_statistics == "frozen":
            keep_batch_norms_still(model)
        if self.recipe.loop.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        whole = FRESH if self.recipe.model.makes_vocabulary else None
        return Parts(hub.adapted(model, lora, saved, LORA_TARGETS, whole))

    def _group_of(self, name: str) -> str:
        if "joint." in name or "encoder_projector." in name:
            return "head"
        return "decoder" if re.search(r"(^|\.)decoder\.", name) else "encoder"

    @property
    def _below(self) -> str:
        return r"\.subsampling\.|(^|\.)decoder\.embedding\."

    # ---- an utterance

    def fits(self, text: str, n_samples: int) -> bool:
        """Whether there is a path through the lattice: always, where a token may last no frame at all."""
        n = self.n_frames(n_samples)
        if self.durations is None or {0, 1} <= set(self.durations):
            return n >= 1
        return has_path(n, len(self._tokens(text)), self.durations)

    def n_frames(self, n_samples: int) -> int:
        return self._frames(self._mel.frames(n_samples))

    def _frames(self, n_mel: int) -> int:
        return parakeet_frames(self.config.encoder_config, n_mel)

    def _why_not(self, tokens: list[int], n_frames: int) -> str:
        return f"its transcript of {len(tokens)} tokens does not fit the {n_frames} frames of its audio"

    def _masked_over(self, n_samples: int) -> tuple[int, int]:
        return int(self.extractor.feature_size), self._mel.frames(n_samples)

    def collate(self, items: Sequence[Utterance]) -> TdtBatch:
        mel = [self._mel.frames(len(i.wave_T)) for i in items]
        most = int(self.config.max_symbols_per_step)
        return TdtBatch(
            ids=[i.id for i in items],
            counts={"transducer": sum(len(i.tokens) for i in items)},
            most_steps=tuple(most * self._frames(n + 1) - 1 for n in mel),  # as ParakeetForTDT.generate has it
            wave_BT=stack_waves(items),
            samples_B=torch.tensor([len(i.wave_T) for i in items]),
            frames_B=torch.tensor([self._frames(n) for n in mel]),
            tokens_B=torch.tensor([len(i.tokens) for i in items]),
            label_BL=stack_tokens([i.tokens for i in items], self.blank),
            freq_spans=stack_spans([i.freq_spans for i in items]),
            time_spans=stack_spans([i.time_spans for i in items]),
        )

    def dummy(self, n: int, seconds: float, tokens: int) -> TdtBatch:
        padded = padded_samples(samples_of(seconds), self.recipe.data.edge_s)
        some = next(i for i in range(self.config.vocab_size) if i != self.blank)
        return self.collate(noise(n, padded, [some] * max(1, tokens)))

    # ---- a batch, on the device

    def prepare(self, batch: TdtBatch, parts: Parts, train: bool) -> TdtBatch:
        dtype = next(parts.module.parameters()).dtype
        return replace(batch, mel_BFM=parakeet_mel(self._mel, batch, train).to(dtype))

    def losses(self, module: nn.Module, batch: TdtBatch) -> dict[str, Tensor]:
        model, how = plain(module), self.recipe.transducer
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

    def weights(self, done: float) -> Mapping[str, float]:
        return dict.fromkeys(self.losses_of, 1.0)

    def predict(self, module: nn.Module, batch: TdtBatch, decode: Decode) -> list[Row]:
        """The best token, and its best duration, step by step; rows hold `id` and `text`."""
        model = plain(module)
        return self._rows(batch.ids, self._greedy(model, self._heard(model, batch), batch, decode.max_new_tokens))

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

    # ---- helpers

    def _processor(self) -> Any:
        kind = "rnnt" if self.durations is None else "tdt"
        return ParakeetProcessor(self.extractor, self.tokenizer, decoder_type=kind)

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
        dtype = hub.base_dtype(self.recipe.adapters)
        return self._loaded(how.name, how.revision, dtype, fresh=how.makes_vocabulary)

    def _loaded(self, name: str, revision: str | None, dtype: torch.dtype, *, fresh: bool) -> Any:
        return hub.with_weights(
            MODELS[self.config.model_type],
            name,
            revision,
            config=self.config,
            dtype=dtype,
            attn_implementation=self.recipe.model.attention,
            ignore_mismatched_sizes=fresh,
        )


def _extractor(how: TdtModel) -> Any:
    if how.from_scratch is None:
        return hub.beside_weights(AutoFeatureExtractor, how.name, how.revision)
    return ParakeetFeatureExtractor(feature_size=how.from_scratch.mels)


def _tokenizer(how: TdtModel) -> Any:
    if not how.makes_vocabulary:
        return own_tokenizer(how)
    assert how.letters is not None, "Recipe.resolved found none"
    return parakeet_letters(how.letters, transducer=True)


def _config(how: TdtModel, tokenizer: Any) -> Any:
    config = trained_config(how) if how.from_scratch is None else _scratch_config(how.from_scratch)
    if config.model_type not in MODELS:
        raise BadRecipe.one("train.model.name", f"{how.name} is a {config.model_type}: known are {', '.join(MODELS)}")
    if how.makes_vocabulary:
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        config.blank_token_id = tokenizer.convert_tokens_to_ids("<blank>")
    steadied(config, config.encoder_config, how, PARAKEET_DROPOUTS, how.attention)
    return config


def _scratch_config(how: TdtScratch) -> Any:
    shared = {
        "encoder_config": parakeet_scratch(how),
        "decoder_hidden_size": how.decoder_dim,
        "num_decoder_layers": how.decoder_layers,
    }
    return ParakeetRNNTConfig(**shared) if how.kind == "rnnt" else ParakeetTDTConfig(**shared, durations=how.durations)
