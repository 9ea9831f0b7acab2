"""A Whisper in CTranslate2's format, with the files that faster-whisper looks for beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

from remote.files import read_json, write_json
from trainer.errors import BadData, TrainerError

QUANTISATIONS = ("float32", "float16", "bfloat16", "int8", "int8_float16")
NEEDED = ("model.bin", "config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json", "decode.json")


def convert(whole: Path, out: Path, quantisation: str) -> None:
    """Write the converted model to `out`, which is not there yet.

    Raises BadData where a file that is needed lies not beside the weights, TrainerError where the converter refuses.
    """
    if not (whole / "tokenizer.json").is_file():
        raise BadData(f"{whole} has no tokenizer.json, and faster-whisper reads no other", "export it from its run")
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        raise TrainerError("ctranslate2 is not installed here", "pip install 'podctl[ct2]'") from None
    try:
        TransformersConverter(str(whole)).convert(str(out), quantization=quantisation)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError, TypeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise TrainerError(
            f"CTranslate2 does not convert {whole}: {reason}", "compare the versions with those in docs/export.md"
        ) from None
    shutil.copyfile(whole / "tokenizer.json", out / "tokenizer.json")
    _write_extractor(whole, out)
    _write_languages(whole, out)


def versions() -> dict[str, str]:
    """Of all that had a part in a conversion."""
    from importlib.metadata import version

    return {name: version(name) for name in ("ctranslate2", "faster-whisper", "transformers")}


def _write_extractor(whole: Path, out: Path) -> None:
    """Without it faster-whisper takes 80 mel bins and 30 s, whatever the model was trained with.

    transformers 5 keeps it inside processor_config.json, where nobody else looks (5.23, seen 2026-11).
    """
    from transformers import WhisperFeatureExtractor

    WhisperFeatureExtractor.from_pretrained(str(whole)).save_pretrained(str(out))


def _write_languages(whole: Path, out: Path) -> None:
    """The language tokens by their names, for a model whose generation_config.json does not list them.

    The converter takes every special token that it does not know for a language: `<|nospeech|>` too, and nothing at all
    under transformers 5, which has no `additional_special_tokens` (4.8.5 and 5.23, seen 2026-11).
    """
    config: dict[str, Any] = read_json(out / "config.json")
    listed = (read_json(whole / "generation_config.json") or {}).get("lang_to_id")
    if not listed:
        tokens = json.loads((out / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
        between = {t["content"]: int(t["id"]) for t in tokens}
        first, end = between.get("<|startoftranscript|>", 0), between.get("<|translate|>", 0)
        write_json(out / "config.json", {**config, "lang_ids": list(range(first + 1, end))})
