"""A run's small files on this machine, as they are now where its machine answers, else as they came home."""

from dataclasses import replace

from podctl.errors import PodctlError, PodGone, Unreachable
from podctl.ledger import Ledger
from podctl.mirror import Mirror
from podctl.pods import Run
from podctl.runs import View, host_for, last_known, look, results_dir
from podctl.ui import Ui
from remote.rundir import RunDir


def bring_small_files(run: Run, ledger: Ledger, ui: Ui, now: float) -> View:
    """Bring what is new of them, and say how the run is. What can't be reached is told, and what is here will do.

    Raises PodctlError where there is nothing here either.
    """
    if "run_dir" not in run.detail:
        raise PodctlError(f"{run.id} never began", "podctl train starts it")
    try:
        host = host_for(run)
        view = look(run, host, now)
        mirror = Mirror(run, host)
        mirror.finish()
        if mirror.trouble:
            ui.warn(f"not everything new of {run.id} came: {mirror.trouble}")
    except PodctlError as e:
        if not _is_home(run):
            raise
        view = _as_it_came_home(run, now, e, ui)
    if not view.is_over:
        step = f", at step {view.progress.step} of {view.progress.max_steps}" if view.progress else ""
        ui.note(f"{run.id} is still {view.state}{step}: this is what it has measured so far")
    return view


def _as_it_came_home(run: Run, now: float, e: PodctlError, ui: Ui) -> View:
    view = last_known(run, now)
    if not (
        isinstance(e, PodGone) and view.is_over and run.gone_at is not None
    ):  # its end was seen: nothing is missing
        ui.warn(f"{e.message}: this is what came home")
    return replace(view, pod_is_gone=not isinstance(e, Unreachable) or isinstance(e, PodGone))


def _is_home(run: Run) -> bool:
    return RunDir(results_dir(run)).reports.is_dir()
