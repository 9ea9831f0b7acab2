"""The command line of the trainer: check · prepare · train · evaluate · predict.

Heavy modules are imported by the command that needs them: `check` answers without torch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import BadRecipe, TrainerError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad input, 75 saved and resumable."""
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args))
    except TrainerError as e:
        print(e.message, file=sys.stderr)
        if e.hint:
            print(f"→ {e.hint}", file=sys.stderr)
        return e.exit_code


def check(args: argparse.Namespace) -> int:
    """Read an experiment's `train:` section and name every mistake in it."""
    from trainer.recipe.load import changes, load_recipe

    found: list[dict[str, str]] = []
    differs: list[str] = []
    try:
        recipe = load_recipe(args.file, expand=False)
        if args.against:
            differs = changes(load_recipe(args.against, expand=False), recipe)
    except BadRecipe as e:
        found = [{"where": m.where, "what": m.what} for m in e.mistakes]
    if args.json:
        print(json.dumps({"mistakes": found, "changes": differs}))
    else:
        for m in found:
            print(f"{m['where']}: {m['what']}" if m["where"] else m["what"], file=sys.stderr)
        for line in differs:
            print(f"differs: {line}", file=sys.stderr)
        if not found and not differs:
            print("ok")
    return 2 if found or differs else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainer", description="Fine-tune speech models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("check", help="name every mistake in an experiment file; loads no torch")
    p.add_argument("file", type=Path)
    p.add_argument("--against", type=Path, help="an older experiment: also say what a resume would not allow")
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
