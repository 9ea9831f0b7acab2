"""Recordings: what is read, what is refused and why, and the arithmetic of lengths."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.audio import RATE, header, padded_samples, read_audio, samples_of
from trainer.errors import AudioError


def sine(seconds: float, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@given(st.integers(min_value=0, max_value=10_000_000))
def test_samples_to_seconds_and_back_is_identity(n: int) -> None:
    assert samples_of(n / RATE) == n


@given(st.integers(min_value=1, max_value=480_000), st.sampled_from([0.1, 0.5, 1.0]))
def test_the_padded_length_is_the_next_edge_and_the_utterance_s_own(n: int, edge_s: float) -> None:
    padded = padded_samples(n, edge_s)
    assert padded % 320 == 0
    assert n <= padded < n + edge_s * RATE + 320
    assert padded_samples(padded, edge_s) == padded


def test_stereo_is_averaged_and_other_rates_are_resampled(tmp_path: Path) -> None:
    left, right = sine(0.5, 44_100), np.zeros(22_050, np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 44_100)
    wave = read_audio(str(tmp_path / "a.wav"))
    assert wave.dtype == np.float32
    assert len(wave) == RATE // 2
    middle = slice(1000, -1000)
    assert np.allclose(wave[middle], sine(0.5)[middle] / 2, atol=2e-3)


def test_a_span_of_a_long_recording_is_exactly_that_long(tmp_path: Path) -> None:
    path = tmp_path / "it's ten\nminutes.flac"
    soundfile.write(path, np.tile(sine(1.0), 600), RATE)
    assert header(str(path)).duration_s == 600
    assert len(read_audio(str(path), 599.0, 0.75)) == samples_of(0.75)


def _not_audio(p: Path) -> None:
    p.write_text("this is not audio")


def _empty_file(p: Path) -> None:
    p.write_bytes(b"")


def _no_samples(p: Path) -> None:
    soundfile.write(p, np.zeros(0, np.float32), RATE, format="WAV")


def _silent(p: Path) -> None:
    soundfile.write(p, np.zeros(RATE, np.float32), RATE)


def _truncated(p: Path) -> None:
    soundfile.write(p, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE, format="FLAC")
    p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])


def _shorter_than_said(p: Path) -> None:
    soundfile.write(p, sine(1.0), RATE)


def _folder(p: Path) -> None:
    p.mkdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_not_audio, "not audio"),
        (_empty_file, "not audio"),
        (_no_samples, "empty"),
        (_silent, "silent"),
        (_truncated, "ends at|not audio"),
        (_shorter_than_said, "ends at 1.00 s, not 3.00 s"),
        (_folder, "not audio"),
        (lambda p: None, "not audio"),
    ],
)
def test_what_can_not_be_heard_is_refused_with_its_reason(tmp_path: Path, make, says: str) -> None:
    path = tmp_path / "a b.flac"
    make(path)
    with pytest.raises(AudioError, match=says):
        read_audio(str(path), 0.0, 3.0)
