"""Log-mel spectrograms on the device the model is on, equal to the stock feature extractors of Whisper and Parakeet.

B batch · T samples (16 kHz) · M mel bins · F frames (10 ms)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CPU_SAMPLES = 2_000_000  # at once: beyond a processor's cache the same work takes four times as long


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
        n = max(1, CPU_SAMPLES // wave_BT.shape[1]) if wave_BT.device.type == "cpu" else len(wave_BT)
        if n < len(wave_BT):
            return torch.cat([self(part) for part in wave_BT.split(n)])
        spectrum = torch.stft(wave_BT, self.n_fft, self.hop, window=self.window, return_complex=True)
        power_BKF = spectrum[..., :-1].abs() ** 2
        mel_BMF = (self.filters_KM.T @ power_BKF).clamp_min(1e-10).log10()
        return (torch.maximum(mel_BMF, mel_BMF.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class ParakeetMel(nn.Module):
    """NeMo's features: pre-emphasis, log-mel (natural), each bin normalised over the utterance's own frames.

    `extractor` is a ParakeetFeatureExtractor: its filters and sizes are used, so the two can't drift apart.
    """

    window: Tensor
    filters_MK: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.n_fft, self.hop, self.win = int(extractor.n_fft), int(extractor.hop_length), int(extractor.win_length)
        self.preemphasis = float(extractor.preemphasis or 0.0)
        self.register_buffer("window", torch.hann_window(self.win, periodic=False), persistent=False)
        self.register_buffer("filters_MK", extractor.mel_filters.float(), persistent=False)

    def frames(self, n_samples: int) -> int:
        """How many frames are an utterance's own."""
        return n_samples // self.hop

    @torch.no_grad()
    def forward(self, wave_BT: Tensor, samples_B: Tensor) -> Tensor:
        """(B, T), own lengths (B,) → (B, F, M), zero beyond an utterance's own frames. Its padding changes nothing."""
        own_BT = torch.arange(wave_BT.shape[1], device=wave_BT.device) < samples_B[:, None]
        sharp_BT = torch.cat([wave_BT[:, :1], wave_BT[:, 1:] - self.preemphasis * wave_BT[:, :-1]], dim=1)
        spectrum = torch.stft(
            sharp_BT.masked_fill(~own_BT, 0.0),
            self.n_fft,
            self.hop,
            self.win,
            window=self.window,
            return_complex=True,
            pad_mode="constant",
        )
        power_BKF = torch.view_as_real(spectrum[..., :-1]).square().sum(-1)
        mel_BFM = (self.filters_MK @ power_BKF + 2**-24).log().transpose(1, 2)
        n_B1 = (samples_B // self.hop)[:, None]
        own_BF1 = (torch.arange(mel_BFM.shape[1], device=mel_BFM.device) < n_B1)[:, :, None]
        mean_BM = (mel_BFM * own_BF1).sum(1) / n_B1
        centred_BFM = (mel_BFM - mean_BM[:, None]) * own_BF1
        std_BM = (centred_BFM.square().sum(1) / (n_B1 - 1)).sqrt()
        return centred_BFM / (std_BM[:, None] + 1e-5)


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
