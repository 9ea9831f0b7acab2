"""Steps 7 to 9 of a train: from a plan to a run that goes on by itself.

Whatever goes wrong after something was started is undone, or named. Each step may be repeated. On a machine that has
our things already it takes two commands: one that asks, one that starts.
"""

import contextlib
import dataclasses
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from podctl import ledger as events
from podctl import runs, source, version
from podctl.errors import Busy, Cancelled, PodctlError, Unreachable
from podctl.facts import Facts, gather, python_words, refuse_what_is_missing, whole
from podctl.fetch import ignore_results
from podctl.host import Host, host_of
from podctl.ledger import Ledger
from podctl.place import gather_there, guard_place, over_already, recorder, take_place
from podctl.pods import Pod, Run
from podctl.prepare import Prepared
from podctl.project import Project
from podctl.proofs import note_endings
from podctl.sending import answer_of, send_tool, send_tree
from podctl.settings import state_dir
from podctl.shell import CtrlC
from podctl.trainer_check import tool_root
from podctl.trees import Tree, read_tree
from podctl.ui import Ui, size
from remote.clock import CLOCK_FILE, Clock, duration
from remote.rundir import Job, Volume

ASK_AGAIN = 4  # times, where the link broke while the order was on its way
ASK_AGAIN_S = 2.0
TOOLS_S = 300.0  # for a boot guard to install tmux and rsync
SAVE_S = 120.0  # before the deadline, beyond the grace: for the last checkpoint to reach the volume


@dataclass(frozen=True)
class Launched:
    run: Run
    host: Host
    log_offset: int  # where this attempt's log begins
    leaves: bool = False  # Ctrl-C came while it was being started
    is_over: bool = False  # it had succeeded while nobody looked: there is nothing to start


def launch(
    p: Prepared, ui: Ui, clock: Clock, project_ledger: Ledger | None = None, key: CtrlC | None = None
) -> Launched:
    """Steps 7 to 9. Raises PodctlError; then the pod was given back, or the error names what is left.

    From the moment that the run may have begun, `key` is held.
    """
    book = project_ledger or runs.open_ledger()
    key = key or CtrlC()
    record = recorder(p, book, clock)
    tree = read_tree(p.snapshot.root, p.snapshot.files)
    with source.tool_tree(tool_root()) as (stamp, tool):
        with contextlib.ExitStack() as undo:
            place = take_place(p, record, ui, clock, undo)
            host, pod = place.host, place.pod
            begun = clock.now()
            facts = gather_there(p, place, tree.id, stamp, clock)
            refuse_what_is_missing(facts)
            pod = whole(pod, facts)
            if not pod.is_here and place.ready is None:
                ui.done(f"{host.name} answered after {duration(clock.now() - begun)}")
            tool_dir = send_tool(host, facts, stamp, tool)
            if place.ready is not None and p.choice.resumes is not None:
                note_endings(host, Volume(pod.volume_dir).run(p.plan.run_id), book, p.provider.name, record)
            if place.ready is not None and over_already(p, host, pod):
                undo.pop_all()
                run = book.runs()[p.plan.run_id]
                return Launched(run, runs.host_for(run), 0, is_over=True)
            hours = guard_place(p, place, pod, facts, tool_dir, ui) if place.ready is not None else p.plan.max_hours
            source_dir = PurePosixPath(facts.disk, "src", p.plan.run_id)
            send_source(p.project.id, tree, host, facts, tool_dir, ui, clock)
            order = make_order(p, pod, facts, tree, tool_dir, stamp, source_dir, hours)
            # where to find it is on disk before it runs: a podctl that dies in between must not lose a living run
            record(
                events.READY,
                pod,
                run_dir=order["run_dir"],
                source_dir=str(source_dir),
                tool_dir=str(tool_dir),
                python=facts.python,
                socket=order["socket"],
                secrets_file=order["secrets_file"],
                attempt_before=facts.epoch,
            )
            keep_here(book.runs()[p.plan.run_id], p)
            key.hold()
            try:
                leaves = start(host, facts, tool_dir, order, clock, key)
            except (Unreachable, Cancelled) as e:
                if p.provider.can.rents:
                    raise type(e)(e.message, "its pod is given back; the same command begins anew") from e
                undo.pop_all()
                raise type(e)(f"{e.message}: it may be running", e.hint) from e
            undo.pop_all()
            record(events.LAUNCHED, pod)
    run = book.runs()[p.plan.run_id]
    return Launched(run, runs.host_for(run) if run.is_rented else host, facts.log_bytes, leaves)


def keep_here(run: Run, p: Prepared) -> None:
    """The experiment file beside what is mirrored: what a resume is compared with once the pod is no more."""
    with contextlib.suppress(OSError):
        ignore_results(runs.results_dir(run))
        (runs.results_dir(run) / "experiment.yaml").write_text(p.experiment.yaml, encoding="utf-8")


def send_source(
    project: str, tree: Tree, host: Host, facts: Facts, tool_dir: PurePosixPath, ui: Ui, clock: Clock
) -> None:
    """The project, as a tree that is never changed: a run works in a copy of its own."""
    begun = clock.now()
    sent = send_tree(host, facts, tree, project, tool_dir)
    took = duration(clock.now() - begun)
    if sent is None:
        ui.done("code is there already")
    else:
        ui.done(f"code sent in {took}: {sent.n_files} of {len(tree.entries)} files, {size(sent.n_bytes)}")


