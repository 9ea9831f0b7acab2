"""A run that was trained, measured and paid for, without having been: its folder as the trainer and podctl leave it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from remote.rundir import RunDir
from trainer.desk import write_rows
from trainer.evaluate import Evaluation, as_json
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.eval import Eval
from trainer.task import Row

RECIPE = {
    "task": "whisper",
    "model": {"name": "openai/whisper-small", "language": "he", "task": "transcribe"},
    "data": {"train": ["/home/ada/children/train.jsonl"], "dev": ["dev.jsonl"], "test": ["C:\\data\\test.jsonl"]},
    "loop": {"steps": 100, "step_utts": 8, "precision": "bf16", "seed": 1},
    "optim": {"lr": 1e-5},
    "adapters": None,
}
AGES = ("3-4", "5-7", "</script><script>alert(1)</script>", "a|b", "`x` *y*\nz", "")

WAYS = ("before training", "padded to its own length", "padded to the full window")


def rows(n: int, seed: int, ages: Sequence[str] = AGES) -> list[Row]:
    """Transcripts with some errors, of children of several ages."""
    rng = np.random.default_rng(seed)
    words = ["one", "two", "three", "four"]
    found = []
    for i in range(n):
        said = [str(w) for w in rng.choice(words, size=rng.integers(1, 6))]
        heard = [w if rng.random() > 0.2 else "five" for w in said]
        buckets = {"age": ages[i % len(ages)], "speaker": f"child {i % 4}"}
        row = {"id": f"u{i}", "reference": " ".join(said), "text": " ".join(heard), "speaker": f"child {i % 4}"}
        found.append({**row, "buckets": buckets})
    return found


def measured_run(folder: Path, ages: Sequence[str] = AGES) -> RunDir:
    """With an export of some bytes, a report on its test set before and after, and a receipt."""
    run = RunDir(folder)
    run.reports.mkdir(parents=True)
    how = Eval(normaliser="basic", every_steps=1, bootstrap=50)
    own = {"run": folder.name, "commit": "0123abcd", "dirty": False}
    lines = []
    for seed, (what, weights) in enumerate(
        [
            ("before training", "as it came"),
            ("padded to its own length", "step 90"),
            ("padded to the full window", "step 90"),
        ]
    ):
        said = rows(60, seed, ages)
        report = score_transcripts(said, how)
        result = Evaluation(said, report, [])
        line = json.loads(as_json(result, {**own, "weights": weights}, what=what))
        line["provenance"] |= {"decode": how.decode.model_dump(), "precision": "bf16", "data_sha256": "ab" * 32}
        lines.append(json.dumps(line))
        write_rows(run.reports / f"test-{what.replace(' ', '-')}.rows.jsonl", result)
    (run.reports / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.receipt.write_text(json.dumps({"run": folder.name, "usd": 12.5, "duration_s": 5400.0, "run_dir": "/volume/x"}))
    data = {"sha256": {"train": "cd" * 32, "dev": "ef" * 32}, "train_hours": 12.3456, "train_utterances": 4321}
    made = {**own, "weights": "step 90", "step": 90, "device": "NVIDIA H100", "data": data}
    made["dev"] = {"wer": 0.2, "wer/speaker=child 1": 0.3}
    whole_model(run.export, made)
    return run


def whole_model(folder: Path, provenance: dict, n_bytes: int = 3000) -> Path:
    """The files of an export; weights are noise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(np.random.default_rng(5).bytes(n_bytes))
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper", "_name_or_path": "/home/ada/base"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder
