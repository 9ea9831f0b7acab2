"""Qwen3-ASR with fresh weights, driven directly: sound in, cross-entropy at the labelled positions of its text out.

B batch · S seconds · F mel frames · L tokens, the sound's own among them · K labelled positions · D model width
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.flops import Attention, Work, matrices_of

POSITIONS_A_CHUNK = 13  # a second of sound, through three strides of two


def make_qwen(tiny: bool) -> nn.Module:
    """Of 1.7 billion weights, as Qwen/Qwen3-ASR-1.7B, or of a few thousand."""
    from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

    if not tiny:
        return Qwen3ASRForConditionalGeneration(Qwen3ASRConfig(audio_config={"output_dim": 2048}))
    audio = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16}
    audio |= {"output_dim": 32, "downsample_hidden_size": 8, "num_mel_bins": 16}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 128, "tie_word_embeddings": True}
    config = Qwen3ASRConfig(audio_config=audio, text_config=text, audio_token_id=127, pad_token_id=0, eos_token_id=1)
    return Qwen3ASRForConditionalGeneration(config)


def batch_of(model: Any, n: int, seconds: int, n_text: int, seed: int) -> dict[str, Tensor]:
    """Noise of whole seconds and tokens at random behind it: no fewer operations than speech."""
    rng = torch.Generator().manual_seed(seed)
    config = model.config
    mel_BMF = torch.randn(n, config.audio_config.num_mel_bins, 100 * seconds, generator=rng)
    sound = torch.full((n, POSITIONS_A_CHUNK * seconds), config.audio_token_id)
    text = torch.randint(2, config.audio_token_id, (n, n_text), generator=rng)
    return {
        "input_features": mel_BMF,
        "input_features_mask": torch.ones(n, 100 * seconds, dtype=torch.int64),
        "input_ids": torch.cat([sound, text], dim=1),
        "label_K": text.flatten(),
    }


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the text's tokens; the head sees no other position."""
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch = dict(batch)
    label_K = batch.pop("label_K")
    hidden_BLD = inside.model(**batch, use_cache=False).last_hidden_state
    n_text = len(label_K) // len(hidden_BLD)
    hidden_KD = hidden_BLD[:, -n_text - 1 : -1].flatten(0, 1)  # each predicts the token behind it
    return F.cross_entropy(inside.lm_head(hidden_KD).float(), label_K)


def qwen_work(model: nn.Module, config: Any, n: int, seconds: int, n_text: int) -> Work:
    """Its encoder attends within windows of `n_window_infer` frames, its text over all that came before and after."""
    audio, text = config.audio_config, config.text_config
    mels, chunks = audio.num_mel_bins, n * seconds
    heard = POSITIONS_A_CHUNK * chunks
    length = POSITIONS_A_CHUNK * seconds + n_text

    def vectors_of(name: str) -> int:
        for conv, (height, width) in enumerate(((mels // 2, 50), (mels // 4, 25), (mels // 8, POSITIONS_A_CHUNK)), 1):
            if f"conv2d{conv}" in name:
                return chunks * height * width
        if "audio_tower" in name or "multi_modal_projector" in name:
            return heard
        return n * n_text if name.endswith("lm_head") else n * length

    window_s = audio.n_window_infer // 100
    windows = [min(window_s, seconds - at) * POSITIONS_A_CHUNK for at in range(0, seconds, window_s)]
    listening = Attention(n * sum(w * w for w in windows), audio.d_model)
    reading = Attention(n * length * length, text.num_attention_heads * text.head_dim)
    attentions = audio.encoder_layers * (listening,) + text.num_hidden_layers * (reading,)
    return Work(tuple(matrices_of(model, vectors_of)), attentions)
