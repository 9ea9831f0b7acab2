"""Time as a thing that is handed in, so that a test can move it.

There are two: what the clock on the wall says (`now`), which somebody may set to another day, and what has gone by
(`elapsed`), which nobody can. Moments that are written down are of the first kind; limits are of the second.

A process under test reads `PODCTL_CLOCK_FILE`: a file that holds the seconds to add to the real time. Writing
a larger number there moves every process that reads it, a day in a blink. A second number there sets the clock on the
wall alone: `0 -86400` is a machine whose clock is a day behind.
"""

import os
import time
from typing import Protocol, Tuple

CLOCK_FILE = "PODCTL_CLOCK_FILE"


class Clock(Protocol):
    def now(self) -> float:
        """Unix time in seconds, as far as this machine's clock is right."""
        ...

    def elapsed(self) -> float:
        """Seconds since some moment, those asleep included; only differences mean something, in one process."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds of this clock's time."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return _elapsed()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


class FileClock:
    """The machine's time plus the seconds that a file names; an absent or torn file adds nothing."""

    def __init__(self, path: str, look_s: float = 0.02) -> None:
        self._path = path
        self._look_s = look_s

    def now(self) -> float:
        return time.time() + sum(self._moved())

    def elapsed(self) -> float:
        return _elapsed() + self._moved()[0]

    def sleep(self, seconds: float) -> None:
        until = self.elapsed() + seconds
        while True:
            left = until - self.elapsed()
            if left <= 0:
                return
            time.sleep(min(left, self._look_s))

    def _moved(self) -> Tuple[float, float]:
        """How far all time was moved, and how far the clock on the wall was set beside it."""
        try:
            with open(self._path, encoding="ascii") as f:
                moved, was_set = ([float(n) for n in f.read().split()] + [0.0, 0.0])[:2]
            return moved, was_set
        except (OSError, ValueError):
            return 0.0, 0.0


def clock_from_env() -> Clock:
    """The clock this process should go by."""
    path = os.environ.get(CLOCK_FILE, "")
    return FileClock(path) if path else SystemClock()


def _elapsed() -> float:
    """`time.monotonic()` stands still while a laptop sleeps, on Linux and on macOS alike; a limit on hours must not."""
    try:
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    except OSError:  # a kernel that does not know it
        return time.monotonic()


def utc(t: float) -> str:
    """`2026-11-21T07:39:00Z` for a Unix time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))


def duration(seconds: float) -> str:
    """As people say it: `0.3 s`, `48 s`, `5 m 10 s`, `2 h 10 m`, `3 d 4 h`."""
    if seconds < 9.95:
        return "{:.1f} s".format(max(0.0, seconds))
    s = round(seconds)
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if s >= unit:
            rest = s % unit // part
            return "{} {}".format(s // unit, name) + (" {} {}".format(rest, part_name) if rest else "")
    return "{} s".format(s)
