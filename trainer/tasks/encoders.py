"""Encoders of speech models in transformers, run so that what they say of an utterance is what they say of it alone.

Stock forwards let padding in: through convolutions that reach beyond an utterance's end, norms over all padded time,
or a mask that is a frame too long. These pass the same weights in the same order and keep padding
out; unpadded, both are equal.

B batch · T samples (16 kHz) · F feature frames · M width of a feature · P encoder positions · D model width
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.features import mask_spans
from trainer.norms import OwnGroupNorm
from trainer.tasks.masks import looking_at, looking_within, own


@dataclass(frozen=True)
class Sound:
    """What is heard: waves (B, T) or features (B, F, M), own lengths of them, and of what the encoder makes of them.

    `extents_B` are lengths as they come alone: an own one, and what an extractor itself pads it by and masks.
    `freq_spans` and `time_spans` (B, n, 2) mask what a wave's convolutions made; features come masked.
    """

    input: Tensor
    inputs_B: Tensor
    extents_B: Tensor
    positions_B: Tensor
    freq_spans: Tensor
    time_spans: Tensor


class Encoder(ABC):
    """What a task asks of an encoder beside its weights."""

    hears_waves: ClassVar[bool] = False
    samples_a_frame: ClassVar[int] = 160  # how far features lie apart; of waves 1
    hears_the_rest: ClassVar[bool] = (
        False  # of a frame that an extractor fills up and masks: by convolutions, alone too
    )

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def positions(self, n: int) -> int:
        """How many positions the encoder makes of so many samples or feature frames; below 1 where they are too few."""

    def most_positions(self) -> int | None:
        """How many it can make; None: any number."""
        return None

    def masked_over(self, n: int) -> tuple[int, int]:
        """What SpecAugment masks of an input so long: bins or channels, and frames or positions."""
        return int(self.width), self.positions(n) if self.hears_waves else n

    def freeze_convolutions(self, encoder: Any) -> None:  # noqa: B027 (most have none)
        """Those over the wave that came trained without transcripts, where there are such."""

    def taken_apart(self, encoder: Any) -> Sequence[Any]:
        """Layers whose own forward is not called, but that of what is in them."""
        return ()

    @property
    @abstractmethod
    def width(self) -> int:
        """Of features, or of what convolutions over a wave make of it."""

    @abstractmethod
    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        """(B, P, D)."""


class Speech2Text(Encoder):
    """Speech2Text (Wang et al., 2020): log-mel, two convolutions of stride 2, a transformer."""

    @property
    def width(self) -> int:
        return int(self.config.input_feat_per_channel * self.config.input_channels)

    def positions(self, n: int) -> int:
        for _ in range(self.config.num_conv_layers):
            n = (n - 1) // 2 + 1
        return n

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        x_BDF, n_B = sound.input.transpose(1, 2), sound.inputs_B
        for conv in encoder.conv.conv_layers:
            x_BDF, n_B = F.glu(conv(x_BDF), dim=1), (n_B - 1) // 2 + 1
            x_BDF = x_BDF * own(n_B, x_BDF.shape[2])[:, None]
        x_BPD = encoder.embed_scale * x_BDF.transpose(1, 2)
        own_BP = own(sound.positions_B, x_BPD.shape[1])
        x_BPD = x_BPD + encoder.embed_positions((~own_BP).long())
        x_BPD = F.dropout(x_BPD, encoder.dropout, encoder.training)
        mask = looking_at(own_BP, x_BPD.shape[1], encoder.config, x_BPD.dtype)
        for layer in encoder.layers:
            x_BPD = layer(x_BPD, mask)
        states_BPD: Tensor = encoder.layer_norm(x_BPD)
        return states_BPD


class Moonshine(Encoder):
    """Moonshine (Jeffries et al., 2024): three convolutions over the wave, a norm over all of it, rotary positions."""

    hears_waves = True
    samples_a_frame = 1

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    def positions(self, n: int) -> int:
        for size, stride in ((127, 64), (7, 3), (3, 2)):
            n = (n - size) // stride + 1
        return n

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        x_BDF = torch.tanh(encoder.conv1(sound.input[:, None]))
        keep_padding_out(encoder.groupnorm, torch.div(sound.inputs_B - 127, 64, rounding_mode="floor") + 1)
        x_BDF = F.gelu(encoder.conv2(encoder.groupnorm(x_BDF)))
        x_BPD = F.gelu(encoder.conv3(x_BDF)).transpose(1, 2)
        x_BPD = masked(x_BPD, sound)
        mask = looking_at(own(sound.positions_B, x_BPD.shape[1]), x_BPD.shape[1], encoder.config, x_BPD.dtype)
        places = torch.arange(x_BPD.shape[1], device=x_BPD.device)[None]
        turned = encoder.rotary_emb(x_BPD, position_ids=places)
        for layer in encoder.layers:
            x_BPD = layer(x_BPD, attention_mask=mask, position_ids=places, position_embeddings=turned)
        states_BPD: Tensor = encoder.layer_norm(x_BPD)
        return states_BPD


class MoonshineStreaming(Encoder):
    """Moonshine's streaming form: frames of the wave, causal convolutions, attention over windows."""

    hears_waves = True
    samples_a_frame = 1

    @property
    def width(self) -> int:
        return int(self.config.encoder_config.hidden_size)

    @property
    def _frame(self) -> int:
        return round(self.config.encoder_config.sample_rate * self.config.encoder_config.frame_ms / 1000)

    def positions(self, n: int) -> int:
        n = math.ceil(n / self._frame) if n >= self._frame else 0
        for _ in range(2):
            n = (n - 1) // 2 + 1
        return n

    def most_positions(self) -> int:
        return int(self.config.max_position_embeddings)  # the decoder adds them, one an encoder's position

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        front, frame = encoder.embedder, encoder.embedder.frame_len
        wave_BT = F.pad(sound.input, (0, -sound.input.shape[1] % frame))
        x_BFD = front.comp(front.cmvn(wave_BT.reshape(len(wave_BT), -1, frame)))
        x_BFD = F.silu(front.linear(x_BFD)) * own(sound.inputs_B // frame, x_BFD.shape[1])[:, :, None]
        x_BDF, _ = front.conv1(x_BFD.transpose(1, 2))
        x_BDP, _ = front.conv2(F.silu(x_BDF))
        x_BPD = masked(x_BDP.transpose(1, 2), sound)
        own_BP = own(sound.positions_B, x_BPD.shape[1])
        masks = {
            window: looking_within(own_BP, _window(window, own_BP), encoder.config, x_BPD.dtype)
            for window in {tuple(w) for w in encoder.config.sliding_windows[: len(encoder.layers)]}
        }
        for layer, window in zip(encoder.layers, encoder.config.sliding_windows, strict=False):
            x_BPD = layer(x_BPD, attention_mask=masks[tuple(window)])
        states_BPD: Tensor = encoder.final_norm(x_BPD)
        return states_BPD


class FastConformer(Encoder):
    """Parakeet's encoder, as Canary and Cohere's have it: the stock one keeps padding out by itself."""

    @property
    def width(self) -> int:
        return int(self.config.encoder_config.num_mel_bins)

    def positions(self, n: int) -> int:
        c = self.config.encoder_config
        for _ in range(int(math.log2(c.subsampling_factor))):
            size, stride = c.subsampling_conv_kernel_size, c.subsampling_conv_stride
            n = (n + (size - 1) // 2 * 2 - size) // stride + 1
        return n

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        own_BF = own(sound.inputs_B, sound.input.shape[1])
        states_BPD: Tensor = encoder(input_features=sound.input, attention_mask=own_BF).last_hidden_state
        return states_BPD


class Seamless(Encoder):
    """SeamlessM4T's conformer (v1 and v2), and convolutions of stride 8 behind it."""

    samples_a_frame = 320  # two frames of 10 ms are one
    hears_the_rest = True

    @property
    def width(self) -> int:
        return int(self.config.feature_projection_input_dim)

    def positions(self, n: int) -> int:
        c = self.config
        for _ in range(c.num_adapter_layers if c.add_adapter else 0):
            n = (n + c.adaptor_stride // 2 * 2 - c.adaptor_kernel_size) // c.adaptor_stride + 1
        return n

    def taken_apart(self, encoder: Any) -> Sequence[Any]:
        return list(encoder.adapter.layers) if encoder.adapter is not None else ()

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        conformer, n_B, extent_B = encoder.encoder, sound.inputs_B, sound.extents_B
        x_BFD = encoder.feature_projection(sound.input)
        own_BF = own(n_B, x_BFD.shape[1])
        x_BFD = conformer.dropout(x_BFD * own_BF[:, :, None])
        more = {}
        if getattr(conformer, "embed_positions", None) is not None:
            more["relative_position_embeddings"] = conformer.embed_positions(x_BFD)
        mask = looking_within(own_BF, _chunks(self.config, own_BF), encoder.config, x_BFD.dtype)
        for layer in conformer.layers:
            x_BFD = layer(x_BFD, attention_mask=mask, conv_attention_mask=own_BF, **more)
        x_BFD = conformer.layer_norm(x_BFD)
        x_BFD = x_BFD + 0.5 * encoder.intermediate_ffn(x_BFD)
        for layer in encoder.adapter.layers if encoder.adapter is not None else ():
            x_BFD, n_B = self._adapted(layer, x_BFD, own(extent_B, x_BFD.shape[1]), n_B, encoder.config)
            extent_B = self._shorter(extent_B)
        states_BPD: Tensor = encoder.inner_layer_norm(x_BFD)
        return states_BPD

    def _shorter(self, n_B: Tensor) -> Tensor:
        c = self.config
        lost = c.adaptor_stride // 2 * 2 - c.adaptor_kernel_size
        return torch.div(n_B + lost, c.adaptor_stride, rounding_mode="floor") + 1

    def _adapted(self, layer: Any, x_BFD: Tensor, there_BF: Tensor, n_B: Tensor, config: Any) -> tuple[Tensor, Tensor]:
        """One layer of the adapter: its convolutions see nothing beyond an utterance's end, as they do unpadded."""

        def shorter(norm: nn.Module, conv: nn.Module) -> Tensor:
            made: Tensor = layer.activation(conv((norm(x_BFD) * there_BF[:, :, None]).transpose(1, 2)))
            return made.transpose(1, 2)

        residual_BPD = shorter(layer.residual_layer_norm, layer.residual_conv)
        x_BPD = shorter(layer.self_attn_layer_norm, layer.self_attn_conv)
        n_B = self._shorter(n_B)
        mask = looking_at(own(n_B, x_BPD.shape[1]), x_BPD.shape[1], config, x_BPD.dtype)
        x_BPD = layer.self_attn_dropout(layer.self_attn(x_BPD, attention_mask=mask)[0]) + residual_BPD
        return layer.ffn(layer.ffn_layer_norm(x_BPD)) + x_BPD, n_B


class OverWaves(Encoder):
    """Convolutions over the wave as wav2vec 2.0 has them; what stands behind them is its heirs' own."""

    hears_waves = True
    samples_a_frame = 1

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    def positions(self, n: int) -> int:
        for size, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            n = (n - size) // stride + 1
        return n

    def convolved(self, front: Any, project: Any, sound: Sound) -> tuple[Tensor, Tensor]:
        """(B, P, D) and which positions are own (B, P)."""
        first = front.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            size, stride = self.config.conv_kernel[0], self.config.conv_stride[0]
            keep_padding_out(first.layer_norm, torch.div(sound.inputs_B - size, stride, rounding_mode="floor") + 1)
        made = project(front(sound.input).transpose(1, 2))
        x_BPD = made[0] if isinstance(made, tuple) else made
        own_B = sound.inputs_B
        for size, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            own_B = torch.div(own_B - size, stride, rounding_mode="floor") + 1
        return masked(x_BPD, sound), own(own_B, x_BPD.shape[1])


class SpeechT5(OverWaves):
    """SpeechT5 (Ao et al., 2021): wav2vec 2.0's convolutions, and a transformer with relative positions."""

    def freeze_convolutions(self, encoder: Any) -> None:
        encoder.prenet.feature_encoder._freeze_parameters()

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        before, inner = encoder.prenet, encoder.wrapped_encoder
        x_BPD, own_BP = self.convolved(before.feature_encoder, before.feature_projection, sound)
        x_BPD = x_BPD * own_BP[:, :, None]  # its convolution over positions reaches far beyond the end
        x_BPD = x_BPD + before.pos_conv_embed(x_BPD)
        x_BPD = x_BPD + before.pos_sinusoidal_embed((~own_BP).long())
        x_BPD = inner.dropout(inner.layer_norm(x_BPD))
        apart = inner.embed_positions(x_BPD)
        mask = looking_at(own_BP, x_BPD.shape[1], inner.config, x_BPD.dtype)
        for layer in inner.layers:
            x_BPD = layer(x_BPD, attention_mask=mask, position_bias=apart)[0]
        return x_BPD


class Waves(OverWaves):
    """wav2vec 2.0, HuBERT and WavLM as the encoder of a speech-encoder-decoder, with the adapter that some have."""

    def positions(self, n: int) -> int:
        n = super().positions(n)
        for _ in range(self._adapters):
            n = (n + 2 - self.config.adapter_kernel_size) // self.config.adapter_stride + 1
        return n

    def masked_over(self, n: int) -> tuple[int, int]:
        return int(self.width), OverWaves.positions(self, n)

    def freeze_convolutions(self, encoder: Any) -> None:
        encoder.feature_extractor._freeze_parameters()

    @property
    def _adapters(self) -> int:
        return int(self.config.num_adapter_layers) if getattr(self.config, "add_adapter", False) else 0

    def __call__(self, encoder: Any, sound: Sound) -> Tensor:
        x_BPD, own_BP = self.convolved(encoder.feature_extractor, encoder.feature_projection, sound)
        x_BPD = encoder.encoder(x_BPD, attention_mask=own_BP).last_hidden_state
        if not self._adapters:
            return x_BPD
        adapter, n_B = encoder.adapter, own_BP.sum(1)
        if adapter.proj is not None:
            x_BPD = adapter.proj_layer_norm(adapter.proj(x_BPD))
        x_BDP = x_BPD.transpose(1, 2)
        for layer in adapter.layers:
            x_BDP = layer(x_BDP * own(n_B, x_BDP.shape[2])[:, None])
            lost = 2 - self.config.adapter_kernel_size
            n_B = torch.div(n_B + lost, self.config.adapter_stride, rounding_mode="floor") + 1
        return x_BDP.transpose(1, 2)


def keep_padding_out(norm: nn.Module, frames_B: Tensor) -> None:
    """A group norm takes its statistics over so many frames from here on."""
    norm.__class__ = OwnGroupNorm
    norm.frames_B = frames_B


def masked(x_BPD: Tensor, sound: Sound) -> Tensor:
    """SpecAugment where a wave is heard: positions and channels of what its convolutions made become zero."""
    if not sound.freq_spans.shape[1] + sound.time_spans.shape[1]:
        return x_BPD
    return mask_spans(x_BPD.transpose(1, 2), sound.freq_spans, sound.time_spans).transpose(1, 2)


def _window(window: Sequence[int], own_BP: Tensor) -> Tensor:
    """(P, P) bool: so many positions back, itself among them, and fewer than so many ahead."""
    places = torch.arange(own_BP.shape[1], device=own_BP.device)
    back = places[:, None] - places
    return ((back >= 0) & (back < window[0])) | ((back < 0) & (-back < window[1]))


def _chunks(config: Any, own_BP: Tensor) -> Tensor:
    """(P, P) bool: SeamlessM4T v2 looks at its chunk and some before it, v1 at everything."""
    places = torch.arange(own_BP.shape[1], device=own_BP.device)
    size = getattr(config, "speech_encoder_chunk_size", None)
    if size is None:
        return torch.ones(len(places), len(places), dtype=torch.bool, device=places.device)
    chunk = places // size
    seen = chunk[None] <= chunk[:, None]
    left = config.speech_encoder_left_chunk_num
    return seen & (chunk[None] >= chunk[:, None] - left) if left >= 0 else seen
