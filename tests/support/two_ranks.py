"""Two ranks of a small training, over gloo on the loopback, with a limit on the wait."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
LIMIT_S = 180


def on_two_ranks(
    folder: Path, ranks: int = 2, **case: Any
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]], str]:
    """What each rank says of its end, its weights, and the log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps(case))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*argv, "-m", "support.training", str(folder / "case.json")],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    said = [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(ranks)]
    return said, [torch.load(folder / f"rank-{r}.pt") for r in range(ranks)], log
