"""Runs the attempt's commands one after the other, and ends them in time: asked to save first, killed when they don't.

Stopping works the same for every reason: a signal to the runner, `max_hours`, a newer attempt that took over. Limits
are counted in time that went by, never by the clock on the wall: that one may be set a day forward, or back.
"""

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional, Sequence

from remote.children import Child
from remote.clock import Clock
from remote.files import StrPath
from remote.reporter import Reporter
from remote.rundir import STOPPING
from remote.runlog import RunLog

LOOK_S = 0.1
DRAIN_S = 2.0  # for what a finished command left running, to say its last words
UNKILLABLE_S = 30.0  # after SIGKILL: a process that hangs in the kernel is given up
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopping(Exception):
    """The attempt was asked to stop before its command had begun, or while a step before it ran."""


class Signals:
    """What the runner was asked by signals. To be made in the main thread, before anything else."""

    def __init__(self) -> None:
        self.asked: Optional[int] = None
        self._wake_r, wake_w = os.pipe()
        for fd in (self._wake_r, wake_w):
            os.set_blocking(fd, False)
        for number in ASKING:
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake `wait`
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)

    def wait(self, timeout_s: float) -> None:
        """Return when a signal has come, a child has ended, or the time is over."""
        if select.select([self._wake_r], [], [], timeout_s)[0]:
            os.read(self._wake_r, 4096)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked is None:  # a second one neither shortens the grace nor changes the reason
            self.asked = number


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code as a shell gives it (128+n for a signal n), and the signal."""

    exit_code: int
    signal: Optional[int]


class Supervisor:
    """Owns the attempt's deadline and its stop. `stop_reason` is empty as long as it may go on."""

    def __init__(
        self,
        signals: Signals,
        clock: Clock,
        log: RunLog,
        reporter: Reporter,
        asked_grace_s: Callable[[], Optional[float]] = lambda: None,
    ) -> None:
        """`asked_grace_s`: the grace that whoever stops the run asks for instead of the job's own, if any."""
        self.stop_reason = ""
        self.limit = ""
        self.killed = False  # it did not end within the grace
        self._signals = signals
        self._clock = clock
        self._log = log
        self._reporter = reporter
        self._read_grace = asked_grace_s
        self._max_s = float("inf")
        self._deadline = float("inf")  # this one and the next are moments of clock.elapsed()
        self._deadline_reason = ""
        self._grace_s = 60.0
        self._asked_grace_s: Optional[float] = None
        self._kill_at = float("inf")

    def set_limits(self, began: float, max_hours: float, grace_s: float) -> None:
        """What the job says about it, once it is read; hours count from `began`, a moment of the clock's `elapsed`."""
        self._max_s = max_hours * 3600
        self._deadline = began + self._max_s
        self._deadline_reason = "max_hours ({:g} h) reached".format(max_hours)
        self._grace_s = grace_s

    def suspend_limit(self) -> None:
        """The hours do not count until `restart_limit`."""
        self._deadline = float("inf")

    def restart_limit(self) -> None:
        """The hours count from now, where they did not."""
        if self._deadline == float("inf"):
            self._deadline = self._clock.elapsed() + self._max_s

    def pause(self, seconds: float) -> None:
        """Let at most so much time go by. Raises Stopping when asked to stop."""
        self._signals.wait(seconds)
        self.check()

    def step(self, argv: Sequence[str], cwd: StrPath, env: Mapping[str, str]) -> int:
        """The exit code of a step before the job's command. Raises Stopping where that was cut short."""
        self.check()
        ended = self.run(argv, cwd, env)
        if ended.exit_code:
            self.check()
        return ended.exit_code

    def end_all(self, find: Callable[[], Sequence[int]], whose: str) -> None:
        """Have processes of others save and go, killed after the grace. Raises Stopping when asked to stop."""
        pids = find()
        if not pids:
            return
        count = "1 process" if len(pids) == 1 else "{} processes".format(len(pids))
        verb = "runs" if len(pids) == 1 else "run"
        self._log.say("{} of {} still {} here: ended, {:g} s to go".format(count, whose, verb, self._grace_s))
        _signal_each(pids, signal.SIGTERM)
        kill_at = self._clock.elapsed() + self._grace_s
        while pids and self._clock.elapsed() < kill_at:
            self._signals.wait(LOOK_S)
            self.check()
            pids = find()
        if pids:
            self._log.say("of {}, killed: {}".format(whose, ", ".join(map(str, pids))))
            _signal_each(pids, signal.SIGKILL)

    def check(self) -> None:
        """Raises Stopping when the attempt was asked to stop."""
        self._look()
        if self.stop_reason:
            raise Stopping(self.stop_reason)

    def run(self, argv: Sequence[str], cwd: StrPath, env: Mapping[str, str]) -> Ended:
        """Run a command to its end, or to the attempt's. Raises OSError where it cannot be started."""
        child = Child(argv, cwd, env, self._log)
        code = -signal.SIGKILL
        try:
            self._attend(child)
        finally:
            code = child.finish()
        return Ended(128 - code, -code) if code < 0 else Ended(code, None)

    def _attend(self, child: Child) -> None:
        asked = False
        killed_at = drained_at = float("inf")  # monotonic: a test may move the other clock
        while True:
            self._look()
            if child.has_ended:
                drained_at = min(drained_at, time.monotonic() + DRAIN_S)
                is_drained = child.is_silent or time.monotonic() >= drained_at
                # asked to stop, a shell dies at once while the trainer that it started still saves
                may_save = asked or time.monotonic() < drained_at
                if is_drained and not (may_save and child.has_heirs):
                    return
            if self.stop_reason and not asked:
                asked = True
                child.signal(signal.SIGTERM)
            if asked and self._clock.elapsed() >= self._kill_at and not self.killed:
                if child.has_ended:  # only what it left runs on
                    return
                self.killed = True
                killed_at = time.monotonic()
                self._log.say("it did not end within {:g} s: killed".format(self._grace_s))
                child.signal(signal.SIGKILL)
            if time.monotonic() >= killed_at + UNKILLABLE_S:
                self._log.say("it does not even end when killed: given up")
                return
            self._signals.wait(LOOK_S)

    def _look(self) -> None:
        taken_over = self._reporter.superseded_by()
        if taken_over:
            self._log.silence()
            self._stop(taken_over)
        if self._signals.asked is not None:
            self._stop("asked to stop ({})".format(signal.Signals(self._signals.asked).name))
        elif self._clock.elapsed() >= self._deadline:
            self._stop(self._deadline_reason, limit="max_hours")
        if self.stop_reason and self._hear_grace():  # asked once more, for another time than before
            self._kill_at = self._clock.elapsed() + self._grace_s
            self._log.say("asked for another grace: {:g} s to go from here".format(self._grace_s))

    def _stop(self, reason: str, limit: str = "") -> None:
        if self.stop_reason:
            return
        self.stop_reason, self.limit = reason, limit
        self._hear_grace()
        self._kill_at = self._clock.elapsed() + self._grace_s
        self._log.say("{}: saving, {:g} s to go".format(reason, self._grace_s))
        self._reporter.update(state=STOPPING, reason=reason, limit=limit)

    def _hear_grace(self) -> bool:
        """Whether somebody has asked for another grace since the last look."""
        asked_s = self._read_grace()
        if asked_s is None or asked_s == self._asked_grace_s:
            return False
        self._grace_s = self._asked_grace_s = asked_s
        return True


def _signal_each(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass  # gone already
