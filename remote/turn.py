"""Whose turn it is on this machine: every runner holds a ticket on the local disk, and whoever looks sees who lives.

A ticket is a file `DISK/turn/<number>` that its runner keeps locked (flock): however the runner ends, the kernel lets
go of the lock, and a ticket that nobody holds is dead. A ticket is never inherited by the job's processes, so a runner
that was killed gives up its turn though something it started lives on; whoever is next ends that (`left_by_lost`).

Numbers are given out, and the dead swept away, under the lock of `DISK/turn/lock`: a ticket in the making is never
taken for a dead one. Looking takes no lock that could make anybody wait. Beside a ticket may lie `<number>.grace`: how
long its runner is asked to let the job save. One queue a DISK: two people with folders of their own do not see each
other. Where DISK is read-only, or has no flock (some network file systems), taking and waiting raise OSError, and the
run goes on without a turn (place.py).
"""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional

from remote import machine
from remote.clock import Clock, duration
from remote.files import StrPath, read_json, write_atomic
from remote.rundir import RunDir, read_status

LOCK_PATIENCE_S = 5.0  # it is held for a millisecond; longer only by a process that was stopped just then
POLL_S = 0.5


class Ticket:
    """A runner's place among those of this machine, kept until `close`, or until the runner is no more."""

    def __init__(self, path: Path, run_id: str, fd: int) -> None:
        self.path = path
        self.run_id = run_id
        self.number = int(path.name)
        self._fd = fd

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The turn is the next one's. To be called once the job is gone, and as often as one likes."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), os.stat(str(self.path))):  # not another's, in a folder made anew
                _remove(self.path)
        os.close(self._fd)
        self._fd = -1

    def asked_grace_s(self) -> Optional[float]:
        """How long the job may take to save, where somebody asked for another time than the job's own."""
        value = read_json(_grace_of(self.path))
        return float(value) if isinstance(value, (int, float)) and value >= 0 else None


class Holder(NamedTuple):
    """Who holds a ticket that is alive."""

    number: int
    run_id: str
    pid: int


def take(disk: StrPath, run_id: str) -> Ticket:
    """A ticket after all that were given out. Raises OSError where this disk can keep none."""
    folder = _folder(disk)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, LOCK_PATIENCE_S):
        numbers = _numbers(folder)
        path = folder / str(max(numbers, default=0) + 1)
        _remove(path)  # a request to one who had this number, and left just then
        fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # waits at most for somebody's look
            os.write(fd, json.dumps({"run_id": run_id, "pid": os.getpid()}).encode("utf-8"))
        except BaseException:
            os.close(fd)
            _remove(path)
            raise
        _sweep(folder)
    return Ticket(path, run_id, fd)


def holders(disk: StrPath) -> List[Holder]:
    """All living tickets, oldest first; none where the disk keeps none. Raises OSError where it can't be read."""
    folder = _folder(disk)
    found, saw_dead = [], False
    for number in _numbers(folder):
        path = folder / str(number)
        if _is_held(path):
            value = read_json(path)
            if isinstance(value, dict):  # else it is being written, later than any that was taken before this look
                found.append(Holder(number, str(value.get("run_id", "")), int(value.get("pid", 0))))
        else:
            saw_dead = True
    if saw_dead:
        with contextlib.suppress(OSError), _locked(folder, 0):  # if it is not free now, the next look will do it
            _sweep(folder)
    return found


def others(disk: StrPath, but: str) -> List[str]:
    """Run ids of all living tickets except this run's, oldest first; none where the disk keeps no tickets."""
    try:
        return list(dict.fromkeys(h.run_id for h in holders(disk) if h.run_id != but))
    except OSError:
        return []


def ahead(disk: StrPath, ticket: Ticket) -> List[str]:
    """Run ids of the living tickets before mine, oldest first.

    An earlier attempt of my own run is not among them: it was superseded, and waits for nothing but its end.
    """
    before = [h.run_id for h in holders(disk) if h.number < ticket.number and h.run_id != ticket.run_id]
    return list(dict.fromkeys(before))


def ask_grace(disk: StrPath, run_id: str, grace_s: float) -> None:
    """Have this run's runner give the job so long to save, from when it is asked. Raises OSError."""
    for holder in holders(disk):
        if holder.run_id == run_id:
            write_atomic(_grace_of(_folder(disk) / str(holder.number)), json.dumps(grace_s).encode("ascii"))


def left_by_lost(disk: StrPath) -> List[int]:
    """Processes of runs that took their turn on this disk, and whose runner died without a last word.

    Nobody reads what they print, keeps their limits, or would end them; they may hold a GPU's memory. What a run that
    ended left running is another matter: it left its group on purpose, and is let be.
    """
    living = holders(disk)
    runs, pids = {h.run_id for h in living}, {h.pid for h in living}
    wanted = os.path.realpath(os.fspath(disk))
    found = []
    for p in machine.job_processes():
        run = RunDir(p.run_dir)
        if p.pid in pids or run.root.name in runs or not p.disk or os.path.realpath(p.disk) != wanted:
            continue
        status = read_status(run.status)
        if status is not None and not status.is_final and not machine.is_runner_of(status.pid, run.root):
            found.append(p.pid)
    return found


def wait(
    disk: StrPath,
    ticket: Ticket,
    clock: Clock,
    say: Callable[[str], None],
    begin: Callable[[], None],
    pause: Callable[[float], None],
) -> None:
    """Return when nobody is ahead. Where there is any waiting, `begin` is called before it, and `pause` between looks.

    Raises OSError where the disk does not answer any more, and whatever `pause` raises.
    """
    names = ahead(disk, ticket)
    if not names:
        return
    began = clock.elapsed()
    begin()
    told: List[str] = []
    while names:
        if names != told:
            say("waiting for {} on this machine".format(in_words(names)))
            told = names
        pause(POLL_S)
        names = ahead(disk, ticket)
    say("✓ its turn after {}".format(duration(clock.elapsed() - began)))


def in_words(run_ids: List[str]) -> str:
    """The first, and how many more."""
    return run_ids[0] + (" and {} more".format(len(run_ids) - 1) if len(run_ids) > 1 else "")


def _folder(disk: StrPath) -> Path:
    return Path(disk) / "turn"


def _grace_of(ticket: Path) -> Path:
    return ticket.with_name(ticket.name + ".grace")


def _numbers(folder: Path) -> List[int]:
    try:
        return sorted(int(name) for name in os.listdir(str(folder)) if name.isdigit())
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _locked(folder: Path, patience_s: float) -> Iterator[None]:
    fd = os.open(str(folder / "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _sweep(folder: Path) -> None:
    """Remove the dead. Only under the lock, where no ticket is in the making."""
    for number in _numbers(folder):
        path = folder / str(number)
        if not _is_held(path):
            _remove(path)


def _is_held(path: Path) -> bool:
    """By a shared lock that is let go at once: two who look do not take each other for the holder."""
    try:
        fd = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # swept just now
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    for each in (_grace_of(path), path):
        with contextlib.suppress(OSError):
            os.unlink(str(each))
