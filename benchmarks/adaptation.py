"""A model of four speakers is adapted to a fifth: what he gains, and what the other four lose.

SPOKEN_DIGITS_DIR=… python benchmarks/adaptation.py                     three seeds, another speaker each
SPOKEN_DIGITS_DIR=… python benchmarks/adaptation.py --speaker nicolas   the same speaker each time
SPOKEN_DIGITS_DIR=… python benchmarks/adaptation.py --quick             a smoke test; its figures mean nothing

The base is trained from nothing as configs/spoken_digits.yaml says, on all that four speakers said. It is then
adapted to the fifth's strings, four times: low-rank adapters on every linear layer, and all weights; each on the fifth
alone, and with a share of the other four beside. The test set is decoded before and after; base and adapted model
never saw a recording of it. Every training is `trainer train`, in a process of its own; `--place DIR` keeps them all,
with the manifests, and goes on where it was ended.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lib.timing import ROOT, own_place, where

from trainer.metrics.paired import Difference, compare_rows
from trainer.recipe.eval import Eval
from trainer.results import BEFORE, read_rows

CONFIG = ROOT / "configs" / "spoken_digits.yaml"
STRINGS, SINGLES, TEST = "strings_train", "singles_train", "strings_test"
HOW = Eval(normaliser="basic", every_steps=1, bootstrap=2000)
LORA = {"kind": "lora", "r": 16, "alpha": 32, "targets": "all-linear"}
SIDES = ("adapters", "adapters + others", "all weights", "all weights + others")


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    _say(where(args.threads, steps=str(args.steps), adapt_steps=str(args.adapt_steps)))
    if args.place is not None:
        _measure(args, args.place.absolute())
        return
    with tempfile.TemporaryDirectory() as folder:
        _measure(args, Path(folder))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of everything; 3")
    parser.add_argument("--speaker", help="who is the fifth; another one each seed by default")
    parser.add_argument("--steps", type=int, default=2300, help="of the base, 32 utterances each; 2300")
    parser.add_argument("--adapt-steps", type=int, default=200, help="of an adaptation, 16 utterances each; 200")
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--full-lr", type=float, default=3e-4)
    parser.add_argument("--share", type=float, default=0.25, help="of the other four's strings, heard beside; 0.25")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--place", type=Path, help="a folder to keep manifests and runs in")
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps, twelve utterances to test with")
    args = parser.parse_args(argv)
    args.data = Path(os.environ.get("SPOKEN_DIGITS_DIR", ""))
    if not (args.data / f"{TEST}.jsonl").is_file():
        parser.error("SPOKEN_DIGITS_DIR names no folder with strings_test.jsonl in it")
    if args.quick:
        args.seeds, args.steps, args.adapt_steps = 1, 3, 3
    speakers = sorted({r["speaker_id"] for r in _rows(args.data / f"{STRINGS}.jsonl")})
    if args.speaker not in (None, *speakers):
        parser.error(f"there is no speaker {args.speaker}: one of {', '.join(speakers)}")
    args.fifths = [args.speaker or speakers[seed % len(speakers)] for seed in range(args.seeds)]
    return args


def _measure(args: argparse.Namespace, place: Path) -> None:
    found: list[dict[str, Sequence[Difference]]] = []
    for seed, fifth in enumerate(args.fifths, start=1):
        found.append(_one_seed(args, place, seed, fifth))
        _say(f"seed {seed}: {fifth} is the fifth\n{HEAD}")
        for name, differences in found[-1].items():
            _say(_line(name, *differences))
    if len(found) > 1:
        _say(f"medians of {len(found)} seeds\n{HEAD}")
        for name in SIDES:
            _say(_medians(name, [f[name] for f in found]))


# ---- one seed


def _one_seed(args: argparse.Namespace, place: Path, seed: int, fifth: str) -> dict[str, Sequence[Difference]]:
    """Of each side: (the fifth's, the others') difference after − before."""
    sets = _manifests(args, place / f"manifests-{fifth}", fifth)
    base = place / f"base-{seed}-{fifth}"
    _train(args, base, _base(args, seed, sets))
    found = {}
    for n, name in enumerate(SIDES):
        run = place / f"side-{n}-{seed}-{fifth}"
        _train(args, run, _adapted(args, seed, sets, base / "export", name))
        before, after = _tested(run)
        differences = {d.set: d for d in compare_rows(_grouped(before, fifth), _grouped(after, fifth), HOW).differences}
        found[name] = (differences["who=fifth"], differences["who=others"])
    return found


def _manifests(args: argparse.Namespace, folder: Path, fifth: str) -> dict[str, Path]:
    """Rows of the fifth and of the others, in files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    strings, singles = _rows(args.data / f"{STRINGS}.jsonl"), _rows(args.data / f"{SINGLES}.jsonl")
    test = _rows(args.data / f"{TEST}.jsonl")
    if args.quick:
        test = [r for r in test if r["speaker_id"] == fifth][:4] + [r for r in test if r["speaker_id"] != fifth][:8]
    sets = {
        "fifth": [r for r in strings if r["speaker_id"] == fifth],
        "others": [r for r in strings if r["speaker_id"] != fifth],
        "singles": [r for r in singles if r["speaker_id"] != fifth],
        "test": test,
    }
    paths = {name: folder / f"{name}.jsonl" for name in sets}
    for name, rows in sets.items():
        paths[name].write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return paths


