"""`trainer report RUN [OTHER]`: one HTML file that shows what a run is worth, or how two differ."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser("report", help="one HTML page of a run, or of two side by side; loads no torch")
    p.add_argument("run", type=Path, metavar="RUN", help="a run directory, on the volume or as it was fetched")
    p.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="another one: what is better in it, and where")
    p.add_argument("--out", type=Path, metavar="FILE", help="reports/report.html of the run by default")
    p.add_argument("--usd", type=_dollars, help="what the run cost, where no receipt says so")
    p.set_defaults(command=report)


def report(args: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    from remote.rundir import RunDir
    from trainer.errors import TrainerError
    from trainer.report.page import write_page

    run = RunDir(args.run.absolute())
    beside = run.reports / f"with-{args.other.absolute().name}.html" if args.other else run.page
    out = args.out or beside
    try:
        write_page(args.run, out, args.other, args.usd)
    except OSError as e:
        raise TrainerError(f"{e.filename or out}: {e.strerror or e}", "name another file with --out") from None
    print(out)
    return 0


def _dollars(text: str) -> float:
    try:
        usd = float(text)
    except ValueError:
        usd = -1.0
    if not 0 <= usd < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no sum of dollars")
    return usd
