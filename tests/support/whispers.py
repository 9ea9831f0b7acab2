"""Whispers that were never trained and yet listen: what they write depends on the sound."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from trainer.recipe.load import parse_recipe
from trainer.task import make_task


def talkative(folder: Path, train: Mapping[str, Any], seed: int = 7) -> Path:
    """The model of a recipe as the Hub has it, with random weights that listen closely."""
    task: Any = make_task(parse_recipe(dict(train)))
    torch.manual_seed(seed)
    module = task.build().module
    _listen(module)
    task.export(module, folder)
    (folder / "recipe.json").write_text(json.dumps(parse_recipe(dict(train)).model_dump(mode="json")))
    (folder / "provenance.json").write_text(json.dumps({"run": "talkative", "commit": "abc", "weights": "as it came"}))
    return folder


def many_tongued(folder: Path) -> Path:
    """With the layout of Whisper's own vocabulary: 99 languages, tasks and times at their places (51,865 tokens)."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    letters = sorted(ByteLevel.alphabet())
    plain = [*letters, *(f"Ġ{a}{b}!" for a in letters for b in letters)][:50256]
    plain.append("")  # by which CTranslate2 tells Whisper's vocabulary from the English one
    codes = list(LANGUAGES)[:99]  # the hundredth came with large-v3
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{c}|>" for c in codes)]
    specials += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    specials += ["<|notimestamps|>", *(f"<|{0.02 * n:.2f}|>" for n in range(1501))]
    tokenizer = WhisperTokenizer(vocab={t: n for n, t in enumerate([*plain, specials[0]])}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": specials[1:108]})
    tokenizer.add_tokens(specials[108:])
    end, start = 50257, 50258
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        **special,
    )
    model = WhisperForConditionalGeneration(config)
    _listen(model)
    # what is suppressed, as Whisper's own configurations have it
    model.generation_config = GenerationConfig(
        suppress_tokens=[5, 60, 300], begin_suppress_tokens=[220, end], max_length=448, **special
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(folder)
    return folder


def _listen(module: Any) -> None:
    """Turn up what comes from the sound, and turn down what a token says of the next."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p.mul_(8.0 if "encoder_attn" in name or "conv" in name else 3.0)
