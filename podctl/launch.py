"""Steps 7 to 9 of a train: from a plan to a run that goes on by itself.

Whatever goes wrong after something was started is undone, or named. Each step may be repeated.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from podctl import ledger as events
from podctl import runs, source, version
from podctl.errors import PodctlError
from podctl.host import Host, host_of, write
from podctl.ledger import Event, Ledger
from podctl.pods import Boot, Pod, Run
from podctl.prepare import Prepared, local_python
from podctl.providers.base import Provider
from podctl.trainer_check import tool_root
from podctl.ui import Ui
from remote.clock import CLOCK_FILE, Clock, duration
from remote.rundir import Job, Volume


@dataclass(frozen=True)
class Launched:
    run: Run
    host: Host
    log_offset: int  # where this attempt's log begins


def launch(p: Prepared, ui: Ui, clock: Clock, project_ledger: Ledger | None = None) -> Launched:
    """Steps 7 to 9. Raises PodctlError; then the pod was given back, or the error names what is left."""
    book = project_ledger or runs.open_ledger()

    def record(event: str, pod: Pod | None = None, **detail: Any) -> None:
        usd_per_hour = pod.usd_per_hour if pod else 0.0
        book.append(Event(clock.now(), event, p.plan.run_id, p.project.id, p.provider.name, p.lineage,
                          pod.id if pod else "", usd_per_hour, detail=dict(detail)))  # fmt: skip

    record(events.INTENT, pod_name=p.plan.pod_name, project_root=str(p.project.root))
    with contextlib.ExitStack() as undo:
        pod = rent(p, record)
        undo.callback(give_back, p.provider, pod, record)
        host = host_of(pod)
        host.run(["true"])
        where = Volume(pod.volume_dir).run(p.plan.run_id)
        tool_dir, stamp = send_tool(host, pod)
        source_dir = send_source(p, host, pod, ui, clock)
        offset, attempt_before = what_was_before(host, where.status, where.log)
        write_run(p, host, pod, tool_dir, stamp, source_dir, attempt_before)
        secrets_file = send_secrets(p, host)
        if secrets_file:
            undo.callback(host.run, ["rm", "-f", secrets_file])
        socket = private_dir(host, "/tmp") / f"{hashlib.sha256(str(where).encode()).hexdigest()[:8]}.sock"
        # where to find it is on disk before it runs: a podctl that dies in between must not lose a living run
        record(
            events.READY,
            pod,
            run_dir=str(where),
            tool_dir=str(tool_dir),
            python=local_python(),
            socket=str(socket),
            secrets_file=secrets_file,
            attempt_before=attempt_before,
        )
        undo.callback(host.run, ["tmux", "-S", str(socket), "kill-server"])
        start_session(p, host, pod, str(where), tool_dir, str(socket), secrets_file)
        record(events.LAUNCHED, pod)
        undo.pop_all()
    return Launched(book.runs()[p.plan.run_id], host, offset)


def rent(p: Prepared, record: Callable[..., None]) -> Pod:
    """A pod: the run's own, started again, or a new one."""
    before = p.choice.resumes
    if before is not None and before.pod and p.provider.get(before.pod).state != "gone":
        pod = p.provider.start(before.pod)
    else:
        pod = p.provider.create(p.plan.pod_name, p.plan.offers[0], p.spec, Boot(env=p.experiment.env))
        record(events.CREATED, pod)
    record(events.STARTED, pod, started_at=pod.started_at)
    return pod


def give_back(provider: Provider, pod: Pod, record: Callable[..., None]) -> None:
    """The end of a launch that failed. Raises PodctlError naming the pod where it can't be given back."""
    try:
        provider.terminate(pod.id)
        record(events.GONE, pod)
    except PodctlError as e:
        raise PodctlError(f"{pod.name} ({pod.id}) at {provider.name} may still be there: {e.message}", e.hint) from e


def send_tool(host: Host, pod: Pod) -> tuple[PurePosixPath, str]:
    """remote/ and trainer/, once a version."""
    with source.tool_tree(tool_root()) as (stamp, tree):
        target = pod.disk_dir / "tool" / stamp
        if host.read(target / ".complete") is None:
            host.push(tree, target)
            write(host, target / ".complete", stamp + "\n")
    return target, stamp


def send_source(p: Prepared, host: Host, pod: Pod, ui: Ui, clock: Clock) -> PurePosixPath:
    """The project, into a folder of this run's own: sending never changes another job."""
    begun = clock.now()
    target = pod.disk_dir / "src" / p.plan.run_id
    if p.snapshot.files:
        host.push(p.snapshot.root, target, files_from=p.snapshot.files)
    else:
        host.run(["mkdir", "-p", str(target)])
    ui.done(f"code sent in {duration(clock.now() - begun)}")
    return target


