"""Any encoder-decoder that listens and writes, by AutoModelForSpeechSeq2Seq: which ones, see seq2seq_families.

What an utterance yields is what the stock model yields for it alone and unpadded. Features are the model's own, made an
utterance by itself; exports load in plain transformers.

B batch · T samples (16 kHz) · F feature frames · M width of a feature · P encoder positions · L label tokens
K labelled positions of the whole batch · D model width · V vocabulary
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from trainer.data.audio import RATE, padded_samples, samples_of
from trainer.data.drawn import Drawn, Spans, draw_lengths, draw_spans, own, read_drawn
from trainer.data.features import mask_spans, stack_spans
from trainer.data.noise import noise_of, open_noises
from trainer.data.places import open_cache
from trainer.errors import AudioError
from trainer.losses.distill import divergence
from trainer.losses.labelled import cross_entropy, sum_by_row
from trainer.metrics.transcripts import score_transcripts
from trainer.norms import keep_batch_norms_still
from trainer.recipe.eval import Decode
from trainer.recipe.seq2seq import Seq2SeqRecipe
from trainer.recipe.written import written
from trainer.task import Bad, Draw, Example, Fitted, Parts, Report, Row, Size
from trainer.tasks import hub
from trainer.tasks.beside import Beside, steadied
from trainer.tasks.depths import depths_of
from trainer.tasks.encoders import Sound
from trainer.tasks.hub import plain
from trainer.tasks.letters import Strangers, encoded
from trainer.tasks.masks import own as own_positions
from trainer.tasks.presets import presets_of
from trainer.tasks.prompts import end_of, prompt_of
from trainer.tasks.seq2seq_families import family_of
from trainer.tasks.teacher import Teacher
from trainer.tasks.utterances import labelled, moved

SHORTEST = 400  # samples: one window of any of the feature extractors
NEVER_FELT = ("masked_spec_embed",)  # SpecAugment is ours: waiting for its gradient would be for ever
PROJECTOR = ("enc_to_dec_proj.", "decoder.proj.")
BELOW = (
    r"\.(conv\d?|groupnorm|feature_extractor|feature_encoder|feature_projection|pos_conv_embed|subsampling|embedder"
    r"|embed_positions|distance_embedding|pos_emb)\.|masked_spec_embed"
)


@dataclass(frozen=True)
class Heard:
    """One utterance: a wave (T,) or features (F, M), how long in the batch, what is said, what is masked."""

    id: str
    input: np.ndarray
    n: int  # of its samples or frames are its own: an extractor may fill up the last frame
    padded: int  # samples, or feature frames
    tokens: list[int]
    freq_spans: Spans
    time_spans: Spans
    by_teacher: "Heard | None" = None


@dataclass(frozen=True)
class Seq2SeqBatch:
    """Utterances of one padded length."""

    ids: Sequence[str]
    counts: Mapping[str, int]
    sound: Tensor  # float32: (B, T), or (B, F, M) with zeros behind each
    inputs_B: Tensor  # int64: own lengths of it
    extents_B: Tensor  # int64: and as the extractor gives it
    positions_B: Tensor  # int64: and of what the encoder makes of it
    input_BL: Tensor  # int64: prompt and text
    label_index_K: Tensor  # int64: which of the B·L positions are labelled
    label_K: Tensor  # int64
    label_row_K: Tensor  # int64: whose label it is
    freq_spans: Tensor  # (B, n, 2) int64
    time_spans: Tensor
    by_teacher: "Seq2SeqBatch | None" = None  # the same utterances as the teacher hears them
    teacher_KV: Tensor | None = None  # what the teacher says at the labelled positions: log-probabilities

    def to(self, device: torch.device) -> "Seq2SeqBatch":
        return moved(self, device)


@dataclass
class Encoded(BaseModelOutput):
    """What generation is given of an encoder."""

    attention_mask: Tensor | None = None


class Seq2SeqTask:
    """Task `seq2seq`: see trainer.task.Task for what each method promises."""

    def __init__(self, recipe: Seq2SeqRecipe) -> None:
        self.recipe = recipe
        how = recipe.model
        self.config = hub.beside_weights(AutoConfig, how.name, how.revision)
        self.family = family_of(how.name, self.config)
        self.attention = steadied(self.config, how.dropout, how.attention)
        self.beside = Beside(how.name, how.revision)
        self.extractor, self.tokenizer = self.beside.extractor, self.beside.tokenizer
        generation = _generation(how.name, how.revision, self.config)
        self.prompt = prompt_of(how, self.beside.processor, self.tokenizer, generation)
        self.end = end_of(how, self.tokenizer, generation)
        self.max_tokens = self.family.decoder.most_tokens(self.config)
        self._audio = open_cache(recipe.data)
        self._noises = open_noises(recipe)
        self._strangers = Strangers(self.tokenizer)
        self._teacher = Teacher(recipe, Seq2SeqTask) if recipe.loss.distill else None

    @property
    def losses_of(self) -> Sequence[str]:
        return ("ce", "kl") if self._teacher else ("ce",)

    # ---- networks

    def build(self, saved: Path | None = None) -> Parts:
        how, lora = self.recipe.model, self.recipe.adapters
        fresh = saved is None or lora is not None
        model = hub.with_weights(
            AutoModelForSpeechSeq2Seq,
            how.name if fresh else str(saved),
            how.revision if fresh else None,
            config=self.config,
            dtype=hub.base_dtype(lora) if fresh else hub.saved_dtype(self.recipe.loop),
            attn_implementation=self.attention,
        )
        keep_batch_norms_still(model)
        if how.freeze_features:
            self.family.encoder.freeze_convolutions(model.get_encoder())
        for layer in self.family.encoder.taken_apart(model.get_encoder()):
            layer.is_taken_apart = True  # no unit of its own where weights are dealt
        for name, p in model.named_parameters():
            if name.endswith(NEVER_FELT):
                p.requires_grad_(False)
        if self.recipe.loop.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        module = hub.adapted(model, lora, saved, presets_of(model))
        if self._teacher is None:
            return Parts(module)
        network = self._teacher.join(saved)
        self._check_teacher(model, self._teacher, plain(network))
        return Parts(module, {"teacher": network})

    def _check_teacher(self, model: Any, teacher: "Teacher[Seq2SeqTask]", network: Any) -> None:
        """Both write with the same tokens, after the same prompt."""
        theirs = teacher.task
        sizes = (_vocabulary(model), _vocabulary(network))
        teacher.share_words(
            (self.recipe.model.name, self.tokenizer.get_vocab(), sizes[0]), (theirs.tokenizer.get_vocab(), sizes[1])
        )
        teacher.same(
            "prompt and closing token",
            self.recipe.model.name,
            teacher.token_of(torch.tensor([*self.prompt, self.end])).tolist(),
            [*theirs.prompt, theirs.end],
        )
        teacher.longer("tokens", self.recipe.model.name, self.max_tokens, theirs.max_tokens)

    def groups(self, module: nn.Module) -> Mapping[str, list[str]]:
        listens = {id(p) for p in plain(module).get_encoder().parameters()}
        found: dict[str, list[str]] = {group: [] for group in self.recipe.GROUPS}
        for name, p in module.named_parameters():
            if p.requires_grad:
                joins = any(place in name for place in PROJECTOR)
                found["encoder" if id(p) in listens else "projector" if joins else "decoder"].append(name)
        return found

    def depths(self, module: nn.Module) -> Mapping[str, int]:
        return depths_of((name for name, _ in module.named_parameters()), BELOW)

    def save(self, module: nn.Module, directory: Path) -> None:
        hub.save(module, directory, self.beside)
        if self._teacher:
            self._teacher.leave_word(directory)

    def export(self, module: nn.Module, directory: Path) -> None:
        hub.export(module, directory, self.beside)

    # ---- an utterance

    def drawn(self, example: Example, draw: Draw | None) -> Drawn:
        data = self.recipe.data
        return draw_lengths(example, draw, own(draw, self.recipe), data.edge_s, data.max_s, self.fits)

    def fits(self, text: str, n_samples: int) -> bool:
        """Whether the decoder holds the text: quickly where it surely does, as a token has a byte at least."""
        room = self.max_tokens - len(self.prompt)
        return len(text.encode()) <= room or len(self._tokens(text)) - 1 <= room

    def size(self, example: Example, draw: Draw | None) -> Size:
        drawn = self.drawn(example, draw)
        return Size(drawn.padded_s, drawn.audio_s, len(drawn.text))

    def load(self, examples: Sequence[Example], draws: Sequence[Draw | None]) -> Sequence[Heard | Bad]:
        return [self._load(e, d) for e, d in zip(examples, draws, strict=True)]

    def _load(self, example: Example, draw: Draw | None) -> Heard | Bad:
        drawn, how = self.drawn(example, draw), own(draw, self.recipe)
        tokens = [self.end]
        if draw is not None:
            tokens = self._tokens(drawn.text)
            reason = self._unusable(drawn, tokens)
            if reason:
                return Bad(example.id, reason)
        try:
            wave_T = read_drawn(self._audio, example, drawn, draw, how, noise_of(how, self._noises))
            heard = self.heard(example.id, wave_T, drawn.padded, tokens)
            by_teacher = None
            if self._teacher and draw is not None:
                by_teacher = self._teacher.task.heard(example.id, wave_T, drawn.padded, tokens)
        except AudioError as e:
            return Bad(example.id, e.message)
        freq, time = draw_spans(draw, how.spec, *self.family.encoder.masked_over(heard.n))
        return replace(heard, freq_spans=freq, time_spans=time, by_teacher=by_teacher)

    def heard(self, name: str, wave_T: np.ndarray, padded: int, tokens: list[int]) -> Heard:
        """An utterance by itself, as this model hears it. Raises AudioError where it can't."""
        encoder, seconds = self.family.encoder, len(wave_T) / RATE
        if len(wave_T) < SHORTEST:
            raise AudioError(f"{seconds:.3f} s is too short for this encoder")
        made = self.extractor(wave_T, sampling_rate=RATE, return_tensors="pt")
        sound = made["input_values" if encoder.hears_waves else "input_features"]
        if len(sound) != 1:
            raise AudioError(f"{seconds:.2f} s is longer than the model's feature extractor takes in one piece")
        n = len(sound[0])
        if not encoder.hears_waves and made.get("attention_mask") is not None:
            n = int(made["attention_mask"][0].sum())
        values = sound[0, : None if encoder.hears_the_rest else n].numpy().astype(np.float32)
        positions = encoder.positions(n)
        most = encoder.most_positions()
        if positions < 1 or not np.isfinite(values).all():
            raise AudioError(f"{seconds:.3f} s is too short for this encoder")
        if most is not None and positions > most:
            raise AudioError(f"{seconds:.2f} s makes {positions} positions, the model has {most}")
        return Heard(name, values, n, math.ceil(padded / self._step), tokens, [], [])

    def _unusable(self, drawn: Drawn, tokens: list[int]) -> str:
        """Why a transcript can't be learnt; empty where it can."""
        if len(tokens) == 1:
            return f"nothing is left of its transcript {drawn.text!r} as train.model.text writes it"
        missing = self._strangers.missing(drawn.text, self.recipe.model.text)
        if missing:
            return f"the vocabulary lacks {missing!r} of its transcript: see train.model.text"
        if len(self.prompt) + len(tokens) - 1 > self.max_tokens:
            return f"a transcript of {len(tokens)} tokens does not fit the decoder's {self.max_tokens}"
        return ""

    def _tokens(self, text: str) -> list[int]:
        return [*encoded(self.tokenizer, written(text, self.recipe.model.text)), self.end]

    @property
    def _step(self) -> int:
        return 1 if self.family.encoder.hears_waves else self.family.encoder.samples_a_frame

    def collate(self, items: Sequence[Heard]) -> Seq2SeqBatch:
        texts = labelled(self.prompt, [i.tokens for i in items], self.end)
        teachers = [i.by_teacher for i in items if i.by_teacher is not None]
        counts = {"ce": len(texts.label_K)}
        if self._teacher:
            counts["kl"] = counts["ce"]
        n = [i.n for i in items]
        return Seq2SeqBatch(
            ids=[i.id for i in items],
            counts=counts,
            sound=_stacked(items),
            inputs_B=torch.tensor(n),
            extents_B=torch.tensor([len(i.input) for i in items]),
            positions_B=torch.tensor([self.family.encoder.positions(k) for k in n]),
            input_BL=texts.input_BL,
            label_index_K=texts.index_K,
            label_K=texts.label_K,
            label_row_K=texts.row_K,
            freq_spans=stack_spans([i.freq_spans for i in items]),
            time_spans=stack_spans([i.time_spans for i in items]),
            by_teacher=self._teacher.task.collate(teachers) if self._teacher and teachers else None,
        )

    def dummy(self, n: int, seconds: float, tokens: int) -> Seq2SeqBatch:
        padded = padded_samples(samples_of(seconds), self.recipe.data.edge_s)
        wave_T = np.random.default_rng(0).normal(0, 0.1, size=padded).astype(np.float32)
        ids = [self.end] * max(1, min(tokens, self.max_tokens - len(self.prompt)))
        item = self.heard("dummy", wave_T, padded, ids)
        if self._teacher:
            item = replace(item, by_teacher=self._teacher.task.heard("dummy", wave_T, padded, ids))
        return self.collate([replace(item, id=f"dummy-{i}") for i in range(n)])

    # ---- a batch, on the device

    def prepare(self, batch: Seq2SeqBatch, parts: Parts, train: bool) -> Seq2SeqBatch:
        sound = batch.sound
        if train and not self.family.encoder.hears_waves and batch.freq_spans.shape[1] + batch.time_spans.shape[1]:
            sound = mask_spans(sound.transpose(1, 2), batch.freq_spans, batch.time_spans).transpose(1, 2)
        batch = replace(batch, sound=sound.to(_dtype(parts.module)))
        if self._teacher is None or not train or batch.by_teacher is None:
            return batch
        teacher, network = self._teacher, parts.frozen["teacher"]
        hears = teacher.task.prepare(batch.by_teacher, Parts(network), False)
        hears = replace(hears, input_BL=teacher.token_of(batch.input_BL), label_index_K=batch.label_index_K)
        said_KV = teacher.says(lambda: teacher.task.logits(network, hears), batch.sound.device)
        return replace(batch, by_teacher=None, teacher_KV=said_KV)

    def losses(self, module: nn.Module, batch: Seq2SeqBatch) -> dict[str, Tensor]:
        logits_KV = self.logits(module, batch)
        n, row_K = len(batch.ids), batch.label_row_K
        smoothing = self.recipe.loss.label_smoothing if module.training else 0.0
        found = {"ce": cross_entropy(logits_KV, batch.label_K, row_K, n, smoothing)}
        if self._teacher:
            assert batch.teacher_KV is not None, "prepare asks the teacher"
            kl_K = divergence(logits_KV, batch.teacher_KV, self._teacher.how.temperature)
            found["kl"] = sum_by_row(kl_K, row_K, n)
        return found

    def logits(self, module: nn.Module, batch: Seq2SeqBatch) -> Tensor:
        """(K, V): at the labelled positions alone."""
        model, decoder = plain(module), self.family.decoder
        states_BPD = self._states(module, batch)
        own_BP = own_positions(batch.positions_B, states_BPD.shape[1])
        hidden_BLD = decoder.hidden(model, batch.input_BL, states_BPD, own_BP)
        return decoder.logits(model, hidden_BLD.flatten(0, 1).index_select(0, batch.label_index_K))

    def _states(self, module: nn.Module, batch: Seq2SeqBatch) -> Tensor:
        none = batch.freq_spans[:, :0]
        freq, time = (batch.freq_spans, batch.time_spans) if module.training else (none, none)
        sound = Sound(batch.sound, batch.inputs_B, batch.extents_B, batch.positions_B, freq, time)
        return self.family.encoder(plain(module).get_encoder(), sound)

    def weights(self, done: float) -> Mapping[str, float]:
        distill = self.recipe.loss.distill
        return distill.weights("ce", done) if distill else {"ce": 1.0}

    def predict(self, module: nn.Module, batch: Seq2SeqBatch, decode: Decode) -> list[Row]:
        """Greedy or beam search by transformers' own generation; rows hold `id` and `text`."""
        model = plain(module)
        states_BPD = self._states(module, batch)
        own_BP = own_positions(batch.positions_B, states_BPD.shape[1]).long()
        more = {}
        if self.family.decoder.masks_inputs:
            more["attention_mask"] = own_positions(batch.inputs_B, batch.sound.shape[1]).long()
        # the model's own generate() of some kinds asks for a language or cuts at a rate: both are decided already
        tokens_BL = GenerationMixin.generate(
            model,
            decoder_input_ids=torch.tensor([self.prompt], device=states_BPD.device).expand(len(batch.ids), -1),
            encoder_outputs=Encoded(last_hidden_state=states_BPD, attention_mask=own_BP),
            max_new_tokens=min(decode.max_new_tokens, self.max_tokens - len(self.prompt)),
            num_beams=decode.beams,
            do_sample=False,
            **more,
        )
        texts = self.tokenizer.batch_decode(tokens_BL[:, len(self.prompt) :], skip_special_tokens=True)
        return [{"id": i, "text": t.strip()} for i, t in zip(batch.ids, texts, strict=True)]

    def final_decodes(self, decode: Decode) -> Mapping[str, Decode]:
        return {"greedy" if decode.beams == 1 else f"{decode.beams} beams": decode}

    def score(self, rows: Iterable[Row], fitted: Fitted | None = None) -> Report:
        return score_transcripts(rows, self.recipe.eval)


def _stacked(items: Sequence[Heard]) -> Tensor:
    """(B, T) or (B, F, M) float32, quiet behind each; a micro-batch is homogeneous in padded length."""
    padded = items[0].padded
    assert all(i.padded == padded for i in items), "a micro-batch is homogeneous in padded length"
    sound = torch.zeros(len(items), padded, *items[0].input.shape[1:])
    for b, item in enumerate(items):
        sound[b, : len(item.input)] = torch.from_numpy(item.input)
    return sound


def _dtype(module: nn.Module) -> torch.dtype:
    """Of the weights that listen; those in four bits have none of their own."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _vocabulary(model: Any) -> int:
    """How many tokens the head tells apart."""
    return int(model.get_output_embeddings().weight.shape[0])


def _generation(name: str, revision: str | None, config: Any) -> Any:
    """How the model decodes, by its own file, or by its configuration where it has none."""
    try:
        return GenerationConfig.from_pretrained(name, revision=revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(config)
