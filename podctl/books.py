"""What a rented pod has cost, and the ledger's last word on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from podctl import ledger as events
from podctl.errors import PodctlError
from podctl.ledger import Event, Ledger
from podctl.pods import Run
from podctl.providers.base import Provider
from podctl.runs import View, provider_of
from remote.clock import Clock


def cost_until(run: Run, until: float) -> float:
    """Dollars of the run's pod, from its start as its provider tells it to a Unix time of its provider's."""
    begun = run.started_at or until
    return max(0.0, until - begun) / 3600 * run.usd_per_hour


def now_at(provider: Provider, clock: Clock) -> float:
    """This moment by the provider's clock, which told when a pod began; by ours where it tells no time."""
    tell: Callable[[], float] | None = getattr(provider, "now", None)
    return tell() if tell is not None else clock.now()


def close_pod(run: Run, ledger: Ledger, now: float, event: str, usd: float, **detail: Any) -> None:
    """The end of the run's pod (GONE, STOPPED) and its bill, once."""
    end = Event(now, event, run.id, run.project, run.provider, run.name, run.pod, detail=detail)
    bill = replace(end, event=events.BILLED, usd=usd, detail={})
    ledger.append(end, bill, unless=lambda runs: run.id in runs and runs[run.id].gone_at is not None)


def close_unseen(
    run: Run, ledger: Ledger, provider: Provider, now: float, state: str = "", *, event: str = events.GONE
) -> bool:
    """A pod that ended while nobody looked: by its provider's own books, else no later than its deadline. False where
    it was closed before."""
    if run.gone_at is not None or not run.pod:
        return False
    usd, source = _billed(run, provider), "the provider's bill"
    if usd is None:
        deadline = float(str(run.detail.get("deadline_at") or now))
        usd, source = cost_until(run, min(now, deadline)), "an upper bound"
    close_pod(run, ledger, now, event, usd, unseen=True, bill_by=source, **({"state": state} if state else {}))
    return True


def close_all_unseen(views: Sequence[View], ledger: Ledger, now: float) -> list[View]:
    """The same views, with the books closed of those whose pods were found to be no more."""
    found = []
    for v in views:
        if v.pod_is_gone and close_unseen(v.run, ledger, provider_of(v.run), now):
            v = replace(v, run=ledger.runs()[v.run.id])
        found.append(v)
    return found


def _billed(run: Run, provider: Provider) -> float | None:
    billed = getattr(provider, "billed", None)
    if billed is None or run.started_at is None:
        return None
    try:
        usd: float | None = billed(run.pod, run.started_at)
    except PodctlError:
        return None
    return usd
