"""Asks a run's runner to stop, and says how the run is; on the pod, launched by path.

    python control.py status RUN_DIR
    python control.py stop RUN_DIR [--grace SECONDS]
    python control.py lives RUN_DIR

Each prints one line of JSON. The machine's local disk is `$PODCTL_DISK`, or where the run's status says.
`python -I -S control.py …` starts quickest.
"""

import os
import sys

if __name__ == "__main__":  # take our own package, not a folder of the same name beside the user's code
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

import contextlib
import dataclasses
import json
import math
import signal
from typing import Any, Dict, List, Optional

import remote
from remote import machine, turn
from remote.clock import clock_from_env
from remote.files import StrPath, read_json
from remote.rundir import DISK_ENV, LOST, RunDir, Status, is_lost, read_status

MARGIN_S = 15.0  # beyond the grace: to end what was killed, and for the last bytes on a slow volume
LOOK_S = 0.05


def status_of(run: RunDir) -> Dict[str, Any]:
    """`{status, progress, lost, others, log_size, boot_id, now}`: all that a look from outside needs, at one moment.

    `lost`: no final word, and nobody left to say one. On the runner's own machine that is known at once; from
    another, or after a restart, only once its heartbeat is old. `others`: ids of the runs whose runners live on this
    machine, oldest first, those that wait included.
    """
    status = read_status(run.status)
    now = clock_from_env().now()
    try:
        log_size = os.stat(run.log).st_size
    except OSError:
        log_size = 0
    if status is not None and not status.is_final and _is_lost(run, status, now):
        status = read_status(run.status) or status  # it may have ended between the two looks
    return {
        "status": dataclasses.asdict(status) if status else None,
        "progress": read_json(run.progress),
        "lost": status is not None and not status.is_final and _is_lost(run, status, now),
        "others": _others(run, status),
        "log_size": log_size,
        "boot_id": machine.boot_id(),
        "now": now,
    }


def runner_lives(run: RunDir, disk: StrPath) -> bool:
    """Whether a runner of this run is alive on this machine, be it one that has not written its first status yet.

    `disk`: its `PODCTL_DISK`. One that has written a final status lives no more, whatever it still tidies up.
    """
    status = read_status(run.status)
    if status is not None and not status.is_final and _runs_here(run, status):
        return True
    try:
        living = [h for h in turn.holders(disk) if h.run_id == run.root.name] if str(disk) else []
    except OSError:
        return False
    ended = status.pid if status is not None and status.is_final else 0
    return any(h.pid != ended and machine.is_runner_of(h.pid, run.root) for h in living)


def stop(run: RunDir, grace_s: Optional[float] = None) -> Dict[str, Any]:
    """Have the runner save and end; the final status, or `{"state": "lost", …}` where no runner of it is here.

    `grace_s` replaces the job's own, be it longer or shorter, and also where the run is being stopped already. Waits
    for the grace and a margin at most; a status that is not final then says that it goes on.
    """
    status = read_status(run.status)
    if status is None:
        return {"state": LOST, "reason": "no runner has written {}".format(run.status)}
    if grace_s is not None and not status.is_final and _disk(status):
        with contextlib.suppress(OSError):  # a disk that keeps no tickets: the job's own grace, then
            turn.ask_grace(_disk(status), run.root.name, grace_s)
    if not status.is_final and not _ask(run, status):
        status = read_status(run.status) or status  # it may have ended just now
        if not status.is_final:
            where = "on this machine" if status.boot_id == machine.boot_id() else "since this machine's start"
            reason = "its runner (pid {}) does not run {}".format(status.pid, where)
            return dict(dataclasses.asdict(status), state=LOST, reason=reason)
    if grace_s is None:
        job = read_json(run.job)
        grace_s = float(job.get("grace_s", 60.0)) if isinstance(job, dict) else 60.0
    clock = clock_from_env()
    until = clock.elapsed() + grace_s + MARGIN_S
    while not status.is_final and clock.elapsed() < until:
        clock.sleep(LOOK_S)
        status = read_status(run.status) or status
        if not status.is_final and not _runs_here(run, status):
            status = read_status(run.status) or status
            if not status.is_final:
                reason = "its runner ended without a final status"
                return dict(dataclasses.asdict(status), state=LOST, reason=reason)
    return dataclasses.asdict(status)


def _disk(status: Optional[Status]) -> str:
    """Where tickets lie; "" where nobody says. The caller first: the status may be of an attempt on another machine."""
    return os.environ.get(DISK_ENV, "") or (status.disk if status is not None else "")


def _others(run: RunDir, status: Optional[Status]) -> List[str]:
    return turn.others(_disk(status), run.root.name) if _disk(status) else []


def _runs_here(run: RunDir, status: Status) -> bool:
    return status.boot_id == machine.boot_id() and machine.is_runner_of(status.pid, run.root)


def _is_lost(run: RunDir, status: Status, now: float) -> bool:
    same_boot = status.boot_id == machine.boot_id()
    return is_lost(status, machine.is_runner_of(status.pid, run.root) if same_boot else None, now)


def _ask(run: RunDir, status: Status) -> bool:
    """Send the request; False where the pid is gone or belongs to a stranger by now."""
    if status.boot_id != machine.boot_id():
        return False
    try:
        if hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            fd = os.pidfd_open(status.pid)  # held while we look: the number cannot change hands in between
            try:
                if not machine.is_runner_of(status.pid, run.root):
                    return False
                signal.pidfd_send_signal(fd, signal.SIGTERM)
            finally:
                os.close(fd)
        elif machine.is_runner_of(status.pid, run.root):
            os.kill(status.pid, signal.SIGTERM)
        else:
            return False
    except OSError:
        return False
    return True


def main(argv: List[str]) -> int:
    """0 with a line of JSON; 1 where the run did not end in time; 2 for a command that is none."""
    grace_s = None
    if len(argv) == 5 and argv[1] == "stop" and argv[3] == "--grace":
        try:
            grace_s = float(argv[4])
        except ValueError:
            argv = []
        if grace_s is not None and not 0 <= grace_s < math.inf:
            argv = []
    elif len(argv) != 3:
        argv = []
    if not argv or argv[1] not in ("stop", "status", "lives"):
        usage = "usage: python control.py status RUN_DIR | stop RUN_DIR [--grace SECONDS] | lives RUN_DIR"
        print(usage, file=sys.stderr)
        return 2
    run = RunDir(os.path.abspath(argv[2]))
    if argv[1] == "status":
        answer = status_of(run)
    elif argv[1] == "lives":
        answer = {"lives": runner_lives(run, _disk(read_status(run.status)))}
    else:
        answer = stop(run, grace_s)
    print(json.dumps(answer))
    if argv[1] == "stop" and answer["state"] not in (LOST, "succeeded", "failed", "stopped"):
        print("the run did not end in time: ask again, or stop the machine", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(remote.__file__ or "")) != _HERE:
        sys.exit("{} is not this tool's remote package".format(remote.__file__))
    sys.exit(main(sys.argv))
