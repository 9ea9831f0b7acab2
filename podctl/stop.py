"""`podctl stop`: the run saves itself first, for a bounded time; only then anything ends."""

from typing import TYPE_CHECKING

from podctl import fetch
from podctl import ledger as events
from podctl.errors import PodctlError
from podctl.ledger import Event, Ledger
from podctl.runs import ask_control
from remote.clock import duration
from remote.rundir import Job

if TYPE_CHECKING:
    from podctl.watch import Watcher

START_S = 15  # until a runner has written its first status
GRACE_S = Job.grace_s  # what every job is launched with
MARGIN_S = 60  # beyond the grace: the runner's own margin, and a slow machine


def stop_run(w: "Watcher", ledger: Ledger) -> int:
    """Ask, wait, say what happened. 0 where the run is over afterwards. Raises PodctlError where it is not."""
    view = w.quiet_look()
    if view.is_over:
        w.ui.note(f"{view.run.id} does not run: {view.state}")
        if w.ui.as_json:
            w.ui.emit({"event": "stopped", **view.as_dict()})
        return 0
    run = view.run
    ledger.append(Event(w.clock.now(), events.STOP_ASKED, run.id, run.project, run.provider, run.name, run.pod))
    w.ui.note(f"asking {run.id} to save and end, for {duration(GRACE_S)} at most")
    begun = w.clock.now()
    while view.status is None and not view.is_over and w.clock.now() - begun < START_S:
        w.clock.sleep(0.1)  # it was launched a moment ago: nobody could be asked yet
        view = w.quiet_look()
    if not view.is_over:
        try:
            ask_control(run, w.host, "stop", timeout_s=GRACE_S + MARGIN_S)
        except KeyboardInterrupt:
            w.ui.note(f"{run.id} was asked, and ends without you")
            w.ui.hint(f"{w.podctl} status {run.id}")
            raise
        view = w.quiet_look()
    if not view.is_over:
        waited = duration(w.clock.now() - begun)
        raise PodctlError(f"{run.id} did not end within {waited}: {view.state}", f"{w.podctl} stop {run.id}")
    receipt = fetch.settle(view, w.host, ledger, run.project, w.podctl)
    w.show_receipt(view, receipt)
    return 0
