"""Very small speech-to-text models of every kind, with the real classes, saved as the Hub has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from support.speech import recipe_dict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, START, END = 0, 1, 2
COHERE = ("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|pnc|>", "<|noitn|>")
COHERE = (*COHERE, "<|notimestamp|>", "<|nodiarize|>")
JOINED = ("wav2vec2-bert", "wav2vec2-mbart", "hubert-bert", "wavlm-bert")
WHOLE = (
    "speech_to_text",
    "moonshine",
    "moonshine_streaming",
    "canary",
    "cohere_asr",
    "seamless_m4t",
    "seamless_m4t_v2",
    "speecht5",
)
KINDS = (*(k for k in WHOLE if k in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES), *JOINED)  # older versions have fewer
ASKED: dict[str, dict[str, str]] = {  # in the recipe, where a kind's prompt says more than its first token
    "canary": {"prompt": "<|startoftranscript|><|en|>"},
    "cohere_asr": {"language": "en"},
    "seamless_m4t": {"language": "eng"},
    "seamless_m4t_v2": {"language": "eng"},
}


def make_model(folder: Path, kind: str, seed: int = 0, loud: float = 3.0, width: int = 16) -> Path:
    """One of KINDS under `folder`; an untrained model says the same to everyone, `loud` makes it listen."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(COHERE if kind in ("canary", "cohere_asr") else ())
    config, extractor = CONFIGS[kind.partition("-")[0]](width, len(tokenizer), kind.partition("-")[2])
    config._attn_implementation = "eager"
    model = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and not p.is_sparse:
                p.mul_(loud)
            if name.endswith(("bias", "batch_norm.weight")):
                p.add_(torch.randn_like(p) * 0.1)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
    start = tokenizer.convert_tokens_to_ids("▁" if kind == "cohere_asr" else "<s>")
    generation = GenerationConfig(
        bos_token_id=START, eos_token_id=END, pad_token_id=PAD, decoder_start_token_id=start, max_length=40
    )
    if kind.startswith("seamless"):
        generation.text_decoder_lang_to_code_id = {"eng": 10, "deu": 11}
    model.generation_config = generation
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if kind == "cohere_asr":
        hf.CohereAsrProcessor(extractor, tokenizer).save_pretrained(folder)
    else:
        extractor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(more: Sequence[str] = ()) -> Any:
    """All 256 bytes and the usual special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIALS, *more, *letters]
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(more),
    )  # fmt: skip


def seq2seq_dict(corpus: Path, kind: str, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """As `recipe_dict`, for one of KINDS, which is made under `corpus` where it is not there yet."""
    folder = corpus / f"model-{kind}"
    if not folder.exists():
        make_model(folder, kind)
    train = recipe_dict(corpus, **{k: v for k, v in sections.items() if k != "model"})
    model = {"name": str(folder), **ASKED.get(kind, {}), "dropout": 0.0, **sections.get("model", {})}
    return {**train, "task": "seq2seq", "model": model}


SPECIAL = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
Made = tuple[Any, Any]


def _speech_to_text(width: int, vocabulary: int, _: str) -> Made:
    config = hf.Speech2TextConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, conv_channels=16,
        input_feat_per_channel=16, max_source_positions=200, max_target_positions=40, scale_embedding=False, **SPECIAL,
    )  # fmt: skip
    return config, hf.Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)


def _moonshine(width: int, vocabulary: int, _: str) -> Made:
    config = hf.MoonshineConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=32, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        max_position_embeddings=40, **SPECIAL,
    )  # fmt: skip
    return config, hf.Wav2Vec2FeatureExtractor(do_normalize=False)


def _moonshine_streaming(width: int, vocabulary: int, _: str) -> Made:
    encoder = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "sliding_windows": [[6, 2], [6, 0]], "max_position_embeddings": 200,
    }  # fmt: skip
    config = hf.MoonshineStreamingConfig(
        encoder_config=encoder, vocab_size=vocabulary, hidden_size=width, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=200, **SPECIAL,
    )  # fmt: skip
    return config, hf.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)


FAST = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_mel_bins": 16,
    "subsampling_factor": 4, "subsampling_conv_channels": 8,
}  # fmt: skip


def _canary(width: int, vocabulary: int, _: str) -> Made:
    decoder = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": PAD,
    }  # fmt: skip
    config = hf.CanaryConfig(encoder_config=FAST, decoder_config=decoder, vocab_size=vocabulary, **SPECIAL)
    return config, hf.ParakeetFeatureExtractor(feature_size=16)


def _cohere(width: int, vocabulary: int, _: str) -> Made:
    config = hf.CohereAsrConfig(
        encoder_config={"model_type": "parakeet_encoder", **FAST}, vocab_size=vocabulary, hidden_size=width,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40,
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END, decoder_start_token_id=4,
    )  # fmt: skip
    return config, hf.CohereAsrFeatureExtractor(feature_size=16)


def _seamless(cls: Any, width: int, vocabulary: int) -> Made:
    config = cls(
        vocab_size=vocabulary, hidden_size=width, max_position_embeddings=40, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        speech_encoder_layers=1, speech_encoder_attention_heads=2, speech_encoder_intermediate_size=32,
        feature_projection_input_dim=32, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        conv_depthwise_kernel_size=5, max_source_positions=200, adaptor_kernel_size=4, adaptor_stride=4, **SPECIAL,
    )  # fmt: skip
    if hasattr(config, "speech_encoder_chunk_size"):
        config.speech_encoder_chunk_size, config.speech_encoder_left_chunk_num = 12, 1
    return config, hf.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, stride=2)


CONV = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


def _speecht5(width: int, vocabulary: int, _: str) -> Made:
    config = hf.SpeechT5Config(
        vocab_size=vocabulary, hidden_size=width, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_speech_positions=200,
        max_text_positions=40, encoder_max_relative_position=20, **CONV, **SPECIAL,
    )  # fmt: skip
    return config, hf.SpeechT5FeatureExtractor()


def _joined(cls: Any, width: int, vocabulary: int, writer: str) -> Made:
    more = {"add_adapter": True, "num_adapter_layers": 2} if writer == "mbart" else {}
    norm = "layer" if writer == "mbart" else "group"
    encoder = cls(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, feat_extract_norm=norm,
        conv_bias=norm == "layer", do_stable_layer_norm=norm == "layer", **CONV, **more,
    )  # fmt: skip
    if writer == "bert":
        decoder: Any = hf.BertConfig(
            vocab_size=vocabulary, hidden_size=width + 8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=40, is_decoder=True, add_cross_attention=True,
        )  # fmt: skip
    else:
        decoder = hf.MBartConfig(
            vocab_size=vocabulary, d_model=width, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
            max_position_embeddings=40, is_decoder=True, add_cross_attention=True,
        )  # fmt: skip
    config = hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    for name, value in SPECIAL.items():
        setattr(config, name, value)
    return config, hf.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")


CONFIGS: dict[str, Any] = {
    "speech_to_text": _speech_to_text,
    "moonshine": _moonshine,
    "moonshine_streaming": _moonshine_streaming,
    "canary": _canary,
    "cohere_asr": _cohere,
    "seamless_m4t": lambda w, v, _: _seamless(hf.SeamlessM4TConfig, w, v),
    "seamless_m4t_v2": lambda w, v, _: _seamless(hf.SeamlessM4Tv2Config, w, v),
    "speecht5": _speecht5,
    "wav2vec2": lambda w, v, writer: _joined(hf.Wav2Vec2Config, w, v, writer),
    "hubert": lambda w, v, writer: _joined(hf.HubertConfig, w, v, writer),
    "wavlm": lambda w, v, writer: _joined(hf.WavLMConfig, w, v, writer),
}
