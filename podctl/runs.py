"""How runs are, asked where they are: the ledger says which there are, the volume says what became of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from podctl.errors import BadInput, PodctlError
from podctl.host import Host, host_of
from podctl.ledger import Ledger, newest
from podctl.plan import NEVER_STARTED
from podctl.pods import Run
from podctl.providers.base import provider_named
from podctl.settings import state_dir
from remote.rundir import FINAL, LOST, STARTING, Progress, RunDir, Status, Volume, parse_progress, parse_status


@dataclass(frozen=True)
class View:
    """One run as it is now. `status` is the word of the attempt that was launched last, None before it spoke."""

    run: Run
    state: str
    status: Status | None
    progress: Progress | None
    log_size: int
    now: float

    @property
    def is_over(self) -> bool:
        """Nothing will come any more: it ended, or it is lost, or it never began."""
        return self.state in FINAL or self.state in (LOST, NEVER_STARTED)

    @property
    def usd(self) -> float:
        """What it has cost so far."""
        hours = (self.now - self.run.started_at) / 3600 if self.run.started_at and not self.run.gone_at else 0.0
        return self.run.usd_billed + hours * self.run.usd_per_hour

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        p, s = self.progress, self.status
        return {
            "run": self.run.id,
            "name": self.run.name,
            "project": self.run.project,
            "provider": self.run.provider,
            "state": self.state,
            "phase": (p.phase if p else "") or (s.phase if s else ""),
            "step": p.step if p else None,
            "max_steps": p.max_steps if p else None,
            "loss": p.loss if p else None,
            "best": p.best if p else None,
            "eta_s": p.eta_s if p else None,
            "audio_s_per_s": p.audio_s_per_s if p else None,
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


def find_run(ledger: Ledger, project: str, word: str = "") -> Run:
    """The run that a person means: its id, a prefix of one, or a name; the newest of the project where nothing is said.

    Raises BadInput where that is none, or more than one.
    """
    runs = ledger.runs()
    if not word:
        run = newest(runs.values(), project)
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
    """Was there a machine, and is there none any more?"""
    return bool(run.pod) and provider_named(run.provider).get(run.pod).state == "gone"


def host_for(run: Run) -> Host:
    """The way to the machine that the run is or was on. Raises PodctlError where it is gone."""
    if is_gone(run):
        raise PodctlError(f"the machine of {run.id} is gone, and its volume with it", "was PODCTL_HOME moved?")
    return host_of(provider_named(run.provider).get(run.pod))


def look(run: Run, host: Host, now: float) -> View:
    """How the run is now: one command on its machine, or one small read where its file says that it is over."""
    where = run_dir(run)
    if "socket" not in run.detail:
        return View(run, NEVER_STARTED, None, None, 0, now)
    status = _fresh(run, _json(host.read(PurePosixPath(where.status))))
    if status is not None and status.is_final:
        done = parse_progress(_json(host.read(PurePosixPath(where.progress))) or {})
        return View(run, status.state, status, done, status.log_bytes, now)
    alive = status is not None or session_alive(run, host)  # asked first: a session that ends has left its last word
    told = ask_control(run, host, "status")
    status = _fresh(run, told.get("status"))
    progress = parse_progress(told.get("progress") or {})
    if status is None:
        state = STARTING if alive else LOST if run.launched_at else NEVER_STARTED
    else:
        state = LOST if told.get("lost") and not status.is_final else status.state
    return View(run, state, status, progress, int(told.get("log_size") or 0), now)


def ask_control(run: Run, host: Host, verb: str, *args: str, timeout_s: float = 60) -> dict[str, Any]:
    """What the pod's `control.py` answers about a run. Raises PodctlError where it doesn't."""
    control = PurePosixPath(str(run.detail["tool_dir"]), "remote", "control.py")
    argv = [str(run.detail["python"]), "-I", "-S", str(control), verb, str(run_dir(run)), *args]
    result = host.run(argv, timeout_s=timeout_s)
    answer = _json(result.stdout.encode("utf-8", "replace"))
    if answer is None:
        said = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise PodctlError(f"the pod can't say how {run.id} is: {said[0]}")
    return answer


def session_alive(run: Run, host: Host) -> bool:
    """Is there still a tmux session of this run?"""
    return host.run(["tmux", "-S", str(run.detail["socket"]), "has-session", "-t", f"={run.id}"]).ok


def views(runs: Sequence[Run], now: float) -> list[View]:
    """All of them, one unreachable machine not hiding the others."""
    found = []
    for run in runs:
        try:
            found.append(look(run, host_for(run), now))
        except PodctlError:
            found.append(View(run, "unreachable" if run.pod else NEVER_STARTED, None, None, 0, now))
    return found


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
