"""Small corpora and recipes for tests: noise that is told apart by its pitch, models that train in a second."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

RATE = 16_000
WORDS = {"low": 200.0, "mid": 600.0, "high": 1800.0}


def tone(words: Sequence[str], seed: int = 0, word_s: float = 0.2) -> np.ndarray:
    """A tone a word, with a little noise: float32 (T,)."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(word_s * RATE)) / RATE
    parts = [0.3 * np.sin(2 * np.pi * WORDS[w] * t) for w in words]
    wave = np.concatenate(parts) + rng.normal(0, 0.01, sum(map(len, parts)))
    return wave.astype(np.float32)


def make_corpus(folder: Path, n: int, seed: int = 0, name: str = "train") -> Path:
    """`n` utterances of one to four words under `folder/name/`; returns the manifest."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        words = [str(w) for w in rng.choice(list(WORDS), size=rng.integers(1, 5))]
        wave = tone(words, seed=seed * 1000 + i)
        soundfile.write(folder / name / f"{name}-{i}.wav", wave, RATE)
        rows.append(
            {
                "id": f"{name}-{i}",
                "audio": f"{name}/{name}-{i}.wav",
                "duration_s": len(wave) / RATE,
                "text": " ".join(words),
                "speaker": f"s{i % 3}",
                "age": "old" if i % 2 else "young",
            }
        )
    return write_manifest(folder / f"{name}.jsonl", rows)


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def recipe_dict(corpus: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A `train:` section that trains a very small Whisper on `make_corpus` folders; sections are merged into it."""
    train: dict[str, Any] = {
        "task": "whisper",
        "model": {
            "from_scratch": {
                "d_model": 16,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "heads": 2,
                "ffn": 32,
                "mels": 16,
                "window_s": 2,
                "max_tokens": 32,
            },
            "full_window_share": 0.25,
            "full_window_last": 1.0,
            "attention": "eager",
        },
        "data": {
            "train": [str(corpus / "train.jsonl")],
            "dev": [str(corpus / "dev.jsonl")],
            "test": [str(corpus / "test.jsonl")],
            "max_s": 2,
        },
        "optim": {"lr": 3e-3},
        "loop": {"steps": 6, "step_utts": 4, "micro_s": 4, "precision": "fp32", "threads": 1, "device": "cpu"},
        "eval": {
            "normaliser": "basic",
            "every_steps": 3,
            "buckets": ["age"],
            "decode": {"max_new_tokens": 6},
            "bootstrap": 50,
        },
        "log": {"every_steps": 2, "tensorboard": False, "report": False},
    }
    for name, section in sections.items():
        train[name] = {**train.get(name, {}), **section}
    return train


def write_experiment(path: Path, train: Mapping[str, Any], **top: Any) -> Path:
    whole = {"name": "tiny", "pod": {"provider": "local", "max_hours": 0.1}, "train": dict(train), **top}
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def ctc_dict(corpus: Path, family: str = "parakeet", **sections: Mapping[str, Any]) -> dict[str, Any]:
    """As `recipe_dict`, for a very small CTC model of a family."""
    scratch = {"family": family, "d_model": 16, "layers": 1, "heads": 2, "ffn": 32, "channels": 8}
    if family == "parakeet":
        scratch |= {"mels": 16, "subsampling": 2}
    model = {"from_scratch": scratch, "vocabulary": "transcripts", "letters": sorted(set("".join(WORDS)))}
    return _of_task("ctc", model, corpus, sections)


def tdt_dict(corpus: Path, kind: str = "tdt", **sections: Mapping[str, Any]) -> dict[str, Any]:
    """As `recipe_dict`, for a very small Parakeet transducer."""
    scratch = {"kind": kind, "d_model": 16, "layers": 1, "heads": 2, "ffn": 32, "channels": 8, "mels": 16}
    scratch |= {"subsampling": 4, "decoder_dim": 16}
    model = {"from_scratch": scratch, "vocabulary": "transcripts", "letters": sorted(set("".join(WORDS)))}
    return _of_task("tdt", model, corpus, sections)


def _of_task(task: str, model: dict[str, Any], corpus: Path, sections: Mapping[str, Any]) -> dict[str, Any]:
    train = recipe_dict(corpus, **{k: v for k, v in sections.items() if k != "model"})
    return {**train, "task": task, "model": {**model, **sections.get("model", {})}}


def make_teacher(folder: Path, train: Mapping[str, Any], seed: int = 7, loud: float = 3.0) -> Path:
    """The model of a recipe under `folder`, as the Hub has it, with weights and opinions of its own."""
    import torch

    from trainer.recipe.load import parse_recipe
    from trainer.task import make_task

    task = make_task(parse_recipe(dict(train)))
    torch.manual_seed(seed)
    module = task.build().module
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(loud if p.ndim > 1 else 1.0)
    task.export(module, folder)
    return folder


def distilled(train: dict[str, Any], teacher: Path, **how: Any) -> dict[str, Any]:
    """The same recipe with a teacher."""
    return {**train, "loss": {**train.get("loss", {}), "distill": {"teacher": str(teacher), **how}}}


WIDER = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "heads": 2,
    "ffn": 32,
    "mels": 24,
}  # a Whisper that teaches


def distilled_whisper(corpus: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A very small Whisper with a teacher of another width, depth and number of mel bins."""
    train = recipe_dict(corpus, **sections)
    folder = corpus / "teacher-whisper"
    if not folder.exists():
        plain = recipe_dict(corpus)
        scratch = {**plain["model"]["from_scratch"], **WIDER}
        make_teacher(folder, {**plain, "model": {"from_scratch": scratch}})
    return distilled(train, folder, weight=0.8, temperature=2.0, anneal={"to": 0.2})


def distilled_ctc(corpus: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A very small Parakeet with a larger one as its teacher."""
    folder = corpus / "teacher-ctc"
    if not folder.exists():
        plain = ctc_dict(corpus)
        scratch = {**plain["model"]["from_scratch"], "d_model": 24, "layers": 2, "mels": 24}
        make_teacher(folder, {**plain, "model": {**plain["model"], "from_scratch": scratch}})
    return distilled(ctc_dict(corpus, **sections), folder, weight=0.8, temperature=2.0, anneal={"to": 0.2})
