"""How runs are, asked where they are: the ledger says which there are, the volume says what became of them."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from podctl.errors import BadInput, PodctlError, PodGone, Unreachable
from podctl.gauge import Gpu
from podctl.host import Host, host_of
from podctl.ledger import Ledger, newest
from podctl.plan import NEVER_STARTED, UNSEEN
from podctl.pods import Pod, Run
from podctl.providers.base import Provider, provider_named
from podctl.settings import state_dir
from podctl.shell import TIMED_OUT
from remote.files import read_json
from remote.rundir import (
    FINAL,
    LOST,
    STARTING,
    SUCCEEDED,
    Progress,
    RunDir,
    Status,
    Volume,
    parse_progress,
    parse_status,
)

LIMIT_S = 8.0  # for a machine to say how its runs are, where many are asked
QUEUE = "queue"  # the phase of a run that waits for its turn
AT_ONCE = 100  # run directories in one command line, which may have 128 kB
SAME_S = 5.0


@dataclass(frozen=True)
class View:
    """One run as it is now. `status` is the word of the attempt that was launched last, None before it spoke."""

    run: Run
    state: str
    status: Status | None
    progress: Progress | None
    log_size: int
    now: float
    skew_s: float = 0.0  # how far the machine's clock is ahead of ours
    gpu: Gpu | None = None
    pod_is_gone: bool = False  # its rented machine is no more: this is what came home

    @property
    def there_now(self) -> float:
        """This moment by the machine's own clock, which its files go by. Money goes by ours."""
        return self.now + self.skew_s

    @property
    def ran_s(self) -> float:
        """How long the attempt has run, or did."""
        return max(0.0, (self.status.ended_at or self.there_now) - self.status.started_at) if self.status else 0.0

    @property
    def is_over(self) -> bool:
        """Nothing will come any more: it ended, or it is lost, or it never began."""
        return self.state in FINAL or self.state in (LOST, NEVER_STARTED, UNSEEN)

    @property
    def trains(self) -> bool:
        """Is its progress that of this attempt? While one waits or prepares, an earlier one's lies there."""
        return self.status is None or self.status.phase == "train"

    @property
    def phase(self) -> str:
        """environment, queue, prep by its runner's word, then load, train, evaluate, save by its trainer's."""
        if self.progress is not None and self.progress.phase and self.trains:
            return self.progress.phase
        return self.status.phase if self.status else ""

    @property
    def usd(self) -> float:
        """What it has cost so far."""
        return self.run.usd_billed + (0.0 if self.run.gone_at else self.attempt_hours * self.run.usd_per_hour)

    @property
    def attempt_hours(self) -> float:
        """What the newest attempt has to pay for: a rented pod from its start until now, whatever the run does; a
        machine that one has for as long as the run has its turn there."""
        if not self.run.is_rented:
            return 0.0 if self.status is None or self.status.phase == QUEUE else self.ran_s / 3600
        return max(0.0, self.now - (self.run.started_at or self.now)) / 3600

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        p, s = self.progress, self.status
        return {
            "run": self.run.id,
            "name": self.run.name,
            "project": self.run.project,
            "provider": self.run.provider,
            "state": self.state,
            "phase": self.phase,
            "step": p.step if p else None,
            "max_steps": p.max_steps if p else None,
            "loss": p.loss if p else None,
            "best": p.best if p else None,
            "eta_s": p.eta_s if p else None,
            "audio_s_per_s": p.audio_s_per_s if p else None,
            "gpu": asdict(self.gpu) if self.gpu else None,
            "reason": s.reason if s else "",
            "limit": s.limit if s else "",
            "exit_code": s.exit_code if s else None,
            "attempt": s.attempt if s else self.run.attempts,
            "created_at": self.run.created_at,
            "started_at": s.started_at if s else None,
            "ended_at": s.ended_at if s else None,
            "usd": round(self.usd, 4),
            "run_dir": str(run_dir(self.run)),
        }


