"""`trainer export`: hand a model on, to transformers or to faster-whisper."""

import argparse
import sys
from pathlib import Path
from typing import Any

QUANTISATIONS = ("float32", "float16", "bfloat16", "int8", "int8_float16")  # as trainer.exporting.ct2, without torch


def add(commands: Any) -> None:
    p = commands.add_parser("export", help="a trained model as transformers or faster-whisper load it")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="a run directory: its best, averaged where the recipe says so")
    which.add_argument("--model", type=Path, help="an export, a checkpoint, or any model in the Hub's layout")
    p.add_argument("--format", choices=("hf", "ct2"), required=True, help="ct2: for faster-whisper; Whisper alone")
    p.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    p.add_argument("--quantisation", choices=QUANTISATIONS, help="ct2: of the weights (float32)")
    p.add_argument(
        "--check", metavar="MANIFEST", help="ct2: compare texts on this one, not on the test set; none: do not compare"
    )
    p.add_argument("--utterances", type=_count, help="ct2: so many of them, always the same (200)")
    p.add_argument(
        "--max-wer-difference", type=_share, metavar="SHARE", help="ct2: nothing is published beyond this (0.002)"
    )
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="model.language=he, data.fields=…")
    p.set_defaults(command=export)


def export(args: argparse.Namespace) -> int:
    """Convert, compare, publish."""
    from trainer.errors import BadRecipe
    from trainer.exporting.export import export as run
    from trainer.talk import set_up_logging

    defaults = {"quantisation": "float32", "check": None, "utterances": 200, "max_wer_difference": 0.002}
    if args.format == "hf":
        given = [name for name in defaults if getattr(args, name) is not None]
        if given:
            raise BadRecipe.one(f"--{given[0].replace('_', '-')}", "belongs to --format ct2: leave it out")
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    set_up_logging()
    run(args, print, _live)
    return 0


def _live(side: str, done: int, total: int) -> None:
    """One line that counts, on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{side}: {done} of {total}" + ("\n" if done == total else ""), end="", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1: 0.002 are 0.2 points")
    return value
