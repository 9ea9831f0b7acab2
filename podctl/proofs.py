"""What was seen to end a pod: the word `drilled` in a watchdog's verdict (docs/adr/0013).

A watchdog that ends its pod leaves on the volume by which way; who comes back to that volume, and finds the pod gone,
has seen it work.
"""

import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from podctl import ledger as events
from podctl.host import Host
from podctl.ledger import Ledger
from remote.rundir import RunDir

_READ = 'for f in "$1"/*/ending.json; do [ -f "$f" ] && cat -- "$f"; printf "\\0"; done'


def note_endings(host: Host, where: RunDir, ledger: Ledger, provider: str, record: Callable[..., None]) -> None:
    """Write down the ways that ended a run's earlier pods and are not known yet. Raises Unreachable."""
    told = host.run(["sh", "-c", _READ, "sh", str(PurePosixPath(where.guard))]).stdout
    known = {(e.detail.get("boot"), e.detail.get("route")) for e in ledger.events() if e.event == events.PROOF}
    for text in told.split("\0"):
        route, boot, at = ended_by(text)
        if route and (boot, route) not in known:
            record(events.PROOF, None, route=route, boot=boot, ended_at=at, provider=provider)


def ended_by(text: str) -> tuple[str, str, float]:
    """The way that was accepted last, in which boot, when; "" for none. Pure."""
    try:
        value: Any = json.loads(text)
        accepted = [t["route"] for t in value["tried"] if t.get("accepted")]
        return (str(accepted[-1]) if accepted else ""), str(value.get("boot", "")), float(value.get("at") or 0.0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", "", 0.0


def proofs_of(ledger: Ledger, provider: str) -> dict[str, float]:
    """Way → when it was last seen to end a pod of this provider."""
    return {
        str(e.detail["route"]): float(e.detail.get("ended_at") or e.t)
        for e in ledger.events()
        if e.event == events.PROOF and e.provider == provider and "route" in e.detail
    }
