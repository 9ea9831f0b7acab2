"""What becomes of a rented pod once its run is over: given back, switched off, or kept as was asked."""

import contextlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from podctl import ledger as events
from podctl.arm import others_on, tell_fetched
from podctl.books import close_pod, cost_until, now_at
from podctl.errors import PodctlError
from podctl.host import Host
from podctl.ledger import Event, Ledger
from podctl.pods import Pod, Run
from podctl.providers.base import Provider
from podctl.rent import end_pod, still_there
from podctl.runs import View, provider_of
from podctl.ui import Ui, money
from remote.clock import Clock, duration
from remote.rundir import STOPPED, SUCCEEDED

STOP, TERMINATE = "stop", "terminate"
Ending = str | dict[str, Any]  # "stop", "terminate", {"hold_s": 1800}


@dataclass(frozen=True)
class Released:
    """How the pod ended. `usd`: all that the run has cost."""

    how: str  # stopped, gone, kept
    usd: float


def ending_of(view: View) -> Ending:
    """What the experiment says, as it was told when the pod was rented. Whoever had it stopped wants to go on some
    time: its pod is switched off, by whichever command is first."""
    run, state = view.run, view.state
    if state == STOPPED and view.status is not None and not view.status.limit:
        return STOP
    told: Any = run.detail.get("on_success" if state == SUCCEEDED else "on_failure")
    return told if isinstance(told, str | dict) and told else TERMINATE


def release(view: View, host: Host, ledger: Ledger, clock: Clock, ui: Ui, ending: Ending | None = None) -> Released:
    """End the pod of a run that is over and whose results are home, and see it ended. Repeating it is harmless.

    The pod's watchdog would end it too; this is sooner, and by the account's own key. Another run on the same pod keeps
    it. Raises PodctlError naming the pod where it goes on.
    """
    run = ledger.runs()[view.run.id]
    provider = provider_of(run)
    if run.gone_at is not None:
        return Released("gone", run.usd_billed)
    others = _others(run, host)
    so_far = run.usd_billed + cost_until(run, now_at(provider, clock))
    ending = ending if ending is not None else ending_of(view)
    if others:
        ui.note(f"its pod goes on with {', '.join(others)}")
        return Released("kept", so_far)
    if isinstance(ending, dict):
        hold_s = float(ending.get("hold_s", 0))
        record(ledger, run, clock.now(), events.HOLD, state=view.state, until=clock.now() + hold_s)
        ui.warn(f"{run.pod_name} stays for {duration(hold_s)}, as asked, at {money(run.usd_per_hour)} an hour")
        ui.hint(f"podctl down {run.id}    to give it back now")
        return Released("kept", so_far)
    try:
        return end_run_pod(run, provider, ledger, clock, ui, ending, view.state)
    except PodctlError:
        with contextlib.suppress(PodctlError):  # then its watchdog does it, and at once
            tell_fetched(run, host)
        raise


def end_run_pod(
    run: Run, provider: Provider, ledger: Ledger, clock: Clock, ui: Ui, ending: str, state: str
) -> Released:
    """Stop or terminate the run's pod, see it ended, and close its books."""
    stops = ending == STOP and provider.can.stop
    pod = end_pod(provider, as_recorded(run), provider.stop if stops else provider.terminate, clock)
    ended = now_at(provider, clock)
    usd = cost_until(run, ended)
    was_gone = pod.state == "gone"
    close_pod(run, ledger, clock.now(), events.GONE if was_gone else events.STOPPED, usd, state=state)
    total = ledger.runs()[run.id].usd_billed
    what = "given back" if was_gone else "switched off"
    ui.done(f"{run.pod_name} is {what}: {money(usd)} for {duration(max(0.0, ended - (run.started_at or ended)))}")
    return Released("gone" if was_gone else "stopped", total)


def as_recorded(run: Run) -> Pod:
    """The run's pod as the ledger knows it: enough to end it by, where its provider does not answer at this moment."""
    nowhere = PurePosixPath("/")
    return Pod(run.provider, run.pod, run.pod_name, "running", run.usd_per_hour, nowhere, nowhere)


def end_broken(run: Run, provider: Provider, clock: Clock, ui: Ui) -> None:
    """A pod that its provider calls broken runs nothing any more and is paid for all the same: it is given back.

    Raises PodctlError naming it where it goes on, or where what was trained lies on it alone.
    """
    pod = provider.get(run.pod)
    if pod.state != "broken":
        return
    if may_lose_data(pod):
        raise still_there(provider.name, pod, "it is broken, and the run's data lies on it alone")
    end_pod(provider, pod, provider.terminate, clock)
    ui.note(f"{run.pod_name} is broken, and given back")


def record(ledger: Ledger, run: Run, now: float, event: str, **detail: Any) -> None:
    ledger.append(Event(now, event, run.id, run.project, run.provider, run.name, run.pod, detail=detail))


def _others(run: Run, host: Host) -> list[str]:
    """The ids of other runs that still need the machine."""
    try:
        return others_on(run, host)
    except PodctlError:
        return []


def may_lose_data(pod: Pod) -> bool:
    """Would terminating it destroy what was trained?"""
    return not pod.volume and pod.state != "gone"
