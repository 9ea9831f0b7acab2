"""A run's small files on this machine, as they are now where its machine answers, else as they came home."""

from podctl.errors import PodctlError, PodGone
from podctl.mirror import Mirror
from podctl.pods import Run
from podctl.runs import View, host_for, last_known, look, results_dir
from podctl.ui import Ui
from remote.rundir import RunDir


def bring_small_files(run: Run, ui: Ui, now: float) -> View:
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
        if not RunDir(results_dir(run)).reports.is_dir():
            raise
        if not (isinstance(e, PodGone) and run.gone_at is not None and run.detail.get("state")):
            ui.warn(f"{e.message}: this is what came home")  # else its end was seen, and nothing is missing
        view = last_known(run, now)
    if not view.is_over:
        step = f", at step {view.progress.step} of {view.progress.max_steps}" if view.progress else ""
        ui.note(f"{run.id} is still {view.state}{step}: this is what it has measured so far")
    return view
