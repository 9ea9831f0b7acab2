"""The other side: transformers' Seq2SeqTrainer, set up as its example run_speech_recognition_seq2seq.py has it.

Features are made once by `Dataset.map`, padded to 30 s, and read back in every step; batches are put together by the
example's collator, whose meaning is written down again here. `own_length` is not the example's: it pads features to the
clip alone and runs the encoder over just those, so that what is left is what the loops give.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import soundfile
import torch
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

RATE = 16_000


@dataclass
class Collator:
    """As DataCollatorSpeechSeq2SeqWithPadding: features and labels padded, labels by -100, their start cut off."""

    processor: Any
    decoder_start_token_id: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        heard = [{"input_features": f["input_features"]} for f in features]
        batch = self.processor.feature_extractor.pad(heard, return_tensors="pt")
        labels = self.processor.tokenizer.pad([{"input_ids": f["labels"]} for f in features], return_tensors="pt")
        labels_BL = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
        if (labels_BL[:, 0] == self.decoder_start_token_id).all():
            labels_BL = labels_BL[:, 1:]
        batch["labels"] = labels_BL
        return dict(batch)


@dataclass
class Stock:
    """One training at a time, with the numbers that our side has."""

    model: Path
    manifest: Path
    place: Path
    steps: int
    batch: int
    lr: float
    precision: str
    attention: str
    own_length: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        datasets.disable_progress_bars()
        self.processor = WhisperProcessor.from_pretrained(self.model)
        self.processor.tokenizer.set_prefix_tokens(predict_timestamps=False)
        rows = [json.loads(line) for line in self.manifest.read_text().splitlines()]
        self.rows = [{**r, "audio": str(self.manifest.parent / r["audio"])} for r in rows]
        self.features: Any = None

    def make_features(self) -> None:
        """What the example does before its training begins, of every utterance once."""
        extractor, tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        samples = max(round(r["duration_s"] * RATE) for r in self.rows) if self.own_length else None

        def prepared(row: dict[str, Any]) -> dict[str, Any]:
            wave_T, rate = soundfile.read(row["audio"], dtype="float32")
            how = {"padding": "max_length", "max_length": samples} if samples else {}
            heard = extractor(wave_T, sampling_rate=rate, **how)
            return {"input_features": heard.input_features[0], "labels": tokenizer(row["text"]).input_ids}

        table = datasets.Dataset.from_list(self.rows)
        self.features = table.map(prepared, remove_columns=table.column_names, load_from_cache_file=False)

    def set_up(self) -> Seq2SeqTrainer:
        model = WhisperForConditionalGeneration.from_pretrained(self.model, attn_implementation=self.attention)
        if self.own_length:
            _hear_own_length(model)
        how = Seq2SeqTrainingArguments(
            output_dir=str(self.place / "stock"),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch,
            learning_rate=self.lr,
            lr_scheduler_type="linear",
            warmup_steps=round(0.1 * self.steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=self.precision == "bf16",
            use_cpu=True,
            seed=self.seed,
            logging_steps=25,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            predict_with_generate=False,
        )
        collator = Collator(self.processor, model.config.decoder_start_token_id)
        trainer = Seq2SeqTrainer(
            model=model,
            args=how,
            train_dataset=self.features,
            data_collator=collator,
            processing_class=self.processor.feature_extractor,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def _hear_own_length(model: Any) -> None:
    """Our encoder's forward over as many positions as there are, in its model: nothing else of it changes."""
    from trainer.tasks.whisper import encode

    encoder = model.model.encoder

    def forward(input_features: torch.Tensor, *_: Any, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=encode(encoder, input_features))

    encoder.forward = forward
