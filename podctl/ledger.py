"""What was meant and what happened, a line each, never changed: it survives a lost answer and folds into runs.

One file for all projects, on the laptop's own disk. The provider knows what is billed, the volume knows what
happened, this knows what was intended.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from podctl.errors import Busy, MissingHere
from podctl.pods import Run

SCHEMA = 1
INTENT, CREATED, RECONCILED, STARTED, READY, LAUNCHED = (
    "intent",
    "created",
    "reconciled",
    "started",
    "ready",
    "launched",
)
STOP_ASKED, STOPPED, GONE, BILLED, HOLD, PROOF = "stop_asked", "stopped", "gone", "billed", "hold", "proof"
EVENTS = frozenset(
    {INTENT, CREATED, RECONCILED, STARTED, READY, LAUNCHED, STOP_ASKED, STOPPED, GONE, BILLED, HOLD, PROOF}
)


@dataclass(frozen=True)
class Event:
    """One line. `name` is the lineage: runs of one project and name follow each other."""

    t: float
    event: str
    run: str
    project: str
    provider: str
    name: str
    pod: str = ""
    usd_per_hour: float = 0.0
    usd: float = 0.0
    detail: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


class Ledger:
    """The file. Appending locks, writes whole lines and flushes; reading takes what is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *added: Event, unless: Callable[[dict[str, Run]], object] | None = None) -> None:
        """Record them together, or, where `unless` says so of the runs as they are, none of them.

        Raises MissingHere where the disk takes no more; nothing is recorded then.
        """
        lines = "".join(json.dumps(asdict(event), ensure_ascii=True) + "\n" for event in added)
        try:
            private_dir(self.path.parent)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if unless is None or not unless(self.runs()):
                    _append_whole(fd, lines.encode("ascii"))
            finally:
                os.close(fd)
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full" if full else (e.strerror or str(e))
            hint = (
                "free some space, or set PODCTL_HOME to another disk"
                if full
                else "set PODCTL_HOME to a folder of yours"
            )
            raise MissingHere(f"the ledger {self.path} can't be written: {what}", hint) from e

    def events(self) -> Iterator[Event]:
        """All whole lines that this version understands, oldest first."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as e:
            hint = "set PODCTL_HOME to a folder of yours"
            raise MissingHere(f"the ledger {self.path} can't be read: {e.strerror}", hint) from e
        for line in text.split(b"\n"):
            event = _parse(line)
            if event is not None:
                yield event

    def runs(self) -> dict[str, Run]:
        """All runs by id, oldest first."""
        return fold(self.events())


def fold(events: Iterable[Event]) -> dict[str, Run]:
    """The runs that these events tell of, in the order of their first. Pure; an unknown event changes nothing."""
    runs: dict[str, Run] = {}
    for e in events:
        if e.event not in EVENTS or not e.run:
            continue
        run = runs.get(e.run)
        if run is None:
            run = Run(id=e.run, project=e.project, name=e.name, provider=e.provider, pod_name="", created_at=e.t)
        runs[e.run] = _after(run, e)
    return runs


def newest(runs: Iterable[Run], project: str, name: str = "") -> Run | None:
    """The run of this project (and lineage) that was begun last; one whose launch was undone only where no other is."""
    fitting = [r for r in runs if r.project == project and name in ("", r.name)]
    return max(fitting, key=lambda r: (not r.was_undone, r.created_at), default=None)


@contextlib.contextmanager
def starting(home: Path, project: str, name: str) -> Iterator[None]:
    """Held while one command decides about a lineage and launches; the kernel lets go of a dead one's. Raises Busy."""
    directory = home / "locks"
    try:
        private_dir(directory)
        fd = os.open(directory / f"{project}.{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise MissingHere(f"{directory} can't be written: {e.strerror}", "free some space, or set PODCTL_HOME") from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another train of {name} is starting at this moment") from None
        yield
    finally:
        os.close(fd)


def private_dir(path: Path) -> None:
    """Make a directory that only its owner may look into."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)


def _after(run: Run, e: Event) -> Run:
    run = replace(
        run,
        last_event=e.event,
        last_at=e.t,
        pod=e.pod or run.pod,
        usd_per_hour=e.usd_per_hour or run.usd_per_hour,
        pod_name=str(e.detail.get("pod_name", run.pod_name)),
        detail={**run.detail, **e.detail},
    )
    if e.event in (STARTED, CREATED):
        return replace(run, started_at=float(e.detail.get("started_at") or e.t), gone_at=None)
    if e.event == LAUNCHED:
        return replace(run, launched_at=e.t, attempts=run.attempts + 1, gone_at=None)
    if e.event in (GONE, STOPPED):
        return replace(run, gone_at=e.t)
    if e.event == BILLED:
        return replace(run, usd_billed=run.usd_billed + e.usd)
    return run


def _append_whole(fd: int, lines: bytes) -> None:
    end = os.fstat(fd).st_size
    if end and os.pread(fd, 1, end - 1) != b"\n":
        lines = b"\n" + lines  # someone died within a line: let it not swallow this one
    try:
        if os.write(fd, lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, end)
        raise


def _parse(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
        if not isinstance(value, dict) or value.get("schema", SCHEMA) != SCHEMA:
            return None
        known = {k: v for k, v in value.items() if k in Event.__dataclass_fields__}
        event = Event(**known)
    except (ValueError, TypeError):
        return None
    well_formed = isinstance(event.t, int | float) and isinstance(event.run, str) and isinstance(event.detail, dict)
    return event if well_formed else None
