"""Whispers with fresh weights in the Hub's layout, which both sides load: nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """Of a Whisper. A vocabulary of 0 is as large as its tokenizer: 256 bytes and the special tokens."""

    d_model: int
    layers: int
    heads: int
    vocabulary: int
    window_s: int = 30
    mels: int = 80


TINY = Shape(384, 4, 6, 51_865)  # openai/whisper-tiny
SPECIALS = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")


def make_whisper(folder: Path, shape: Shape, seed: int = 1) -> None:
    """Writes model and processor. Text is written in bytes, whatever the size of the vocabulary."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    letters = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    n = max(len(letters), shape.vocabulary - len(SPECIALS))
    letters += [f"no letter {i}" for i in range(len(letters), n)]  # entries that no text can ever give
    tokenizer = WhisperTokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{s}|>" for s in SPECIALS]})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.set_prefix_tokens(predict_timestamps=False)
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=shape.mels,
        d_model=shape.d_model,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.d_model,
        decoder_ffn_dim=4 * shape.d_model,
        max_source_positions=50 * shape.window_s,
        **special,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    generation = GenerationConfig(suppress_tokens=[], begin_suppress_tokens=[], max_length=448, **special)
    generation.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    generation.is_multilingual = False
    generation.return_timestamps = False
    model.generation_config = generation
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=shape.mels, chunk_length=shape.window_s)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
