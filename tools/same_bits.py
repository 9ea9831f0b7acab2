"""Do two commits train the same thing, bit for bit? Loss curves of every family on this machine, of both in turn.

python tools/same_bits.py BASE [FAMILY …] [--steps 50]

BASE is a commit, or a folder with another copy of the source. It is held against the working tree as it is, with the
working tree's recipes (tests/support/curves.py). Exit 0: equal; 1: they differ, and the first step that does is named;
2: one of them does not run.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from support.curves import STEPS, Curve, curve, first_difference  # noqa: E402
from support.families import FAMILIES  # noqa: E402


class CannotRun(Exception):
    """One side trains nothing; the message says which and why."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a commit, or a folder")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--steps", type=int, default=STEPS, choices=range(1, STEPS + 1), metavar="N")
    args = parser.parse_args(argv)
    unknown = [f for f in args.families if f not in FAMILIES]
    if unknown:
        parser.error(f"no family {', '.join(unknown)}: known are {', '.join(FAMILIES)}")
    differ = 0
    with tempfile.TemporaryDirectory() as place:
        try:
            base = checked_out(args.base, Path(place) / "base")
            for family in args.families or FAMILIES:
                one, two = (trained(tree, family, args.steps) for tree in (base, ROOT))
                where = first_difference(one, two)
                differ += bool(where)
                print(f"{family}: {where or f'the same bits in {args.steps} steps'}", flush=True)
        except CannotRun as e:
            print(e, file=sys.stderr)
            return 2
    return 1 if differ else 0


def checked_out(base: str, to: Path) -> Path:
    """The source of a commit, laid out; a folder is taken as it is. The repository learns nothing of it."""
    if Path(base, "trainer").is_dir():
        return Path(base).resolve()
    done = subprocess.run(["git", "-C", str(ROOT), "archive", base, "trainer", "remote"], capture_output=True)
    if done.returncode:
        raise CannotRun(f"{base} is no commit here: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(to, filter="data")
    return to


def trained(tree: Path, family: str, steps: int) -> Curve:
    """A family's curve by a tree's own trainer, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "curve.json"
        code = f"import same_bits; same_bits.write({str(tree)!r}, {family!r}, {steps}, {str(out)!r})"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT / "tools")])}
        done = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotRun(f"{family} can't be trained by the source in {tree}: {reason}")
        found: Curve = json.loads(out.read_text())
        return found


def write(tree: str, family: str, steps: int, out: str) -> None:
    """What the process of one side does. Numbers are written so that they come back as they were."""
    import trainer

    assert Path(str(trainer.__file__)).is_relative_to(tree), f"{trainer.__file__} is not of {tree}"
    with tempfile.TemporaryDirectory() as folder:
        Path(out).write_text(json.dumps(curve(family, Path(folder), steps)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
