"""Loss curves: every family trained for fifty steps in float64, without dropout, on a corpus made of seeds.

Augmentation is on, so that what a curve holds fast is the data path as much as the loss and the loop. The gradient's
norm stands beside the losses: AdamW forgives a gradient that is wrong by a constant factor, and a loss curve with it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.families import FAMILIES
from support.speech import make_corpus, write_experiment

STEPS = 50
Curve = dict[str, list[float]]  # `loss/<key>` and `grad_norm` → a number a step


def curve(family: str, folder: Path, steps: int = STEPS) -> Curve:
    """The first `steps` of the family's fifty, as its run wrote them down; all that it needs is put under `folder`."""
    from remote.rundir import RunDir
    from trainer.errors import StopAsked
    from trainer.train import train

    corpus, run = folder / "corpus", RunDir(folder / family)
    for name, n in (("train", 20), ("dev", 1)):
        make_corpus(corpus, n, seed=n, name=name)
    file = write_experiment(folder / f"{family}.yaml", _recipe(family, corpus))
    try:
        with _own_place(folder):
            train(file, run, stop=lambda: steps < STEPS and len(_rows(run.metrics)) >= steps)
    except StopAsked:
        pass  # where fewer were wanted than its schedule has
    rows = _rows(run.metrics)[:steps]
    assert [r["step"] for r in rows] == list(range(1, steps + 1))
    keys = [k for k in rows[0] if k.startswith("loss/") or k == "grad_norm"]
    return {k: [r[k] for r in rows] for k in keys}


def first_difference(a: Curve, b: Curve, tolerance: float = 0.0) -> str:
    """Where two curves first part by more than `tolerance`, relative to `a`; nothing where they don't."""
    if a.keys() != b.keys():
        return f"one has {', '.join(sorted(a))}, the other {', '.join(sorted(b))}"
    n_a, n_b = (len(next(iter(c.values()))) for c in (a, b))
    if n_a != n_b:
        return f"one has {n_a} steps, the other {n_b}"
    for n in range(n_a):
        for key in a:
            x, y = a[key][n], b[key][n]
            if not (x == y or abs(x - y) <= tolerance * abs(x)):
                return f"{key} at step {n + 1}: {x!r} and {y!r}, {abs(x - y) / max(abs(x), 1e-300):.1e} apart"
    return ""


def write_curve(path: Path, found: Curve) -> None:
    """Ten digits a number, a step a line: what another processor rounds otherwise changes no line worth reading."""
    path.write_text(json.dumps({k: [float(f"{v:.10g}") for v in vs] for k, vs in found.items()}, indent=1) + "\n")


def read_curve(path: Path) -> Curve:
    found: Curve = json.loads(path.read_text())
    return found


def _recipe(family: str, corpus: Path) -> Mapping[str, Any]:
    train = FAMILIES[family](
        corpus,
        loop={"steps": STEPS, "precision": "fp64"},
        augment={"speed": [0.9, 1.1], "join_p": 0.3, "spec": {"p": 0.5, "freq_width": 4}},
        optim={"lr": 1e-3},
        eval={"every_steps": STEPS, "before_training": False},
        log={"every_steps": 1},
        data={"cache_gb": 0},
    )
    del train["data"]["test"]
    return train


def _rows(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.exists():
        return []
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [r for r in rows if "grad_norm" in r]


@contextmanager
def _own_place(folder: Path) -> Iterator[None]:
    """Nothing of this machine's: no volume, no runner, no cache but the folder's."""
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith("PODCTL_")]:
        del os.environ[name]
    os.environ |= {"PODCTL_DISK": str(folder / "disk"), "XDG_CACHE_HOME": str(folder / "cache")}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