def open_ledger() -> Ledger:
    return Ledger(state_dir() / "ledger.jsonl")


def find_run(ledger: Ledger, project: str, word: str = "", *, training: bool = False) -> Run:
    """The run that a person means: its id, a prefix of one, or a name; the newest of the project where nothing is said,
    the newest `training` where it may not be one that evaluates another.

    Raises BadInput where that is none, or more than one.
    """
    runs = ledger.runs()
    if not word:
        run = newest([r for r in runs.values() if not (training and r.of)], project)
        if run is None:
            raise BadInput("this project has no run yet", "podctl train --config FILE, or name a run: podctl ps --all")
        return run
    if word in runs:
        return runs[word]
    named = newest(runs.values(), project, word)
    if named is not None:
        return named
    begun = [r for r in runs.values() if r.id.startswith(word)]
    begun = [r for r in begun if r.project == project] or begun
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise BadInput(f"{word!r} begins {len(begun)} runs", "say more of it: " + ", ".join(r.id for r in begun[-4:]))
    raise BadInput(f"there is no run {word!r}", "podctl ps --all lists them")


def run_dir(run: Run) -> RunDir:
    """Where the run lies on its volume, or would, had it begun."""
    return RunDir(str(run.detail.get("run_dir") or Volume(state_dir() / "volume").run(run.id)))


def is_gone(run: Run) -> bool:
    """Was there a machine, and is there nothing of the run any more? What lies on a network volume outlives its pod."""
    if not run.pod or run.detail.get("volume") or (run.is_rented and run.detail.get("wanted_volume")):
        return False
    return provider_of(run).get(run.pod).state == "gone"


def provider_of(run: Run) -> Provider:
    """Who rents out the run's machine, by the keys of its own project."""
    root = str(run.detail.get("project_root") or "")
    return provider_named(run.provider, Path(root) if root and Path(root).is_dir() else None)


def host_for(run: Run) -> Host:
    """The way to the machine that the run is or was on. Raises PodctlError where it is gone with all of the run; a
    rented one raises PodGone when it is used."""
    if not run.pod:
        raise PodctlError(f"{run.id} never had a machine", "podctl train starts it")
    if run.is_rented:
        from podctl.rented import RentedHost

        key = str(run.detail.get("host_key") or "")
        return RentedHost(provider_of(run), run.pod, run.pod_name or run.pod, key)
    if is_gone(run):
        raise PodctlError(f"the machine of {run.id} is gone, and its volume with it", "was PODCTL_HOME moved?")
    return host_of(provider_of(run).get(run.pod))


def host_with_files(run: Run, ledger: Ledger) -> Host:
    """The way to a machine that has the run's directory: its own, or, where that is given back, any rented pod of ours
    that is on with the same volume. Raises PodGone where there is none, Unreachable."""
    host = host_for(run)
    if not run.is_rented:
        return host
    try:
        pod_for(run)
    except PodGone as e:
        volume = run.detail.get("volume")
        for other in reversed(ledger.runs().values()):
            if volume and other.is_rented and other.gone_at is None and other.detail.get("volume") == volume:
                return host_for(other)
        raise PodGone(
            f"{e.message}: what came home is in {results_dir(run)}, the rest is on its volume",
            "podctl up --config FILE rents a pod with that volume; then again, and podctl down",
            e.state,
        ) from e
    return host


def pod_for(run: Run) -> Pod:
    """The run's machine, as it can be reached now. Raises PodctlError, PodGone, Unreachable."""
    host = host_for(run)
    if run.is_rented:
        from podctl.rented import RentedHost

        assert isinstance(host, RentedHost)
        return host.pod
    return provider_of(run).get(run.pod)


def results_dir(run: Run) -> Path:
    """Where a run's fetched and mirrored files lie, inside its project."""
    return Path(str(run.detail.get("project_root", "."))) / ".podctl" / "runs" / run.id


