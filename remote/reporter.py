"""Keeps `status.json` true: written at once, at every change, and every few seconds in between.

By a thread of its own, since the volume may take its time, and stopping the job must not wait for that.
"""

import dataclasses
import json
import os
import threading
import time
from typing import Any

from remote.clock import Clock
from remote.fence import Fence, Superseded
from remote.files import StrPath
from remote.rundir import HEARTBEAT_S, RunDir, Status, write_dataclass
from remote.runlog import RunLog

TICK_S = 0.1
TRIES, RETRY_S = 5, 0.5  # of the final status: it is the one that must get through


class Reporter:
    """The writer of one attempt's status; stops writing, for good, when a newer attempt has begun."""

    def __init__(self, run: RunDir, fence: Fence, clock: Clock, log: RunLog, status: Status) -> None:
        self._superseded = ""
        self._path = run.status
        self._fence = fence
        self._clock = clock
        self._log = log
        self._status = status
        self._is_new = False
        self._complained = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._write(status)
        self._written_at = status.heartbeat_at
        self._thread.start()

    def superseded_by(self) -> str:
        """What the fence said when a newer attempt had begun; empty as long as this one may write."""
        return self._superseded

    def update(self, **changes: Any) -> None:
        """The next status; written soon, without waiting for it."""
        with self._changed:
            self._status = dataclasses.replace(self._status, **changes)
            self._is_new = True
            self._changed.notify_all()

    def finish(self, timeout_s: float, **changes: Any) -> bool:
        """The last status. Whether it was written in time; nothing is written after it."""
        self.update(**changes)
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self._complained

    def _work(self) -> None:
        while not self._superseded:
            with self._changed:
                self._changed.wait_for(lambda: self._is_new, TICK_S)
                is_due = self._is_new or abs(self._clock.now() - self._written_at) >= HEARTBEAT_S
                self._is_new = False
                status = self._status
            if not is_due:
                continue
            self._written_at = self._clock.now()
            self._write(dataclasses.replace(status, heartbeat_at=self._written_at))
            if status.is_final:
                return

    def _write(self, status: Status) -> None:
        for attempt in range(TRIES if status.is_final else 1):
            if attempt:
                time.sleep(RETRY_S)
            try:
                self._fence.check()
            except Superseded as e:
                self._superseded = str(e)
                return
            except OSError:
                pass  # the volume does not answer properly now: the next look will tell
            status = dataclasses.replace(status, log_bytes=self._log.size)  # before the sync: never more than is there
            self._log.sync()
            try:
                write_dataclass(self._path, status)
                self._complained = False
                return
            except OSError as e:
                self._complain(e)
        if status.is_final and _overwrite(self._path, status):
            self._complained = False

    def _complain(self, e: OSError) -> None:
        if not self._complained:
            self._log.say("cannot write {}: {}; the job goes on".format(self._path, e.strerror or e))
        self._complained = True


def _overwrite(path: StrPath, status: Status) -> bool:
    """Put a status in the place of the old one on a disk that has no room for a second file; whether it went.

    One write, padded with blanks to the length that is there, so that a reader finds JSON before and after it.
    """
    try:
        fd = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        text = json.dumps(dataclasses.asdict(status)).encode("utf-8")
        text = text.ljust(os.fstat(fd).st_size)
        return os.pwrite(fd, text, 0) == len(text)
    except OSError:
        return False
    finally:
        os.close(fd)
