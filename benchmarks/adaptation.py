"""A new voice: a Whisper that knows four people's digits is adapted to the fifth, and what the four lose by it.

SPOKEN_DIGITS_DIR=… python benchmarks/adaptation.py             three seeds, each with another fifth person
SPOKEN_DIGITS_DIR=… python benchmarks/adaptation.py --folder F  keeps its runs there, and goes on where it was left
python benchmarks/adaptation.py --quick                         a smoke test; its figures mean nothing

A seed trains the base from nothing on four speakers, then three ways of adapting it with the fifth's training strings:
adapters (LoRA), adapters with the other four mixed in at a quarter of their size, and all weights. The test set is
that of the corpus, of which each speaker has a fifth; its takes are in no training set. Said are word error rates of
the fifth and of the other four, before and after, for each seed and as the median over them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lib.timing import ROOT, own_place, where

SPEAKERS = ("theo", "nicolas", "yweweler", "jackson", "lucas")  # a seed's fifth, in this order
SCRATCH = {"d_model": 128, "heads": 4, "ffn": 512, "mels": 64, "window_s": 6, "max_tokens": 96, "dropout": 0.05}
QUICK = {"d_model": 16, "heads": 2, "ffn": 32, "mels": 16, "window_s": 6, "max_tokens": 96}
WAYS = ("lora", "lora + others", "all weights")
RATES = {"lora": 2e-3, "lora + others": 2e-3, "all weights": 2e-4}
OTHERS = 0.25  # how often an epoch holds the other four's strings, where they are mixed in


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        print(where(args.threads, precision="bf16"), flush=True)
        print(
            f"base {args.steps} steps of 32 on four speakers, then {args.adapt_steps} steps of 16 on the fifth; "
            "test WER in %, basic normaliser, greedy, at the utterance's own length",
            flush=True,
        )
        print(f"{'seed':>4} {'fifth':10} {'way':14} {'fifth':>15} {'the other four':>17} {'s':>6}", flush=True)
        found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        for seed in range(1, args.seeds + 1):
            fifth = args.speaker or SPEAKERS[(seed - 1) % len(SPEAKERS)]
            base = _base(args, folder / f"base-{fifth}-{seed}", fifth, seed)
            for way in WAYS:
                run = folder / f"{way.replace(' ', '').replace('+', '-')}-{fifth}-{seed}"
                before, after, took_s = _adapted(args, run, base, fifth, seed, way)
                found[way].append((before[0], after[0], before[1], after[1]))
                print(f"{seed:4} {fifth:10} {way:14} {_line(found[way][-1])} {took_s:6.0f}", flush=True)
        for way, values in found.items():
            middle = tuple(statistics.median(v[i] for v in values) for i in range(4))
            print(f"median of {len(values)}    {way:14} {_line(middle)}", flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of the base; 2000")
    parser.add_argument("--adapt-steps", type=int, default=150, help="of an adaptation; 150")
    parser.add_argument("--speaker", choices=SPEAKERS, help="the fifth, for all seeds")
    parser.add_argument("--folder", type=Path, help="where runs are kept, and taken up again")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps")
    args = parser.parse_args(argv)
    if not os.environ.get("SPOKEN_DIGITS_DIR"):
        parser.error("SPOKEN_DIGITS_DIR does not name the folder of the spoken digits")
    if args.quick:
        args.seeds, args.steps, args.adapt_steps = 1, 3, 2
    return args


# ---- trainings


def _base(args: argparse.Namespace, run: Path, fifth: str, seed: int) -> Path:
    """The export of a model that has never heard the fifth."""
    four = {"speaker": [s for s in SPEAKERS if s != fifth]}
    scratch = {**(QUICK if args.quick else SCRATCH), "encoder_layers": 1, "decoder_layers": 1}
    train = _recipe(
        args,
        seed,
        model={"from_scratch": scratch, "full_window_share": 0.1, "full_window_last": 1, "attention": "eager"},
        train=[{"manifest": "strings_train.jsonl", "where": four}, {"manifest": "singles_train.jsonl", "where": four}],
        dev=100,
        optim={"lr": 3e-3, "schedule": "linear", "warmup_share": 0.08},
        steps=args.steps,
        step_utts=32,
    )
    train["augment"] |= {"join_p": 0.25, "join_max": 2}
    _train(run, train)
    return run / "export"


def _adapted(
    args: argparse.Namespace, run: Path, base: Path, fifth: str, seed: int, way: str
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """(WER of the fifth, of the others) before and after, and what it took."""
    sources: list[dict[str, Any]] = [{"manifest": "strings_train.jsonl", "where": {"speaker": fifth}}]
    if way == "lora + others":
        four = [s for s in SPEAKERS if s != fifth]
        sources.append({"manifest": "strings_train.jsonl", "where": {"speaker": four}, "weight": OTHERS})
    train = _recipe(
        args,
        seed,
        model={"name": str(base), "full_window_share": 0.1, "full_window_last": 1, "attention": "eager"},
        train=sources,
        dev=20,
        optim={"lr": RATES[way], "schedule": "linear", "warmup_share": 0.1},
        steps=args.adapt_steps,
        step_utts=16,
    )
    if way != "all weights":
        train["adapters"] = {"r": 16, "alpha": 32, "targets": "all-linear"}
    took_s = _train(run, train)
    before, after = _tests(run)[:2]  # before training, and at the utterance's own length
    assert before["what"] == "before training"
    return _rates(before["table"], fifth), _rates(after["table"], fifth), took_s


def _recipe(args: argparse.Namespace, seed: int, **how: Any) -> dict[str, Any]:
    digits = os.environ["SPOKEN_DIGITS_DIR"]
    fields = {"id": "utterance_id", "audio": "audio_path", "duration_s": "audio_duration_sec"}
    fields |= {"speaker": "speaker_id", "text": "orthographic_text"}
    sources = [{**s, "manifest": f"{digits}/{s['manifest']}"} for s in how["train"]]
    return {
        "task": "whisper",
        "model": how["model"],
        "data": {
            "train": sources,
            "dev_from_train": 10 if args.quick else how["dev"],
            "test": [f"{digits}/strings_test.jsonl"],
            "audio_dirs": [digits, *(f"{digits}/audio_{i}" for i in range(3))],
            "fields": fields,
            "max_s": 6,
            "edge_s": 1.0,
        },
        "augment": {
            "speed": [0.9, 0.95, 1.0, 1.05, 1.1],
            "gain_db": 6,
            "spec": {"p": 0.6, "freq_masks": 1, "freq_width": 9, "time_masks": 1, "time_share": 0.06},
        },
        "optim": how["optim"],
        "loop": {
            "steps": how["steps"],
            "step_utts": how["step_utts"],
            "precision": "bf16",
            "seed": seed,
            "threads": args.threads,
            "device": "cpu",
        },
        "eval": {
            "normaliser": "basic",
            "every_steps": max(1, how["steps"] // 2),
            "buckets": ["speaker"],
            "decode": {"max_new_tokens": 4 if args.quick else 60},
        },
        "log": {"every_steps": 100, "tensorboard": False},
    }


def _train(run: Path, train: Mapping[str, Any]) -> float:
    """Seconds; none where the run has ended before. Raises RuntimeError with the end of its log."""
    if (run / "reports" / "summary.json").exists():
        return 0.0
    run.mkdir(parents=True, exist_ok=True)
    file = run / "experiment.yaml"
    file.write_text(yaml.safe_dump({"name": "adaptation", "pod": {"max_hours": 1}, "train": dict(train)}))
    env = {**os.environ, **own_place(run.parent), "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    with (run / "log").open("a") as log:
        argv = [sys.executable, "-m", "trainer", "train", str(file), "--run-dir", str(run)]
        code = subprocess.run(argv, stdout=log, stderr=subprocess.STDOUT, env=env, check=False).returncode
    if code:
        raise RuntimeError(f"a training ended with {code}: {(run / 'log').read_text()[-2000:]}")
    return time.monotonic() - began


# ---- figures


def _tests(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "reports" / "test.jsonl").read_text().splitlines()]


def _rates(table: Sequence[Mapping[str, Any]], fifth: str) -> tuple[float, float]:
    """Pooled word error rates: the fifth's, the other four's."""
    lines = {line["set"].removeprefix("speaker="): line for line in table if line["set"].startswith("speaker=")}
    mine, others = lines[fifth], [line for name, line in lines.items() if name != fifth]
    errors = sum(line["S"] + line["D"] + line["I"] for line in others)
    return 100 * mine["wer"], 100 * errors / sum(line["N"] for line in others)


def _line(v: Sequence[float]) -> str:
    return f"{v[0]:6.2f} → {v[1]:6.2f}   {v[2]:6.2f} → {v[3]:6.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
