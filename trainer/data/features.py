"""Log-mel spectrograms on the device the model is on, equal to the stock Whisper feature extractor.

B batch · T samples (16 kHz) · M mel bins · F frames (10 ms)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Whisper's features: power spectrum (25 ms Hann, 10 ms hop), mel filters, log10, floor 8 below the clip's peak.

    `extractor` is a WhisperFeatureExtractor: its filters and sizes are used, so the two can't drift apart.
    """

    window: Tensor
    filters_KM: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.n_fft, self.hop = int(extractor.n_fft), int(extractor.hop_length)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.register_buffer("filters_KM", torch.from_numpy(extractor.mel_filters).float(), persistent=False)

    @torch.no_grad()
    def forward(self, wave_BT: Tensor) -> Tensor:
        """(B, T) → (B, M, T / 160). The peak is each clip's own, so a clip's features don't know its neighbours."""
        spectrum = torch.stft(wave_BT, self.n_fft, self.hop, window=self.window, return_complex=True)
        power_BKF = spectrum[..., :-1].abs() ** 2
        mel_BMF = (self.filters_KM.T @ power_BKF).clamp_min(1e-10).log10()
        return (torch.maximum(mel_BMF, mel_BMF.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def mask_spans(mel_BMF: Tensor, freq_B_K2: Tensor, time_B_K2: Tensor) -> Tensor:
    """SpecAugment: zeroes spans of bins and of frames. Spans are (B, K, 2) int64, first and end; empty where equal."""
    bins, frames = (torch.arange(n, device=mel_BMF.device) for n in mel_BMF.shape[1:])

    def inside(spans: Tensor, axis: Tensor) -> Tensor:
        return ((axis >= spans[..., :1]) & (axis < spans[..., 1:])).any(dim=1)

    masked = inside(freq_B_K2, bins)[:, :, None] | inside(time_B_K2, frames)[:, None, :]
    return mel_BMF.masked_fill(masked, 0.0)


def stack_spans(spans: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """Ragged lists of spans a clip → (B, K, 2) int64, filled up with empty ones."""
    k = max((len(s) for s in spans), default=0)
    return torch.tensor([[*s, *[(0, 0)] * (k - len(s))] for s in spans], dtype=torch.int64).reshape(len(spans), k, 2)
