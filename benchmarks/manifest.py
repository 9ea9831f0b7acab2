"""Reading a manifest for the first time, opening it again, and drawing a step out of it.

python benchmarks/manifest.py [ROWS]      default 200,000; memory is the process's peak
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from trainer.data.manifest import Manifest, open_manifests
from trainer.data.plan import Plan
from trainer.recipe.data import Data
from trainer.recipe.loop import Loop


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        soundfile.write(root / "a.wav", np.full(16_000, 0.1, np.float32), 16_000)
        with (root / "m.jsonl").open("w") as f:
            for i in range(rows):
                row = {"id": f"utterance-{i}", "audio": "a.wav", "text": "one two three", "duration_s": 1 + i % 9}
                f.write(json.dumps(row) + "\n")
        data = Data(train=["m.jsonl"], dev=["d.jsonl"])

        def opened() -> Manifest:
            return open_manifests([root / "m.jsonl"], data, root, root / "cache")

        for what in ("indexed", "opened again"):
            began = time.perf_counter()
            manifest = opened()
            print(f"{rows:,} rows {what}: {time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        place = Plan(manifest.column("duration_s"), Loop(epochs=1, step_utts=256)).at(5)
        examples = [manifest[int(p)] for p in place.positions]
        print(f"first step of an epoch, {len(examples)} rows: {time.perf_counter() - began:.2f} s")
        print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
