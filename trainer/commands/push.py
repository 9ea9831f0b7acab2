"""`trainer push`: a model and its card to the Hub."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser("push", help="a model and its generated card to the Hub, private unless asked otherwise")
    p.add_argument("--run", type=Path, help="a run directory: its export, and the figures of its card")
    p.add_argument("--model", type=Path, help="what is sent, where that is not the run's export: a folder of `export`")
    p.add_argument("--repo", required=True, metavar="USER/NAME", help="made where it is not there")
    p.add_argument("--revision", default="main", metavar="BRANCH", help="made where it is not there (main)")
    p.add_argument("--what", choices=("export", "adapters", "ct2"), default="export", help="ct2: for faster-whisper")
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="for you alone (so it is anyway)")
    seen.add_argument("--public", action="store_true", help="for everybody")
    p.add_argument("--keep-card", action="store_true", help="leave a README.md that is there as it is")
    p.add_argument("--dry-run", action="store_true", help="print the card and what would be sent; ask nobody")
    p.add_argument("--yes", action="store_true", help="do not ask")
    p.set_defaults(command=push)


def push(args: argparse.Namespace) -> int:
    """Look, show, ask, send."""
    from trainer.card_file import card_file
    from trainer.errors import BadData
    from trainer.hub_push import Hub, check_name, decide
    from trainer.model_card import make_card
    from trainer.push import make_push

    if args.run is None and args.model is None:
        raise BadData("nothing is named that could be sent", "--run RUN, or --model DIR")
    check_name(args.repo)
    wanted = make_push(args)
    if args.dry_run:
        print(card_file(make_card(wanted.facts)))
        _show(wanted.parcel.files, wanted.parcel.left_out, (), args.repo, "public" if args.public else "private")
        return 0
    hub = Hub(args.repo, args.revision)
    looked = hub.look()
    base = wanted.facts.base
    facts = dataclasses.replace(wanted.facts, license=hub.license_of(base) if base else "")
    sending = decide(
        wanted.parcel,
        args.what,
        make_card(facts),
        looked,
        args.repo,
        is_public=args.public,
        keeps_page=args.keep_card,
    )
    is_private = looked.is_private if looked.exists else not args.public
    whose = ("private" if is_private else "PUBLIC") + ("" if looked.exists else ", new")
    _show(sending.files, wanted.parcel.left_out, sending.stale, hub.url, whose)
    if not args.yes and not _agrees(args.repo):
        print("nothing was sent", file=sys.stderr)
        return 130
    began = time.monotonic()
    _bars()
    print(f"sending to {hub.url} as {looked.user} …", file=sys.stderr)
    made = hub.send(looked, sending, wanted.message, is_private)
    what = "it is there already: nothing differs" if made == looked.head else f"sent: {wanted.message}"
    print(f"✓ after {time.monotonic() - began:.0f} s {what}", file=sys.stderr)
    print(hub.url)
    return 0


def _show(files: Any, left_out: Any, stale: Any, where: str, whose: str) -> None:
    from trainer.parcel import size_of

    for name, content in sorted(files.items()):
        print(f"  {_size(size_of(content)):>10}  {name}", file=sys.stderr)
    for name in stale:
        print(f"   {'removed':>9}  {name}, of an earlier push", file=sys.stderr)
    if left_out:
        print(f"  stays here: {', '.join(left_out)}", file=sys.stderr)
    total = sum(size_of(f) for f in files.values())
    print(f"{len(files)} files, {_size(total)}, to {where} ({whose})", file=sys.stderr)


def _agrees(repo: str) -> bool:
    from trainer.errors import BadData

    if not sys.stdin.isatty():
        raise BadData("nobody can be asked here: this is not a terminal", "--yes")
    print(f"send them to {repo}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _bars() -> None:
    """The client's own progress on a terminal; without one it would fill a log."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _size(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
