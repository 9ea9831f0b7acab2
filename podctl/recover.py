"""A ledger that was lost, or another laptop's runs: rebuilt from what lies on the volume."""

import calendar
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from podctl import ledger as events
from podctl import source
from podctl.errors import BadInput, PodctlError
from podctl.facts import Facts, gather, python_words, refuse_what_is_missing
from podctl.host import host_of
from podctl.ledger import Event, Ledger
from podctl.pods import Boot, Pod, PodSpec, Volume
from podctl.project import Project
from podctl.providers.base import Provider, provider_named
from podctl.rented import RentedHost
from podctl.sending import answer_of, send_tool
from podctl.trainer_check import tool_root
from remote.rundir import parse_status

RUN_ID = re.compile(r"(?P<lineage>[a-z0-9-]+?)-(?P<when>\d{6}-\d{6})-[0-9a-f]{4}")


def recover(pod: Pod, name: str, project: Project, ledger: Ledger, now: float) -> list[str]:
    """Write the runs of this name that lie on the pod's volume, and that the ledger does not know, into it. Their ids,
    oldest first. Repeating it adds nothing. Raises PodctlError."""
    host = host_of(pod)
    with source.tool_tree(tool_root()) as (stamp, tool):
        facts = gather(host, pod, stamp=stamp)
        refuse_what_is_missing(facts)
        tool_dir = send_tool(host, facts, stamp, tool)
    result = host.run(python_words(facts, tool_dir / "remote" / "desk.py", "runs", str(facts.volume)))
    answer = answer_of(result.stdout)
    if answer is None or not answer.get("ok"):
        said = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise PodctlError(f"{host.name} can't say which runs it has: {said[0]}")
    known = ledger.runs()
    found = []
    for told in answer["runs"]:
        if told["run_id"] not in known and lineage_of(told["run_id"]) in (name, f"{name}-debug"):
            ledger.append(*events_of(told, pod, facts, project, now))
            found.append(str(told["run_id"]))
    return found


def pod_with_volume(provider: Provider, spec: PodSpec, config: str) -> Pod:
    """A machine that has the experiment's volume: one's own, or a rented pod that is on. Rents none.

    Raises BadInput where none is on, Unreachable.
    """
    if not provider.can.rents:
        return provider.create("recover", provider.offers(spec)[0], spec, Boot())
    volumes = {v.id for v in volumes_of(provider) if spec.volume in (v.id, v.name)}
    for pod in provider.list():
        if pod.state == "running" and pod.volume in volumes:
            return RentedHost(provider, pod.id, pod.name).pod
    raise BadInput(f"no pod with the volume {spec.volume} is on", f"podctl up --config {config} rents one, then again")


def volumes_of(provider: Provider) -> Sequence[Volume]:
    """The provider's network volumes, where it has any."""
    volumes = getattr(provider, "volumes", None)
    return volumes() if volumes is not None else ()


def lineage_of(run_id: str) -> str:
    """`tiny` of `tiny-261121-080000-1a2b`; "" for what is no run's id."""
    match = RUN_ID.fullmatch(run_id)
    return match["lineage"] if match else ""


def events_of(told: dict[str, Any], pod: Pod, facts: Facts, project: Project, now: float) -> list[Event]:
    """What the ledger would have said: begun then, there, and, where its status is final, ended."""
    run_id = str(told["run_id"])
    match = RUN_ID.fullmatch(run_id)
    assert match is not None
    begun = float(calendar.timegm(time.strptime(match["when"], "%y%m%d-%H%M%S")))
    status = parse_status(told.get("status") or {})
    run_dir = str(told["run_dir"])
    host_key = pod.ssh.host_key if pod.ssh is not None else ""

    def event(kind: str, t: float, **detail: Any) -> Event:
        return Event(
            t, kind, run_id, project.id, pod.provider, match["lineage"], pod.id, pod.usd_per_hour, detail=detail
        )

    made = [
        event(events.RECONCILED, begun, pod_name=pod.name, project_root=str(Path(project.root))),
        event(
            events.READY,
            begun,
            run_dir=run_dir,
            source_dir=told["source_dir"],
            tool_dir=told["tool_dir"],
            python=facts.python,
            socket=str(facts.socket(run_dir)),
            secrets_file="",
            attempt_before=(status.attempt - 1) if status else 0,
        ),
        event(
            events.STARTED,
            status.started_at if status else begun,
            rents=provider_named(pod.provider).can.rents,
            volume=pod.volume,
            wanted_volume=pod.volume,
            host_key=host_key,
        ),
        event(events.LAUNCHED, status.started_at if status else begun),
    ]
    if status is not None and status.is_final:
        made.append(event(events.STOPPED, now, state=status.state))
    return made
