"""How long `podctl` takes to answer: the median of 20 starts, and their spread, on this machine.

python benchmarks/cli_start.py
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTS = 20
LIMIT_MS = 200


def main() -> int:
    """1 where `--help` is over its limit."""
    root = Path(__file__).resolve().parents[1]
    print(f"{platform.node()} · {os.cpu_count()} cores · Python {platform.python_version()} · {STARTS} starts each")
    over = False
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "PODCTL_HOME": home, "PYTHONPATH": str(root)}
        for command in ("--help", "--version", "ps"):
            took_ms = sorted(start_ms([sys.executable, "-m", "podctl", command], env) for _ in range(STARTS))
            median = statistics.median(took_ms)
            print(f"podctl {command:<10} {median:6.0f} ms   ({took_ms[0]:.0f} to {took_ms[-1]:.0f})")
            over |= command == "--help" and median >= LIMIT_MS
    return int(over)


def start_ms(argv: list[str], env: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, env=env, check=True, capture_output=True)
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