def last_known(run: Run, now: float) -> View:
    """A run whose pod is no more, by what came home of it: its final status where that was seen, else `UNSEEN`. A
    success whose log is not whole here is not called one: its volume has more, and `train` fetches it."""
    if "socket" not in run.detail:
        return View(run, NEVER_STARTED, None, None, 0, now)
    root = results_dir(run)
    status = _fresh(run, read_json(root / "status.json") or {})
    progress = parse_progress(read_json(root / "progress.json") or {})
    if status is not None and status.is_final and (status.state != SUCCEEDED or _is_home(root, status)):
        return View(run, status.state, status, progress, status.log_bytes, now, pod_is_gone=True)
    state = str(run.detail.get("state") or UNSEEN)
    return View(run, state, status, progress, status.log_bytes if status else 0, now, pod_is_gone=True)


def _is_home(root: Path, status: Status) -> bool:
    """Is all of its log here, as its runner counted it?"""
    try:
        return (root / "log").stat().st_size >= status.log_bytes
    except OSError:
        return False


def look(run: Run, host: Host, now: float, *, timeout_s: float = 60) -> View:
    """How the run is now, by one command on its machine. Raises Unreachable, PodctlError."""
    if "socket" not in run.detail or (not run.launched_at and run.is_rented and run.gone_at):
        return View(run, NEVER_STARTED, None, None, 0, now)
    try:
        told, alive = ask_control(run, host, "status", timeout_s=timeout_s), True
        if _fresh(run, told.get("status")) is None:
            alive = session_alive(run, host)
            told = ask_control(
                run, host, "status", timeout_s=timeout_s
            )  # after that look: a session that ends has left its last word
    except Unreachable:
        raise
    except PodctlError:  # a machine that forgot our tool still has the volume, where the last word is
        view = _by_volume_alone(run, host, now)
        if view is None:
            raise
        return view
    status = _fresh(run, told.get("status"))
    if status is None:
        state = STARTING if alive else LOST if run.launched_at else NEVER_STARTED
    else:
        state = LOST if told.get("lost") and not status.is_final else status.state
    is_final = status is not None and status.is_final
    log_size = status.log_bytes if status is not None and is_final else int(told.get("log_size") or 0)
    progress = parse_progress(told.get("progress") or {})
    return View(run, state, status, progress, log_size, now, skew_s=_skew(told.get("now"), now))


def ask_control(run: Run, host: Host, verb: str, *args: str, timeout_s: float = 60) -> dict[str, Any]:
    """What the pod's `control.py` answers about a run. Raises PodctlError where it doesn't."""
    argv = [*tool_argv(run, "control.py"), verb, str(run_dir(run)), *args]
    result = host.run(argv, timeout_s=timeout_s)
    answer = _json(result.stdout.encode("utf-8", "replace"))
    if answer is None:
        said = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.exit_code}"]
        if result.exit_code == TIMED_OUT:  # a link or a volume that hangs: asking again is all there is
            raise Unreachable(f"the pod can't say how {run.id} is: {said[0]}")
        raise PodctlError(f"the pod can't say how {run.id} is: {said[0]}")
    return answer


def tool_argv(run: Run, name: str) -> list[str]:
    """What runs a file of the pod's `remote/` there: any Python 3.8 will do, and no package is needed."""
    python = str(run.detail.get("python") or "python3")
    return [python, "-I", "-S", str(PurePosixPath(str(run.detail["tool_dir"]), "remote", name))]


def session_alive(run: Run, host: Host) -> bool:
    """Is there still a tmux session of this run?"""
    return host.run(["tmux", "-S", str(run.detail["socket"]), "has-session", "-t", f"={run.id}"]).ok


