"""What an evaluation or a prediction found, put where it is wanted: beside the run that it is of, or into a file."""

from collections.abc import Mapping
from pathlib import Path

from podctl.errors import PodctlError
from podctl.pods import Run
from podctl.runs import results_dir
from podctl.ui import shown
from remote.files import write_atomic
from remote.rundir import RunDir

PREDICTIONS = "predictions.jsonl"  # below a run's reports/


def hand_on(run: Run, known: Mapping[str, Run]) -> tuple[str, ...]:
    """Copy what came home of a run that is `of` another to where it is wanted; the paths. Repeating it changes nothing.

    Raises PodctlError where another file stands there already, which stays as it is; OSError for this disk.
    """
    came = RunDir(results_dir(run))
    if run.does == "predict":
        source, to = came.reports / PREDICTIONS, str(run.detail.get("to") or "")
        if not to or not source.exists():
            return ()
        return (_put(source, Path(to), overwrite=bool(run.detail.get("overwrite")) and _is_older(Path(to), run)),)
    evaluated = known.get(run.of)
    if evaluated is None:
        return ()
    beside = RunDir(results_dir(evaluated))
    copies = []
    for source in sorted(came.reports.glob("evaluate-*")):
        if source.is_file():
            copies.append(_put(source, beside.reports / source.name, overwrite=True))
    for source in sorted(came.sounds.glob("*.flac")):  # their names say what is in them
        if source.is_file():
            _put(source, beside.sounds / source.name, overwrite=True)
    return tuple(c for c in copies if c.endswith(".json"))


def _is_older(target: Path, run: Run) -> bool:
    """Whether what stands there stood there when it was asked for: what was written since is somebody's work."""
    told = run.detail.get("asked_at")
    asked_at = told if isinstance(told, int | float) else run.launched_at or 0.0
    return target.exists() and target.stat().st_mtime < asked_at


def _put(source: Path, target: Path, *, overwrite: bool) -> str:
    data = source.read_bytes()
    if target.exists():
        if target.is_file() and target.read_bytes() == data:
            return str(target)
        if not overwrite:
            hint = f"they are in {shown(source)}; move one of them"
            raise PodctlError(f"{shown(target)} was there already, and stays", hint)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, data)
    return str(target)
