"""Which speech-to-text models transformers knows, how each is run here, and why the others are not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.errors import BadRecipe
from trainer.tasks.decoders import (
    AnyDecoder,
    CanaryDecoder,
    Decoder,
    SeamlessDecoder,
    Speech2TextDecoder,
    SpeechT5Decoder,
    StreamingDecoder,
)
from trainer.tasks.encoders import (
    Encoder,
    FastConformer,
    Moonshine,
    MoonshineStreaming,
    Seamless,
    Speech2Text,
    SpeechT5,
    Waves,
)


@dataclass(frozen=True)
class Family:
    """How the models of a kind are run."""

    encoder: Encoder
    decoder: Decoder


PLAIN: dict[str, tuple[Callable[[Any], Encoder], Decoder]] = {
    "speech_to_text": (Speech2Text, Speech2TextDecoder("lm_head")),
    "speecht5": (SpeechT5, SpeechT5Decoder("text_decoder_postnet")),
    "moonshine": (Moonshine, Decoder()),
    "moonshine_streaming": (MoonshineStreaming, StreamingDecoder()),
    "canary": (FastConformer, CanaryDecoder()),
    "cohere_asr": (FastConformer, Decoder()),
    "seamless_m4t": (Seamless, SeamlessDecoder("lm_head")),
    "seamless_m4t_v2": (Seamless, SeamlessDecoder("lm_head")),
}
JOINED = "speech-encoder-decoder"
WAVES = ("wav2vec2", "hubert", "wavlm")  # which may be its encoder

_SPEAKS = "it is a language model that takes sound among its tokens, and has no decoder that listens to an encoder"
REFUSED = {
    "whisper": "say task: whisper, which pads it as it should be",
    "dia": "it makes speech of text",
    "pop2piano": "it makes notes of music",
    "vibevoice": "it makes speech of text",
    "kyutai_speech_to_text": "it writes as it listens, a token a frame of a codec: it has no encoder",
    **dict.fromkeys(
        (
            "fun_asr_nano",
            "granite_speech",
            "granite_speech_plus",
            "qwen3_asr",
            "vibevoice_asr",
            "voxtral",
            "voxtral_realtime",
        ),
        _SPEAKS,
    ),
}


def family_of(name: str, config: Any) -> Family:
    """How this model is run. Raises BadRecipe, in one sentence, where it can't be."""
    kind = str(config.model_type)
    if kind in PLAIN:
        encoder, decoder = PLAIN[kind]
        return Family(encoder(config), decoder)
    if kind == JOINED:
        if config.encoder.model_type not in WAVES:
            raise _not(name, f"its encoder is a {config.encoder.model_type}: known here are {', '.join(WAVES)}")
        return Family(Waves(config.encoder), AnyDecoder())
    known = ", ".join([JOINED, *PLAIN])
    raise _not(name, f"it is a {kind}: {REFUSED.get(kind, f'known here are {known}')}")


def _not(name: str, why: str) -> BadRecipe:
    return BadRecipe.one("train.model.name", f"{name} can't be trained as seq2seq: {why}")