def views(
    runs: Sequence[Run], now: float, limit_s: float = LIMIT_S, reach: Callable[[Run], Host] = host_for
) -> list[View]:
    """All of them, all machines at once, in the order given. A machine that does not answer in time hides only its
    own runs, and holds nobody up."""
    machines: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        machines.setdefault((run.provider, run.pod), []).append(run)
    found: dict[str, View] = {}
    threads = [
        threading.Thread(target=_look_at_all, args=(theirs, now, found, reach), daemon=True)
        for theirs in machines.values()
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [found.get(run.id) or _unseen(run, now) for run in runs]


def _look_at_all(runs: Sequence[Run], now: float, found: dict[str, View], reach: Callable[[Run], Host]) -> None:
    """The runs of one machine, over one connection: what is over by its own word in one command, then the others."""
    try:
        host = reach(runs[-1])
        found.update(_over_ones([r for r in runs if "socket" in r.detail], host, now))
    except PodGone:
        found.update({r.id: last_known(r, now) for r in runs})
        return
    except PodctlError:
        return
    for run in reversed(runs):  # the newest first, should time run out
        if run.id not in found:
            try:
                found[run.id] = look(run, host, now)
            except Unreachable:
                return
            except PodctlError:
                found[run.id] = _unseen(run, now)


def _over_ones(runs: Sequence[Run], host: Host, now: float) -> dict[str, View]:
    """Those of one machine whose file says that they are over."""
    look_at = 'cat "$d/status.json" 2>/dev/null; printf "\\0"; cat "$d/progress.json" 2>/dev/null; printf "\\0"'
    found = {}
    for i in range(0, len(runs), AT_ONCE):
        some = runs[i : i + AT_ONCE]
        result = host.run(["sh", "-c", f"for d do {look_at}; done", "sh", *(str(run_dir(r)) for r in some)])
        texts = [text.encode("utf-8", "replace") for text in result.stdout.split("\0")]
        for run, status, progress in zip(some, texts[::2], texts[1::2], strict=False):
            view = _over(run, _json(status), now)
            if view is not None:
                found[run.id] = replace(view, progress=parse_progress(_json(progress) or {}))
    return found


def _by_volume_alone(run: Run, host: Host, now: float) -> View | None:
    """A run whose machine has lost its disk since: started anew, as a pod is. Over by its own word, or else lost; None
    where something of it still lives there."""
    where = run_dir(run)
    told = _json(host.read(PurePosixPath(where.status)))
    view = _over(run, told, now)
    if view is None:
        there = ["test", "-e", str(PurePosixPath(str(run.detail["tool_dir"]), "remote", "control.py"))]
        if host.run(there).ok or session_alive(run, host):
            return None
        size = host.run(["sh", "-c", 'wc -c <"$1"', "sh", str(where.log)]).stdout.strip()
        state = LOST if run.launched_at else NEVER_STARTED
        view = View(run, state, _fresh(run, told), None, int(size) if size.isdigit() else 0, now)
    return replace(view, progress=parse_progress(_json(host.read(PurePosixPath(where.progress))) or {}))


def _over(run: Run, told: Mapping[str, Any] | None, now: float) -> View | None:
    status = _fresh(run, told)
    return View(run, status.state, status, None, status.log_bytes, now) if status and status.is_final else None


def _unseen(run: Run, now: float) -> View:
    return View(run, "unreachable" if run.pod else NEVER_STARTED, None, None, 0, now)


def _skew(there: object, here: float) -> float:
    """How far their clock is ahead, 0 where it is no more than an answer's time on the way."""
    ahead = float(there) - here if isinstance(there, int | float) else 0.0
    return ahead if abs(ahead) > SAME_S else 0.0


def _fresh(run: Run, value: Mapping[str, Any] | None) -> Status | None:
    """The status, unless an attempt before the newest launch wrote it."""
    status = parse_status(value or {})
    return status if status is not None and status.attempt > int(str(run.detail.get("attempt_before", 0))) else None


def _json(data: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(data or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
