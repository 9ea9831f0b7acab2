"""The page that a person looks at: a run's results, or two runs beside each other, as one HTML file of this machine.

The trainer makes it, as a subprocess, since the halves do not import each other. Where its packages are not installed
here, the page that the run made of itself at its end will do.
"""

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podctl import shell
from podctl.errors import BadInput, MissingHere, PodctlError
from podctl.pods import Run
from podctl.runs import results_dir
from podctl.trainer_check import tool_root
from podctl.ui import shown
from remote.rundir import RunDir

MAKE_S = 300.0
MISSING = re.compile(r"^(?:ModuleNotFoundError|ImportError): .*?'([^']+)'", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One HTML file. `made_here`: now, from what came home; else it is the run's own, as it was at its end."""

    path: Path
    made_here: bool
    why: str = ""


def place_of(run: Run, other: Run | None, to: Path | None) -> Path:
    """Where the page goes: below the run's fetched results, unless somebody says where. Raises BadInput."""
    if to is None:
        return results_dir(run) / (f"report-with-{other.id}.html" if other else "report.html")
    target = Path(to).absolute()
    if target.is_dir():
        raise BadInput(f"{shown(to)} is a folder", f"--to {shown(to / f'{run.id}.html')}")
    if not target.parent.is_dir():
        raise BadInput(f"there is no folder {shown(target.parent)}", "make it, or leave --to out")
    return target


def make_page(
    run: Run, other: Run | None, target: Path, usd: float, *, python: str = sys.executable, root: Path | None = None
) -> Page:
    """Raises BadInput where nothing was measured yet, MissingHere where neither way is open, PodctlError."""
    folders = [results_dir(r) for r in (run, other) if r is not None]
    argv = [python, "-P", "-m", "trainer", "report", *map(str, folders), "--out", str(target), "--usd", f"{usd:.4f}"]
    result = shell.run(argv, env={"PYTHONPATH": str(root or tool_root())}, timeout_s=MAKE_S)
    if result.ok and target.is_file():
        return Page(target, made_here=True)
    missing = MISSING.search(result.stderr)
    if missing is not None:
        return _made_there(run, other, target, f"{missing[1]} is not installed beside {python}")
    said = [line for line in result.stderr.splitlines() if line.strip()] or [f"exit code {result.exit_code}"]
    hints = [line.removeprefix("→ ") for line in said if line.startswith("→ ")]
    if result.exit_code == BadInput.exit_code:
        raise BadInput(said[0], hints[0] if hints else f"podctl status {run.id} shows how far it is")
    raise PodctlError(f"the page could not be made: {said[-1]}", f"podctl pull {run.id} reports, and look at those")


def _made_there(run: Run, other: Run | None, target: Path, why: str) -> Page:
    page = RunDir(results_dir(run)).page
    if other is not None or not page.is_file():
        raise MissingHere(f"{why}: the page can't be made here", "pip install 'podctl[train]'")
    if target.parent != results_dir(run):
        shutil.copyfile(page, target)
        return Page(target, made_here=False, why=why)
    return Page(page, made_here=False, why=why)


def can_show(environ: Mapping[str, str], platform: str, *, is_terminal: bool) -> bool:
    """Is there a browser that the person sees? Not over ssh, nor without a display, nor in a script."""
    if not is_terminal or any(environ.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")):
        return False
    if platform in ("darwin", "win32") or environ.get("BROWSER"):
        return True
    return any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