def _base(args: argparse.Namespace, seed: int, sets: Mapping[str, Path]) -> dict[str, Any]:
    train = _config(args, seed)
    train["data"] |= {"train": [str(sets["others"]), str(sets["singles"])], "dev_from_train": 8 if args.quick else 80}
    del train["data"]["test"]  # whoever adapts it decodes the test set first
    train["loop"] |= {"steps": args.steps}
    train["eval"] |= {"every_steps": max(1, args.steps // 4), "before_training": False}
    return train


def _adapted(args: argparse.Namespace, seed: int, sets: Mapping[str, Path], export: Path, name: str) -> dict[str, Any]:
    train = _config(args, seed)
    train["model"] = {k: v for k, v in train["model"].items() if k != "from_scratch"} | {"name": str(export)}
    mine: list[Any] = [str(sets["fifth"])]
    if name.endswith("+ others"):
        mine.append({"manifest": str(sets["others"]), "weight": args.share})
    train["data"] |= {"train": mine, "dev_from_train": 8 if args.quick else 20, "test": [str(sets["test"])]}
    is_lora = name.startswith("adapters")
    train["adapters"] = LORA if is_lora else None
    train["optim"] |= {"lr": args.lora_lr if is_lora else args.full_lr, "warmup_share": 0.1}
    train["loop"] |= {"steps": args.adapt_steps, "step_utts": 16}
    train["eval"] |= {"every_steps": max(1, args.adapt_steps // 4), "buckets": ["speaker"]}
    return train


def _config(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """`train:` of the configuration, as it is written, for this seed."""
    train: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["train"]
    train["loop"] |= {"seed": seed, "threads": args.threads}
    if args.quick:
        train["eval"]["decode"] = {"max_new_tokens": 4}
    train["log"] = {"every_steps": 100, "tensorboard": False}
    return train


def _train(args: argparse.Namespace, run: Path, train: Mapping[str, Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    if (run / "reports" / "summary.json").exists():
        return  # of an earlier call, in the same place
    file = run / "experiment.yaml"
    whole = {"name": "adaptation", "pod": {"provider": "local", "max_hours": 1}, "train": train}
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    env = {**os.environ, **own_place(run.parent), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "trainer", "train", str(file), "--run-dir", str(run)]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{run.name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _tested(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The test set as it was heard before and after, at its own length."""
    reports = run / "reports"
    names = (BEFORE, "padded to its own length")
    before, after = (read_rows(reports / f"test-{n.replace(' ', '-')}.rows.jsonl") for n in names)
    return before, after


def _grouped(rows: Sequence[Mapping[str, Any]], fifth: str) -> list[dict[str, Any]]:
    return [{**r, "buckets": {"who": "fifth" if r["speaker"] == fifth else "others"}} for r in rows]


# ---- what is said

HEAD = f"  {'':22} {'the fifth: before → after, 95 % of the difference':>52} {'the other four':>44}"


def _line(name: str, fifth: Difference, others: Difference) -> str:
    return f"  {name:22} {_told(fifth):>52} {_told(others):>44}"


def _told(d: Difference) -> str:
    rates = f"{100 * d.wer_a:.2f} → {100 * d.wer_b:.2f} %"
    return f"{rates} ({100 * d.low:+.2f} to {100 * d.high:+.2f}), {d.words} words"


def _medians(name: str, of: Sequence[Sequence[Difference]]) -> str:
    told = []
    for at in (0, 1):
        a, b = (statistics.median(100 * x for x in xs) for xs in ([d[at].wer_a for d in of], [d[at].wer_b for d in of]))
        moved = [100 * d[at].difference for d in of]
        told.append(f"{a:.2f} → {b:.2f} % (moved {min(moved):+.2f} to {max(moved):+.2f})")
    return f"  {name:22} {told[0]:>52} {told[1]:>44}"


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
