"""`trainer align`: when each word is said, how well a transcript fits, and long recordings cut between words."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Its parser."""
    p = commands.add_parser("align", help="when each word of known transcripts is said; long recordings cut by it")
    p.add_argument("manifest", metavar="MANIFEST")
    p.add_argument(
        "--model", type=Path, required=True, help="a CTC model: a run, an export, or one of the Hub's layout"
    )
    p.add_argument("--out", type=Path, help="rows; NAME.align.jsonl beside the manifest by default")
    p.add_argument(
        "--split",
        type=float,
        metavar="SECONDS",
        help="cut what is longer into pieces of at most so much: NAME.split.jsonl, the unusable into "
        "NAME.split.quarantine.jsonl; only what is longer is aligned",
    )
    p.add_argument("--min-align", type=float, metavar="X", help="pieces below this mean log-probability a frame go too")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="data.fields=…, model.text=basic")
    p.set_defaults(command=align)


def align(args: argparse.Namespace) -> int:
    """0; 1 where nothing could be aligned."""
    from trainer.talk import set_up_logging

    set_up_logging()
    from trainer.aligning import align_manifest
    from trainer.commands.audit import Live
    from trainer.errors import BadData

    if args.split is not None and not args.split > 0:
        raise BadData(f"--split {args.split:g} is no length", "say seconds, as in --split 30")
    if args.min_align is not None and args.min_align > 0:
        raise BadData(f"--min-align {args.min_align:g} is above 0, the best that can be", "say -1.5, or leave it out")
    done = align_manifest(args.manifest, args.model, args.set, args.out, args.split, args.min_align, Live())
    for path in done.files:
        print(f"✓ {path}")
    if done.scores:
        low, middle, high = done.scores
        print(
            f"  {done.aligned} aligned, mean log-probability a frame {middle:.2f} (10 to 90 %: {low:.2f} to {high:.2f})"
        )
    for reason, n in done.not_aligned.items():
        print(f"  {n} × {reason}")
    if done.split is not None:
        s = done.split
        print(f"  {s.recordings} recordings into {s.pieces} pieces, {s.hours:.2f} h; {s.dropped} pieces unusable")
        print(f"  {s.words_in} words in, {s.words_out} out, {s.words_quarantined} in quarantine")
        for reason, n in s.reasons.items():
            print(f"  {n} × {reason}")
    return 0 if done.aligned or not done.not_aligned else 1