def what_was_before(host: Host, status: Path, log: Path) -> tuple[int, int]:
    """The log's size and the number of the last attempt, before this one."""
    try:
        attempt = int(json.loads(host.read(PurePosixPath(status)) or b"{}").get("attempt", 0))
    except (ValueError, AttributeError):
        attempt = 0
    counted = host.run(["sh", "-c", 'test -f "$1" && wc -c <"$1"', "sh", str(log)])
    return int(counted.stdout.strip() or 0) if counted.ok else 0, attempt


def write_run(
    p: Prepared,
    host: Host,
    pod: Pod,
    tool_dir: PurePosixPath,
    stamp: str,
    source_dir: PurePosixPath,
    attempt_before: int,
) -> None:
    """The run directory's own account of what it is; an earlier attempt's stays beside it, numbered."""
    where = Volume(pod.volume_dir).run(p.plan.run_id)
    patch = source.make_patch(p.snapshot)
    account = source.provenance(p.snapshot, f"{version()}+{stamp}", patch)
    if p.experiment.trains:
        command = [
            "trainer",
            "train",
            str(where.experiment),
            "--run-dir",
            str(where),
            *(["--debug"] if p.debug else []),
        ]
    else:
        own = p.experiment.pod.command
        command = ["bash", "-c", own] if isinstance(own, str) else list(own or ())
    job = Job(
        run_id=p.plan.run_id,
        project=p.project.id,
        source_dir=str(source_dir),
        tool_dir=str(tool_dir),
        command=command,
        prep=p.experiment.stages,
        env=dict(p.experiment.env),
        max_hours=p.plan.max_hours,
    )
    texts = {
        where.experiment: p.experiment.yaml,
        where.source: _json_text(account),
        where.patch: patch,
        where.job: _json_text(dataclasses.asdict(job)),
    }
    for path, text in texts.items():
        old = host.read(PurePosixPath(path))
        if old is not None and old != text.encode("utf-8", "surrogateescape") and attempt_before:
            host.run(["cp", "-p", str(path), f"{path}.{attempt_before}"])
        write(host, PurePosixPath(path), text)


def send_secrets(p: Prepared, host: Host) -> str:
    """The named secrets, over stdin, into a file in memory that the runner alone reads; its path, or "" without any."""
    names = p.experiment.pod.secrets
    if not names:
        return ""
    base = "/dev/shm" if host.run(["test", "-d", "/dev/shm", "-a", "-w", "/dev/shm"]).ok else "/tmp"
    path = private_dir(host, base) / f"{p.plan.run_id}.json"
    write(host, path, json.dumps({name: p.settings.secret(name) for name in names}), mode="600")
    return str(path)


def start_session(
    p: Prepared, host: Host, pod: Pod, where: str, tool_dir: PurePosixPath, socket: str, secrets_file: str
) -> None:
    """The runner, in a tmux server of its own. Raises PodctlError."""
    env = {
        "PODCTL_VOLUME": str(pod.volume_dir),
        "PODCTL_DISK": str(pod.disk_dir),
        "PODCTL_PYTHON": local_python(),
        "PODCTL_SECRETS": secrets_file,
        CLOCK_FILE: os.environ.get(CLOCK_FILE, ""),
        "HF_HOME": hub_home(p.provider.name),
    }
    tmux = ["tmux", "-S", socket, "-f", "/dev/null"]
    host.run([*tmux, "kill-server"])  # what is left of an attempt that was given up
    runner = ["env", *(f"{k}={v}" for k, v in env.items() if v), "bash", str(tool_dir / "remote" / "run.sh"), where]
    words = [w[:-1] + "\\;" if w.endswith(";") else w for w in runner]  # tmux ends a command at a word's last ;
    result = host.run([*tmux, "new-session", "-d", "-s", p.plan.run_id, "-x", "200", "-y", "50", *words])
    if not result.ok:
        raise PodctlError(f"tmux could not start the run: {result.stderr.strip()}")


def hub_home(provider: str) -> str:
    """This machine's own Hugging Face folder, so that nothing is downloaded twice; "" lets the runner choose."""
    if provider != "local":
        return ""
    usual = Path.home() / ".cache" / "huggingface"
    return os.environ.get("HF_HOME", "") or (str(usual) if usual.is_dir() else "")


def private_dir(host: Host, base: str) -> PurePosixPath:
    """A folder of ours alone, with a short path. Raises PodctlError where somebody else's stands there."""
    script = (
        'd="$1/podctl-$(id -u)"; mkdir -p -m 700 "$d" && [ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ]'
        ' && chmod 700 "$d" && printf %s "$d"'
    )
    result = host.run(["sh", "-c", script, "sh", base])
    if not result.ok:
        raise PodctlError(
            f"{base}/podctl-{os.getuid()} is not a folder of yours", "remove it, or ask whoever owns it to"
        )
    return PurePosixPath(result.stdout)


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
