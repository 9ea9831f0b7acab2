"""What the trainer says about an experiment's `train:` section, before anything is rented.

A subprocess, because the halves do not import each other; no torch is loaded there.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import podctl
from podctl import shell
from podctl.errors import MissingHere, PodctlError
from remote.mistakes import Mistake


@dataclass(frozen=True)
class Verdict:
    mistakes: tuple[Mistake, ...] = ()
    changes: tuple[str, ...] = ()  # what a resume would not allow: `optim.lr: 0.001 → 0.003`


def tool_root() -> Path:
    """The folder that holds `remote/` and `trainer/` of this very podctl. Raises MissingHere."""
    root = Path(podctl.__file__).resolve().parent.parent
    for part in ("remote/rundir.py", "trainer/__main__.py"):
        if not (root / part).is_file():
            raise MissingHere(
                f"{root / part} is missing: this podctl is not whole", "pip install --force-reinstall podctl"
            )
    return root


def check_training(resolved: str, against: str = "") -> Verdict:
    """Ask about a resolved experiment, and about resuming one. Raises PodctlError where the trainer can't answer."""
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        argv = [sys.executable, "-P", "-m", "trainer", "check", "--json"]
        if against:
            old = Path(tmp, "old.yaml")
            old.write_text(against, encoding="utf-8")
            argv += ["--against", str(old)]
        new = Path(tmp, "experiment.yaml")
        new.write_text(resolved, encoding="utf-8")
        result = shell.run([*argv, str(new)], env={"PYTHONPATH": str(tool_root())}, timeout_s=120)
    try:
        answer = json.loads(result.stdout.strip().splitlines()[-1])
        mistakes = tuple(Mistake(str(m["where"]), str(m["what"])) for m in answer["mistakes"])
        return Verdict(mistakes, tuple(str(c) for c in answer["changes"]))
    except (ValueError, LookupError, TypeError):
        said = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["nothing"]
        raise PodctlError(f"the trainer could not check the file, and said: {said[0]}") from None
