"""Ending rented machines on a person's word: a run's, one by its name, those whose time is over."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from podctl.books import close_pod, close_unseen, cost_until, now_at
from podctl.errors import BadInput, Cancelled, PodctlError, PodGone, Unreachable
from podctl.fleet import Machine
from podctl.ledger import GONE, Ledger
from podctl.providers.base import provider_named
from podctl.release import TERMINATE, end_run_pod
from podctl.rent import end_pod
from podctl.runs import open_ledger, provider_of
from podctl.stop import stop_run
from podctl.ui import Ui, money
from remote.clock import clock_from_env

if TYPE_CHECKING:
    from podctl.watch import Watcher


def down_run(w: "Watcher", ledger: Ledger, *, yes: bool) -> int:
    """The run saves, its results come home, its pod is terminated. Where it does not answer the pod ends all the same,
    once a person said so."""
    run = w.run
    if not run.is_rented:
        raise BadInput(f"{run.id} is on a machine that nobody rented", f"podctl stop {run.id} ends the run")
    if not run.pod:
        raise BadInput(f"{run.id} never had a pod that is known", "podctl pods shows what is rented")
    provider = provider_of(run)
    pod = provider.get(run.pod)
    if pod.state == "gone":
        if run.gone_at is None and run.launched_at is not None:
            return w.pod_is_gone(PodGone(f"{run.pod_name} is gone already"), ledger)
        close_unseen(run, ledger, provider, w.clock.now())
        w.ui.note(f"{run.pod_name or run.id} is gone already")
        return 0
    if not pod.volume:
        ask(w.ui, f"{pod.name} has no network volume: all of {run.id} dies with it", pod.name, yes=yes)
    if pod.state == "running" and run.launched_at is not None:
        try:
            return stop_run(w, ledger, ending=TERMINATE)
        except (Unreachable, PodctlError) as e:
            if isinstance(e, PodGone):
                raise
            ask(w.ui, f"{run.id} could not be asked to save: {e.message}", pod.name, yes=yes)
    released = end_run_pod(ledger.runs()[run.id], provider, ledger, w.clock, w.ui, TERMINATE, "")
    if w.ui.as_json:
        w.ui.emit({"event": "down", "run": run.id, "pod": pod.id, "usd": round(released.usd, 4)})
    return 0


def down_pod(word: str, machines: Sequence[Machine], ui: Ui, *, yes: bool) -> int:
    """A pod by its id or name, whatever it does."""
    from podctl.fleet import named

    return reap_these(named(machines, [word]), ui, yes=yes, rest=0)


def reap_these(machines: Sequence[Machine], ui: Ui, *, yes: bool, rest: int) -> int:
    """Terminate them, each seen to have ended. Raises PodctlError naming those that go on, once all were tried."""
    if not machines:
        ui.note("nothing of yours has expired" + (f"; {rest} are rented: podctl pods" if rest else ""))
        return 0
    for m in machines:
        what = m.why or (f"it is {m.owner}'s" if not m.is_ours else f"{m.pod.state}, {money(m.usd)} so far")
        ui.warn(f"{m.pod.name} ({m.pod.id}): {what}")
    foreign = [m for m in machines if not m.is_ours or not m.pod.volume]
    if not yes:
        for m in foreign:
            ask(ui, f"{m.pod.name} is {'without a network volume' if m.is_ours else m.owner + chr(39) + 's'}",
                m.pod.name, yes=False)  # fmt: skip
        if len(foreign) < len(machines) and not ui.confirm(f"end {len(machines)} of them?"):
            raise Cancelled("nothing was ended", "podctl pods shows what is rented")
    clock, ledger, left = clock_from_env(), open_ledger(), []
    for m in machines:
        provider = provider_named(m.pod.provider)
        try:
            end_pod(provider, m.pod, provider.terminate, clock)
        except PodctlError as e:
            left.append(e)
            continue
        run = ledger.runs().get(m.run)
        if run is not None and run.pod == m.pod.id:
            close_pod(run, ledger, clock.now(), GONE, cost_until(run, now_at(provider, clock)))
        if ui.as_json:
            ui.emit({"event": "ended", "pod": m.pod.id, "name": m.pod.name, "usd": round(m.usd, 4)})
        ui.done(f"{m.pod.name} is given back, {money(m.usd)}")
    if left:
        raise left[0]
    return 0


def ask(ui: Ui, what: str, name: str, *, yes: bool) -> None:
    """What destroys something is agreed to by typing its name. Raises Cancelled."""
    if yes:
        return
    ui.warn(what)
    if ui.ask(f"type {name} to end it:") != name:
        raise Cancelled("nothing was ended", "podctl pods shows what is rented")
