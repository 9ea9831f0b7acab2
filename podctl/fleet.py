"""All rented machines of an account, and which of them nobody needs any more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podctl.errors import BadInput, NoRights
from podctl.podname import parse_pod_name
from podctl.pods import Pod, Run
from podctl.providers.base import PROVIDERS, Provider, provider_named
from remote.clock import utc

LATE_S = 300.0  # beyond a deadline, for the pod's own watchdog to act on it


@dataclass(frozen=True)
class Machine:
    """A pod as its provider lists it, and what is known of it here. `why`: the reason to end it, "" for none."""

    pod: Pod
    owner: str
    is_ours: bool
    run: str
    until: float | None
    usd: float  # of this boot so far
    why: str = ""
    now: float = 0.0  # this moment by its provider's clock

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        p = self.pod
        return {
            "pod": p.id,
            "name": p.name,
            "provider": p.provider,
            "state": p.state,
            "gpu": p.gpu,
            "gpu_count": p.gpu_count,
            "data_center": p.data_center,
            "volume": p.volume,
            "usd_per_hour": p.usd_per_hour,
            "usd": round(self.usd, 4),
            "started_at": p.started_at,
            "until": self.until,
            "owner": self.owner,
            "is_ours": self.is_ours,
            "run": self.run,
            "expired": bool(self.why),
            "why": self.why,
        }


def renters() -> list[Provider]:
    """The providers that rent machines out and that there is a key for. Raises NoRights where there is none."""
    found, last = [], None
    for name in PROVIDERS:
        provider = provider_named(name)
        if not provider.can.rents:
            continue
        try:
            provider.list()
        except NoRights as e:
            last = e
        else:
            found.append(provider)
    if not found and last is not None:
        raise last
    return found


def fleet(pods: Sequence[Pod], runs: Mapping[str, Run], owner: str, now: float) -> list[Machine]:
    """What there is to say about each, oldest first. Pure."""
    by_pod = {run.pod: run for run in runs.values() if run.pod}
    found = [_machine(pod, by_pod.get(pod.id) or _run_of(pod, runs), owner, now) for pod in pods if pod.state != "gone"]
    return sorted(found, key=lambda m: m.pod.started_at or m.pod.created_at or 0.0)


def named(machines: Sequence[Machine], words: Sequence[str]) -> list[Machine]:
    """Those that are called so, by id, name or run, whoever owns them. Raises BadInput for a word that fits none."""
    found = []
    for word in words:
        fitting = [m for m in machines if word in (m.pod.id, m.pod.name, m.run)]
        if not fitting:
            raise BadInput(f"there is no pod {word!r}", "podctl pods lists them")
        found += [m for m in fitting if m not in found]
    return found


def _run_of(pod: Pod, runs: Mapping[str, Run]) -> Run | None:
    name = parse_pod_name(pod.name)
    return next((run for run in runs.values() if name is not None and name.is_of(run.id)), None)


def _machine(pod: Pod, run: Run | None, owner: str, now: float) -> Machine:
    name = parse_pod_name(pod.name)
    is_ours = name is not None and name.owner == owner
    until = name.until if name is not None else None
    on = pod.state in ("running", "starting", "broken")
    begun = pod.started_at or pod.created_at or now
    usd = max(0.0, now - begun) / 3600 * pod.usd_per_hour if on else 0.0
    why = _why_end(pod, run, until, now) if is_ours else ""
    return Machine(pod, name.owner if name else "?", is_ours, run.id if run else "", until, usd, why, now)


def _why_end(pod: Pod, run: Run | None, until: float | None, now: float) -> str:
    """The reason to end a pod of ours, "" for none. What lies on a switched-off pod alone is nobody's to throw away."""
    if pod.state == "stopped" and not pod.volume:
        return ""
    if run is not None and run.pod == pod.id:
        held_until = run.detail.get("until")
        if run.last_event == "hold" and held_until and now > float(str(held_until)) + LATE_S:
            return "its while is over"
        if run.gone_at is not None and run.last_event in ("gone", "billed") and pod.state != "stopped":
            return "it was given back, and is still there"
    if pod.state == "broken":
        return "it is broken"
    if until is not None and now > until + LATE_S:
        return f"its time ended {utc(until)}"
    return ""
