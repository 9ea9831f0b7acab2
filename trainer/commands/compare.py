"""`trainer compare`: is one result better than another, or is it chance?"""

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser(
        "compare", help="two runs, reports or rows files, utterance by utterance: what differs, and is it chance"
    )
    p.add_argument("a", type=Path, help="a run directory, a report (….json, ….jsonl), or rows (….rows.jsonl)")
    p.add_argument("b", type=Path, help="the other one: differences are b − a, below zero b is better")
    p.add_argument("--set", metavar="NAME", help="of runs: test, dev, or a report's name; what makes their headline")
    p.add_argument("--normaliser", help="both are scored by it; that of the first by default")
    p.add_argument("--changed", type=int, default=5, metavar="N", help="show so many utterances that changed most (5)")
    p.add_argument("--json", action="store_true", help="one object on stdout")
    p.add_argument("--out", type=Path, help="that object goes to this file as well")
    p.set_defaults(command=compare)


def compare(args: argparse.Namespace) -> int:
    """Needs no torch and no model: rows are enough."""
    from remote.files import write_atomic
    from trainer.compare import compare_sides, sides_of
    from trainer.comparing import comparison_json, comparison_lines
    from trainer.reporting import need_place

    if args.out is not None:
        need_place(args.out)
    a, b = sides_of(args.a, args.b, set=args.set)
    comparison, pairs = compare_sides(a, b, args.normaliser)
    line = comparison_json(comparison, pairs, a, b, args.changed)
    print(line if args.json else "\n".join(comparison_lines(comparison, pairs, a, b, args.changed)))
    if args.out is not None:
        write_atomic(args.out, (line + "\n").encode())
        print(f"comparison: {args.out}", file=sys.stderr if args.json else sys.stdout)
    return 0
