"""`podctl stop`: the run saves itself first, for a bounded time; only then anything ends, a rented pod too."""

from typing import TYPE_CHECKING

from podctl import ledger as events
from podctl.errors import PodctlError, PodGone, Unreachable
from podctl.ledger import Event, Ledger
from podctl.release import STOP
from podctl.runs import View, ask_control
from remote.clock import duration
from remote.rundir import Job

if TYPE_CHECKING:
    from podctl.watch import Watcher

START_S = 15  # until a runner has written its first status
GRACE_S = Job.grace_s  # what every job is launched with
MARGIN_S = 60  # beyond the grace: the runner's own margin, and a slow machine
PATIENCE_S = 600  # with a link that is down: whoever stops a run wants to know


def stop_run(w: "Watcher", ledger: Ledger, grace_s: float | None = None, ending: str = STOP) -> int:
    """Ask, wait, say what happened. 0 where the run is over afterwards.

    Asking may be repeated, so a link that breaks while the run saves costs nothing. Raises PodctlError where the run
    goes on, Unreachable where nobody knows.
    """
    try:
        view = w.quiet_look()
    except PodGone as e:
        return w.pod_is_gone(e, ledger)
    if view.is_over and view.run.is_rented and ledger.runs()[view.run.id].gone_at is None:
        w.ui.note(f"{view.run.id} does not run: {view.state}")
        w.show_receipt(view, w.settle(view, ledger, ending))
        return 0
    if view.is_over:
        w.ui.note(f"{view.run.id} does not run: {view.state}")
        if w.ui.as_json:
            w.ui.emit({"event": "stopped", **view.as_dict()})
        return 0
    run = view.run
    ledger.append(Event(w.clock.now(), events.STOP_ASKED, run.id, run.project, run.provider, run.name, run.pod))
    w.ui.note(f"asking {run.id} to save and end, for {duration(GRACE_S if grace_s is None else grace_s)} at most")
    begun = w.clock.elapsed()
    try:
        view = w.link.keep_trying(lambda: _asked(w, begun, grace_s), patience_s=PATIENCE_S)
    except Unreachable as e:
        raise type(e)(f"nobody knows whether {run.id} ended: {e.message}", e.hint or f"{w.podctl} stop {run.id}") from e
    if not view.is_over:
        waited = duration(w.clock.elapsed() - begun)
        raise PodctlError(f"{run.id} did not end within {waited}: {view.state}", f"{w.podctl} stop {run.id}")
    w.show_receipt(view, w.settle(view, ledger, ending))
    return 0


def _asked(w: "Watcher", begun: float, grace_s: float | None) -> View:
    """How it is once it was asked and had its time. Raises Unreachable in between."""
    view = w.quiet_look()
    while view.status is None and not view.is_over and w.clock.elapsed() - begun < START_S:
        w.clock.sleep(0.1)  # it was launched a moment ago: nobody could be asked yet
        view = w.quiet_look()
    if view.is_over:
        return view
    told = () if grace_s is None else ("--grace", f"{grace_s:g}")
    try:
        ask_control(view.run, w.host, "stop", *told, timeout_s=(GRACE_S if grace_s is None else grace_s) + MARGIN_S)
    except KeyboardInterrupt:
        w.ui.note(f"{view.run.id} was asked, and ends without you")
        w.ui.hint(f"{w.podctl} status {view.run.id}")
        raise
    return w.quiet_look()
