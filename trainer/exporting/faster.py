"""A converted Whisper through faster-whisper, asked as this project asks its own models.

T samples (16 kHz) · M mel bins · F frames (10 ms)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.audio import fit
from trainer.errors import TrainerError
from trainer.recipe.eval import Decode

MOST_TOKENS = 224  # of a window: half of the 448 positions that faster-whisper believes in


@dataclass(frozen=True)
class Asking:
    """How faster-whisper has to be asked to write what we write: `decode.json` beside the model."""

    transcribe: Mapping[str, Any]  # arguments of WhisperModel.transcribe
    pad_to_samples: int  # zeros are put behind the sound up to here
    max_new_tokens: int  # of ours, which those arguments amount to

    def as_json(self) -> dict[str, Any]:
        return {"pad_to_samples": self.pad_to_samples, "transcribe": dict(self.transcribe)}


def asking_of(task: Any, decode: Decode, suppressed: list[int], max_positions: int) -> Asking:
    """Of a Whisper task's prompt and decoding. `suppressed` are the model's own suppress_tokens.

    CTranslate2 halves the length it is told, and never the prompt with it: p tokens of prompt and n to be written are
    2n − p to faster-whisper (4.8.5 and 1.2.1, seen 2026-11).
    """
    prompt = list(task.prompt)
    n = min(decode.max_new_tokens, max_positions - len(prompt), MOST_TOKENS)
    words = [t.strip("<|>") for t in task.tokenizer.convert_ids_to_tokens(prompt)]
    asked = words[1:-1] if words[-1] == "notimestamps" else words[1:]
    how: dict[str, Any] = {"language": asked[0], "task": asked[1] if len(asked) > 1 else "transcribe"} if asked else {}
    return Asking(
        transcribe={
            **how,
            "beam_size": 1,
            "temperature": 0.0,
            "max_new_tokens": max(1, 2 * n - len(prompt)),
            "without_timestamps": True,
            "condition_on_previous_text": False,
            "suppress_tokens": suppressed,
            "compression_ratio_threshold": None,
            "log_prob_threshold": None,
            "no_speech_threshold": None,
        },
        pad_to_samples=int(task.window),
        max_new_tokens=n,
    )


class Faster:
    """The model as a server would hold it."""

    def __init__(self, folder: Path, asking: Asking, device: str, threads: int) -> None:
        self.asking = asking
        self._model = _opened(folder, device, threads)
        self.compute_type = str(self._model.model.compute_type)  # the stored one, or the nearest this device has

    def check_prompt(self, prompt: list[int]) -> None:
        """Raises TrainerError where faster-whisper would ask the model for something else than it was trained on."""
        from faster_whisper.tokenizer import Tokenizer

        m, how = self._model, self.asking.transcribe
        is_many = bool(m.model.is_multilingual)
        tokenizer = Tokenizer(m.hf_tokenizer, is_many, how.get("task"), how.get("language"))
        theirs = m.get_prompt(tokenizer, [], without_timestamps=True)
        if theirs != prompt:
            raise TrainerError(
                f"faster-whisper would ask this model with the tokens {theirs}, it was trained with {prompt}",
                "serve it with transformers (--format hf), or train a model with Whisper's own vocabulary",
            )

    def text_of(self, wave_T: np.ndarray, *, padded: bool = True, **otherwise: Any) -> str:
        """What it hears in float32 samples: zeros behind them up to the window, or as they are; asked `otherwise`."""
        if padded and len(wave_T) < self.asking.pad_to_samples:
            wave_T = fit(wave_T, self.asking.pad_to_samples)
        segments, _ = self._model.transcribe(wave_T, **{**self.asking.transcribe, **otherwise})
        return "".join(s.text for s in segments).strip()


def _opened(folder: Path, device: str, threads: int) -> Any:
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise TrainerError("faster-whisper is not installed here", "pip install 'podctl[ct2]'") from None

    class OwnWindow(WhisperModel):  # type: ignore[misc]
        """A model whose window is shorter than 30 s: faster-whisper cuts at `chunk_length` and pads to 3000 frames all
        the same (1.2.1, seen 2026-11), which CTranslate2 refuses."""

        def encode(self, features: np.ndarray) -> Any:
            return super().encode(features[..., : self.feature_extractor.nb_max_frames])

    try:
        return OwnWindow(str(folder), device=device, cpu_threads=threads)
    except (RuntimeError, ValueError) as e:
        raise TrainerError(
            f"faster-whisper does not open {folder}: {str(e).splitlines()[0]}", "try --set loop.device=cpu"
        ) from None
