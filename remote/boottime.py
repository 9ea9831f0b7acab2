"""How long this start of the pod has lasted: one count for the boot guard, the watchdog, and whoever speaks to them."""

import time

from remote.claims import Boot
from remote.clock import SystemClock, clock_from_env


def elapsed_s(boot: Boot) -> float:
    """Seconds since the boot's start. By /proc/uptime, which is all that a shell has to go by."""
    moved_s = clock_from_env().elapsed() - SystemClock().elapsed()
    return _uptime() + moved_s - boot.uptime_s


def _uptime() -> float:
    try:
        with open("/proc/uptime", encoding="ascii") as f:
            return float(f.read().split()[0])
    except (OSError, ValueError, IndexError):
        return time.time()  # as the boot guard does
