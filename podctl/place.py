"""Steps 7 and 8 of a train: the machine of a launch, rented or one's own, and what ends it if it costs money."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from podctl import ledger as events
from podctl import runs, source
from podctl.arm import Claim, arm, hold
from podctl.books import close_unseen, now_at
from podctl.errors import LimitReached, NoRights, PodctlError, Unreachable
from podctl.facts import Facts, gather, refuse_what_is_missing, whole
from podctl.host import Host, host_of
from podctl.ledger import Event, Ledger
from podctl.pods import Boot, Pod, Run
from podctl.prepare import Prepared
from podctl.proofs import proofs_of
from podctl.providers.base import Provider
from podctl.ready import Ready
from podctl.rent import Renting
from podctl.sending import send_tool
from podctl.trainer_check import tool_root
from podctl.ui import Ui
from remote.clock import Clock, duration
from remote.rundir import SUCCEEDED, Job, Volume, parse_status

TOOLS_S = 300.0  # for a boot guard to install tmux and rsync
SAVE_S = 120.0  # before the deadline, beyond the grace: for the last checkpoint to reach the volume


@dataclass(frozen=True)
class Place:
    """The machine of a launch, and the way to it."""

    pod: Pod
    host: Host
    ready: Ready | None = None  # where it was rented


def take_place(p: Prepared, record: Callable[..., None], ui: Ui, clock: Clock, undo: contextlib.ExitStack) -> Place:
    """The machine that there is, or a rented one that answers; `undo` gives it back."""
    record(
        events.INTENT,
        pod_name=p.plan.pod_name,
        project_root=str(p.project.root),
        rents=p.provider.can.rents,
        wanted_volume=p.spec.volume or "",
        **p.purpose,
    )
    if not p.provider.can.rents:
        pod = p.provider.create(p.plan.pod_name, p.plan.offers[0], p.spec, Boot(env=p.experiment.env))
        record(events.CREATED, pod)
        record(events.STARTED, pod, started_at=pod.started_at, rents=False)
        undo.callback(give_back, p.provider, pod, record)
        return Place(pod, host_of(pod))
    before = p.choice.resumes
    if before is not None and before.is_rented and before.pod and before.gone_at is None:
        state = p.provider.get(before.pod).state
        if state in ("gone", "stopped"):  # it ended while nobody looked: its bill, before there is another
            event = events.GONE if state == "gone" else events.STOPPED
            close_unseen(before, runs.open_ledger(), p.provider, clock.now(), event=event)
    renting = Renting(p.provider, record, ui, clock)
    ready = renting.obtain(p.wish)
    undo.callback(renting.hand_back, ready.pod, is_new=ready.is_new)
    record(events.STARTED, ready.pod, **pod_detail(p, ready))
    return Place(ready.pod, ready.host, ready)


def pod_detail(p: Prepared, ready: Ready) -> dict[str, Any]:
    """What the ledger keeps of a rented pod: how it is reached again, what it costs, what becomes of it."""
    pod = ready.pod
    begun = pod.started_at or pod.created_at
    endings = p.endings
    return {
        "started_at": paid_since(pod, is_new=ready.is_new),
        "rents": True,
        "pod_name": pod.name,
        "volume": pod.volume,
        "guard_dir": str(ready.announced.guard_dir or ""),
        "host_key": ready.announced.host_key,
        "boot": ready.announced.boot,
        "deadline_at": (begun or 0.0) + p.plan.max_hours * 3600 if begun else None,
        "state": "",
        **endings,
    }


def paid_since(pod: Pod, *, is_new: bool) -> float | None:
    """From when this boot of a pod costs: a new one from its create call, since nobody says that pulling its image is
    free."""
    return (pod.created_at if is_new else None) or pod.started_at or pod.created_at


def gather_there(p: Prepared, place: Place, tree: str, stamp: str, clock: Clock) -> Facts:
    """What the machine has. On a rented one our own tools may still be on their way: its boot guard installs them."""
    begun = clock.elapsed()
    while True:
        facts = gather(place.host, place.pod, run_id=p.plan.run_id, project=p.project.id, tree=tree, stamp=stamp)
        is_whole = {"tmux", "bash"} <= facts.has and facts.python
        if place.ready is None or is_whole or clock.elapsed() - begun > TOOLS_S:
            return facts
        clock.sleep(3)


def over_already(p: Prepared, host: Host, pod: Pod) -> bool:
    """Did the run that is to be resumed succeed while nobody looked? Only its volume knows."""
    if p.choice.resumes is None or p.choice.resumes.launched_at is None:
        return False
    told = host.read(PurePosixPath(Volume(pod.volume_dir).run(p.plan.run_id).status))
    try:
        status = parse_status(json.loads(told or b"{}"))
    except (ValueError, AttributeError):
        return False
    return status is not None and status.state == SUCCEEDED


def guard_place(
    p: Prepared, place: Place, pod: Pod, facts: Facts, tool_dir: PurePosixPath, ui: Ui, *, idle: bool = False
) -> float:
    """The run's claim on its pod, and the watchdog's word; the hours that the run itself may take. `idle`: without a
    run, until its hours are over.

    Raises PodctlError where nothing on the pod could end it: then it goes back.
    """
    assert place.ready is not None
    announced = place.ready.announced
    deadline_s = p.plan.max_hours * 3600
    if not place.ready.is_new and pod.started_at:
        deadline_s += max(0.0, facts.now - pod.started_at)
    endings = p.endings
    claim = Claim(
        run_id=p.plan.run_id,
        run_dir=str(Volume(facts.volume).run(p.plan.run_id)),
        disk=str(facts.disk),
        tool_dir=str(tool_dir),
        deadline_s=deadline_s,
        grace_s=Job.grace_s,
        fetch_grace_s=p.experiment.pod.guard.fetch_grace_s,
        on_success=endings["on_success"],
        on_failure=endings["on_failure"],
    )
    assert announced.guard_dir is not None
    try:
        verdict = arm(place.host, facts, tool_dir, announced.guard_dir, claim)
        verdict = verdict.drilled(proofs_of(runs.open_ledger(), p.provider.name))
        if idle:
            hold(place.host, facts, tool_dir, announced.guard_dir, p.plan.run_id, deadline_s)
    except PodctlError as e:
        if not p.unguarded or isinstance(e, Unreachable):
            raise
        ui.warn(f"{e.message}: nobody but you ends this pod")
        return p.plan.max_hours
    if not verdict.is_enough and not p.unguarded:
        raise NoRights(
            f"nothing on {pod.name} could end it: {verdict.best.name}: {verdict.best.detail}",
            "--unguarded rents it all the same; then only you end it",
        )
    (ui.done if verdict.is_enough else ui.warn)(f"its watchdog {verdict}")
    left_s = deadline_s - verdict.elapsed_s - Job.grace_s - SAVE_S
    if left_s <= 0:
        raise LimitReached(
            f"max_hours ({duration(p.plan.max_hours * 3600)}) is over before the run could begin", "raise pod.max_hours"
        )
    return left_s / 3600


def give_back(provider: Provider, pod: Pod, record: Callable[..., None]) -> None:
    """The end of a launch that failed on a machine that nobody rented."""
    provider.terminate(pod.id)
    record(events.GONE, pod)


def take_up(p: Prepared, ui: Ui, clock: Clock) -> Run:
    """Rent or resume the experiment's machine, guarded, without a run. Raises PodctlError; then it was given back."""
    book = runs.open_ledger()
    record = recorder(p, book, clock)
    with source.tool_tree(tool_root()) as (stamp, tool):
        with contextlib.ExitStack() as undo:
            place = take_place(p, record, ui, clock, undo)
            facts = gather_there(p, place, "", stamp, clock)
            refuse_what_is_missing(facts)
            tool_dir = send_tool(place.host, facts, stamp, tool)
            guard_place(p, place, whole(place.pod, facts), facts, tool_dir, ui, idle=True)
            undo.pop_all()
    return book.runs()[p.plan.run_id]


def recorder(p: Prepared, book: Ledger, clock: Clock) -> Callable[..., None]:
    """Writes the run's lines into the ledger; the end of a rented pod with its bill."""

    def record(event: str, pod: Pod | None = None, **detail: Any) -> None:
        now, usd_per_hour = clock.now(), pod.usd_per_hour if pod else 0.0
        line = Event(now, event, p.plan.run_id, p.project.id, p.provider.name, p.lineage,
                     pod.id if pod else "", usd_per_hour, detail=dict(detail))  # fmt: skip
        bills = pod is not None and p.provider.can.rents and event in (events.GONE, events.STOPPED)
        if pod is None or not bills:
            book.append(line)
            return
        ended = now_at(p.provider, clock)
        begun = paid_since(pod, is_new=bool(detail.get("is_new"))) or ended
        usd = 0.0 if pod.state in ("stopped", "gone") else max(0.0, ended - begun) / 3600 * usd_per_hour
        book.append(line, replace(line, event=events.BILLED, usd=usd, detail={}))

    return record
