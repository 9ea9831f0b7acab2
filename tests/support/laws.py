"""What several ranks check together: run by support/ranks.py, one start for all families."""

import json
import time
from pathlib import Path

from support.families import FAMILIES
from support.steps import furthest, trained

from trainer.errors import BadRecipe
from trainer.machine import Machine

DRAWN = {"spec": {"p": 0.7, "freq_width": 4}, "gain_db": 3, "speed": [0.9, 1.0, 1.1]}
CUTS = (1000.0, 1.5, 0.1)  # 1×8 as far as lengths are equal, 2×4, 8×1


def step_law(machine: Machine, folder: str, families: str, more: str = "{}") -> None:
    """One rank's update against that of all, joined and dealt, in each cut: a line of JSON a case."""
    sections = json.loads(more)
    alone = Machine(machine.device, machine.precision)
    for family in families.split(","):
        if machine.is_first:  # the model that some are trained from, written once
            FAMILIES[family](Path(folder))
        machine.wait()
        how = {"family": family, "augment": DRAWN, "steps": 2, **sections}
        one, _ = trained(Path(folder), micro_s=1000.0, machine=alone, **how)
        start, _ = trained(Path(folder), micro_s=1000.0, machine=alone, **{**how, "optim": {"lr": 1e-30}, "phases": []})
        for is_sharded in (False, True):
            for micro_s in CUTS:
                began = time.monotonic()
                case = {**how, "loop": {**sections.get("loop", {}), "shard": is_sharded}}
                try:
                    many, n_micros = trained(Path(folder), micro_s=micro_s, machine=machine, **case)
                except BadRecipe as e:
                    if machine.is_first:
                        print(json.dumps({"family": family, "refused": str(e)}), flush=True)
                    break
                if machine.is_first:
                    line = {"family": family, "sharded": is_sharded, "micro_s": micro_s, "micros": n_micros}
                    line |= {"off": furthest(one, many), "moved": furthest(start, one)}
                    print(json.dumps({**line, "s": round(time.monotonic() - began, 2)}), flush=True)
