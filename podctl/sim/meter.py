"""A pod's bill: what ran at which price from when to when, in dollars."""

from collections.abc import Iterable
from dataclasses import dataclass, field

HOUR_S = 3600.0
MONTH_S = 30 * 24 * HOUR_S
CONTAINER_DISK_USD = 0.10  # a GB and month, while it runs
VOLUME_DISK_USD = {True: 0.10, False: 0.20}  # the same, while the pod runs; while it is stopped


@dataclass
class Span:
    """One thing at one price. Still running where `end` is None."""

    kind: str  # gpu, disk
    usd_per_hour: float
    start: float
    end: float | None = None

    def usd(self, since: float, until: float) -> float:
        """Its part of a window."""
        stop = until if self.end is None else min(self.end, until)
        return max(0.0, stop - max(self.start, since)) * self.usd_per_hour / HOUR_S


@dataclass
class Meter:
    """All spans of a pod, oldest first."""

    spans: list[Span] = field(default_factory=list)

    def set(self, kind: str, usd_per_hour: float, t: float) -> None:
        """From now on that kind costs so much; 0 ends it."""
        running = self._running(kind)
        if running is not None:
            if running.usd_per_hour == usd_per_hour:
                return
            running.end = t
        if usd_per_hour > 0:
            self.spans.append(Span(kind, usd_per_hour, t))

    def usd(self, until: float, since: float = 0.0, kinds: Iterable[str] = ("gpu", "disk")) -> float:
        """What a window cost."""
        return sum(s.usd(since, until) for s in self.spans if s.kind in kinds)

    @property
    def usd_per_hour(self) -> float:
        """What it costs now."""
        return sum(s.usd_per_hour for s in self.spans if s.end is None)

    def _running(self, kind: str) -> Span | None:
        return next((s for s in self.spans if s.kind == kind and s.end is None), None)


def disk_usd_per_hour(container_gb: float, volume_gb: float, runs: bool) -> float:
    """What a pod's own disks cost: a network volume is billed apart."""
    month = (container_gb * CONTAINER_DISK_USD if runs else 0.0) + volume_gb * VOLUME_DISK_USD[runs]
    return month * HOUR_S / MONTH_S
