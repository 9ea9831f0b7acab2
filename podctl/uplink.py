"""What sending would take and cost, measured and asked before it begins."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from podctl.courier import Carrier
from podctl.parcels import SendPlan, estimate
from podctl.ui import Ui, size
from remote.clock import Clock

ASK_FROM = 200_000_000  # bytes to send; less is over before anybody had read the question
PROBE_BYTES, PROBE_S = 4_000_000, 2.0


@dataclass(frozen=True)
class Desk:
    """Who is told, by which clock, and whether there is nobody to ask."""

    ui: Ui
    clock: Clock
    yes: bool = False


def may_begin(host: Carrier, root: PurePath, plan: SendPlan, free: object, usd_per_hour: float, desk: Desk) -> bool:
    """Is there room, and does the person want to wait and pay for it?"""
    ask = False
    if isinstance(free, int) and free < plan.n_bytes:
        told = f"{size(plan.n_bytes)} would be sent, and df over there finds {size(free)} free"
        desk.ui.warn(f"{told} at {root}; on a network volume it may be wrong either way")
        ask = True
    if plan.n_bytes >= ASK_FROM:
        rate = measure_uplink(host, desk.clock)
        desk.ui.note(estimate(plan.n_bytes, len(plan.send), rate, usd_per_hour))
        if desk.ui.as_json:
            told_json = {"bytes": plan.n_bytes, "files": len(plan.send), "bytes_per_s": round(rate)}
            seconds = plan.n_bytes / max(rate, 1.0)
            usd = round(seconds / 3600 * usd_per_hour, 4)
            desk.ui.emit({"event": "estimate", **told_json, "seconds": round(seconds, 1), "usd": usd})
        ask = True
    return not ask or desk.yes or desk.ui.confirm("send it?")


def measure_uplink(host: Carrier, clock: Clock) -> float:
    """Bytes per second, by at most 4 MB or about 2 s of bytes that nothing can compress. Raises Unreachable."""
    begun, sent = clock.now(), 0

    def noise() -> Iterator[bytes]:
        nonlocal sent
        while sent < PROBE_BYTES and clock.now() - begun < PROBE_S:
            sent += 1 << 16
            yield os.urandom(1 << 16)

    with host.stream(["sh", "-c", "cat >/dev/null"], stdin=noise()) as stream:
        for _ in stream:
            pass
    return sent / max(clock.now() - begun, 1e-3)