def sync_source(project: Project, pod: Pod, ui: Ui, clock: Clock) -> PurePosixPath:
    """The project's code as it is now onto a machine, for no run in particular; the folder there, never to be changed.

    Raises PodctlError.
    """
    snap = source.snapshot(project, exclude=state_dir())
    tree = read_tree(snap.root, snap.files)
    host = host_of(pod)
    with source.tool_tree(tool_root()) as (stamp, tool):
        facts = gather(host, pod, project=project.id, tree=tree.id, stamp=stamp)
        refuse_what_is_missing(facts)
        tool_dir = send_tool(host, facts, stamp, tool)
        send_source(project.id, tree, host, facts, tool_dir, ui, clock)
    return facts.disk / "trees" / project.id / tree.id


def make_order(
    p: Prepared,
    pod: Pod,
    facts: Facts,
    tree: Tree,
    tool_dir: PurePosixPath,
    stamp: str,
    source_dir: PurePosixPath,
    max_hours: float,
) -> dict[str, Any]:
    """What `desk.py start` needs: the run's own account of what it is, its secrets, and how its runner is started."""
    where = Volume(pod.volume_dir).run(p.plan.run_id)
    patch = source.make_patch(p.snapshot)
    account = source.provenance(p.snapshot, f"{version()}+{stamp}", patch) | {"tree": tree.id}
    job = Job(
        run_id=p.plan.run_id,
        project=p.project.id,
        source_dir=str(source_dir),
        tool_dir=str(tool_dir),
        command=command_of(p, str(where.experiment), str(where)),
        prep=p.experiment.stages,
        env=dict(p.experiment.env),
        max_hours=max_hours,
    )
    files = {
        where.experiment.name: p.experiment.yaml,
        where.source.name: _json_text(account),
        where.patch.name: patch,
        where.job.name: _json_text(dataclasses.asdict(job) | {"queue": p.queue}),
    }
    names = p.experiment.pod.secrets
    secrets_file = str(facts.private / f"{p.plan.run_id}.json") if names else ""
    is_here = pod.is_here
    env = {
        "PODCTL_VOLUME": str(pod.volume_dir),
        "PODCTL_DISK": str(pod.disk_dir),
        "PODCTL_PYTHON": pod.python,
        "PODCTL_SECRETS": secrets_file,
        CLOCK_FILE: os.environ.get(CLOCK_FILE, "") if is_here else "",
        "HF_HOME": hub_home() if is_here else "",
    }
    return {
        "run_id": p.plan.run_id,
        "run_dir": str(where),
        "disk": str(pod.disk_dir),
        "token": secrets.token_hex(8),
        "files": files,
        "attempt_before": facts.epoch,
        "tree": str(facts.disk / "trees" / p.project.id / tree.id) if tree.entries else "",
        "source_dir": str(source_dir),
        "secrets": {name: p.settings.secret(name) for name in names},
        "secrets_file": secrets_file,
        "socket": str(facts.socket(str(where))),
        "env": env,
        "runner": ["bash", str(tool_dir / "remote" / "run.sh"), str(where)],
        "beside": p.queue or p.beside or is_here,
    }


def command_of(p: Prepared, experiment: str, run_dir: str) -> list[str]:
    """argv of the job: the trainer, or the experiment's own command."""
    if p.experiment.trains:
        return ["trainer", "train", experiment, "--run-dir", run_dir, *(["--debug"] if p.debug else [])]
    own = p.experiment.pod.command
    return ["bash", "-c", own] if isinstance(own, str) else list(own or ())


def start(host: Host, facts: Facts, tool_dir: PurePosixPath, order: dict[str, Any], clock: Clock, key: CtrlC) -> bool:
    """Give the order, over stdin: secrets are in it. The link may break, or Ctrl-C be pressed, while it is on its way:
    it is given again, and its token tells the machine that it is the same. Was Ctrl-C pressed?

    Raises Busy, PodctlError: nothing runs. Unreachable, Cancelled (Ctrl-C a second time): something may.
    """
    argv = python_words(facts, tool_dir / "remote" / "desk.py", "start")
    run_id = order["run_id"]
    then = f"podctl attach {run_id}"
    breaks, leaves = 0, False
    while True:
        try:
            with key.felt():
                clock.sleep(ASK_AGAIN_S * 2 ** (breaks - 1) if breaks else 0)
                result = host.run(argv, stdin=json.dumps(order), timeout_s=300)
            break
        except KeyboardInterrupt:
            if leaves:
                raise Cancelled(f"{host.name} was not waited for while {run_id} was started", then) from None
            leaves = True
        except Unreachable as e:
            breaks += 1
            if breaks == ASK_AGAIN or leaves:
                raise Unreachable(f"{host.name} stopped answering while {run_id} was started", then) from e
    answer = answer_of(result.stdout)
    if answer is None:
        said = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise PodctlError(f"{host.name} could not start the run: {said[0]}")
    if not answer.get("ok"):
        kind = Busy if answer.get("busy") else PodctlError
        raise kind(f"{host.name}: {answer.get('error')}", str(answer.get("hint", "")))
    return leaves


def hub_home() -> str:
    """This machine's own Hugging Face folder, so that nothing is downloaded twice; "" lets the runner choose."""
    usual = Path.home() / ".cache" / "huggingface"
    return os.environ.get("HF_HOME", "") or (str(usual) if usual.is_dir() else "")


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
