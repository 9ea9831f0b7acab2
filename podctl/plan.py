"""Pure decisions about a run: what it is called, whether it resumes another, and what it can cost at most."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from podctl.errors import BadInput, Busy
from podctl.pods import Offer, Plan, Run
from remote.rundir import FAILED, LOST, STOPPED, SUCCEEDED

NEVER_STARTED = "not started"  # the ledger has it, the volume does not
UNSEEN = "ended unseen"  # its pod is no more, and nobody has looked at the volume since
RESUMABLE = frozenset({STOPPED, FAILED, LOST, NEVER_STARTED, UNSEEN})
IDLE_LOCALLY = {
    "gpu": "this machine has what it has",
    "gpu_count": "this machine has what it has",
    "data_centers": "this machine is where it is",
    "volume": "runs lie under podctl's state directory",
    "image": "this machine's own Python runs it",
    "disk_gb": "this machine's disk is as large as it is",
    "on_success": "this machine stays on",
    "on_failure": "this machine stays on",
    "spot": "nobody takes this machine away",
    "guard": "nothing here needs to be given back",
    "ssh": "it runs on this machine",
}
IDLE_OVER_SSH = {
    "gpu": "that machine has what it has",
    "gpu_count": "that machine has what it has",
    "data_centers": "that machine is where it is",
    "image": "that machine's own system runs it",
    "disk_gb": "that machine's disk is as large as it is",
    "on_success": "that machine stays on",
    "on_failure": "that machine stays on",
    "spot": "nobody takes that machine away",
    "guard": "nothing needs to be given back",
}
IDLE_WHERE_RENTED = {"ssh": "it is rented, and its address comes from there"}


@dataclass(frozen=True)
class Choice:
    """Which run a `train` means: a new one, or an older one that goes on."""

    run_id: str
    resumes: Run | None = None
    because: str = ""  # for a person


def choose_run(
    newest: Run | None,
    state: str,
    differences: Sequence[str],
    *,
    force: bool,
    new_id: str,
    podctl: str = "podctl",
    anew: bool = False,
) -> Choice:
    """What a second `train` means. `state` is the volume's word on the newest run of this name. `anew`: one that
    differs is another one, as of evaluations, which leave nothing half-done that others could need.

    Raises Busy where it still runs, BadInput where resuming would train something else than what was begun.
    """
    if newest is None:
        return Choice(new_id)
    if state not in RESUMABLE and state != SUCCEEDED:
        if force:
            raise Busy(
                f"{newest.id} is {state}; two would share this machine", f"{podctl} stop {newest.id}, then again"
            )
        raise Busy(f"{newest.id} is {state}", f"{podctl} attach {newest.id}")
    if force:
        return Choice(new_id, because=f"{newest.id} ({state}) stays as it is")
    if state == SUCCEEDED:
        return Choice(new_id, because=f"{newest.id} succeeded")
    if differences and anew:
        return Choice(new_id, because=f"{newest.id} ({state}) was asked for something else")
    if differences:
        raise BadInput(
            f"{newest.id} ({state}) was begun with other settings, so it can't be resumed with these",
            "--force-restart begins a new run and keeps that one; or undo the changes",
            tuple(differences),
        )
    return Choice(newest.id, newest, because=f"it was {state}")


def make_run_id(name: str, now: float, token: str) -> str:
    """`<name>-<yymmdd-hhmmss>-<4 hex>`, in UTC."""
    return f"{name}-{time.strftime('%y%m%d-%H%M%S', time.gmtime(now))}-{token[:4]}"


def make_plan(
    choice: Choice, pod_name: str, offers: Sequence[Offer], max_hours: float, max_usd: float | None = None
) -> Plan:
    """The offers in their order, and the most that this attempt can cost: the hours at the dearest that may be taken.

    `max_usd` is over all attempts of a run. Offers that could go beyond it are left out; raises BadInput where none
    stays.
    """
    spent_usd = choice.resumes.usd_billed if choice.resumes else 0.0
    left_usd = None if max_usd is None else max(0.0, max_usd - spent_usd)
    fitting = [o for o in offers if left_usd is None or o.usd_per_hour * max_hours <= left_usd]
    if offers and not fitting:
        cheapest = min(o.usd_per_hour for o in offers) * max_hours
        spent = f", of which ${spent_usd:,.2f} is spent" if spent_usd else ""
        raise BadInput(
            f"could cost ${cheapest:,.2f}, the limit is ${max_usd:,.2f}{spent}", "lower pod.max_hours, or raise max_usd"
        )
    return Plan(
        run_id=choice.run_id,
        resumes=choice.resumes is not None,
        pod_name=pod_name,
        offers=fitting,
        max_hours=max_hours,
        ceiling_usd=max((o.usd_per_hour for o in fitting), default=0.0) * max_hours,
        spent_usd=spent_usd,
    )


def without_effect(provider: str, given: Mapping[str, object]) -> dict[str, str]:
    """Keys of `pod:` that were given and that this provider can't honour, with the reason."""
    idle = {"local": IDLE_LOCALLY, "ssh": IDLE_OVER_SSH, "runpod": IDLE_WHERE_RENTED}.get(provider, {})
    return {key: idle[key] for key in given if key in idle}
