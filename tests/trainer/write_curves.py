"""Writes the loss curves again that test_curves.py meets: `python tests/trainer/write_curves.py [FAMILY …]`.

A curve changes where a loss, the data path or the loop does, and then the commit says why. CI only meets them.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.curves import curve, first_difference, read_curve, write_curve  # noqa: E402
from support.families import FAMILIES  # noqa: E402

CURVES = Path(__file__).parent / "curves"


def main(argv: Sequence[str], folder: Path = CURVES) -> int:
    if os.environ.get("CI"):
        print("curves are not written in CI: there they are met → write them where you work", file=sys.stderr)
        return 2
    unknown = [f for f in argv if f not in FAMILIES]
    if unknown:
        print(f"no family {', '.join(unknown)} → known are {', '.join(FAMILIES)}", file=sys.stderr)
        return 2
    folder.mkdir(exist_ok=True)
    for family in argv or FAMILIES:
        path = folder / f"{family}.json"
        with tempfile.TemporaryDirectory() as place:
            fresh = curve(family, Path(place))
        differs = first_difference(read_curve(path), fresh, tolerance=1e-9) if path.exists() else "was not there"
        if differs:
            write_curve(path, fresh)
        print(f"{family}: {differs or 'as it was'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
