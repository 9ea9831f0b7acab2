"""How far a run is, in one line: as wide as the terminal where there is one, now and then where there is none."""

from dataclasses import dataclass
from typing import Any

from podctl.runs import View
from podctl.ui import fit, money
from remote.clock import duration
from remote.rundir import STOPPING

PULSE_S, PULSE_LEAST_S = 60.0, 10.0  # between two lines without a terminal; after a change of phase
PULSE_WIDTH = 100
NARROW = 60


@dataclass(frozen=True)
class Pulse:
    """The last line of progress that was printed: when, and in which phase."""

    t: float
    phase: str


def pulse_is_due(last: Pulse, now: float, phase: str) -> bool:
    """A line a minute, and one when the phase changes, but not one a second."""
    passed = now - last.t
    return passed >= PULSE_S or (phase != last.phase and passed >= PULSE_LEAST_S)


def live_line(view: View, width: int) -> str:
    """`demo · train 120/600 · loss 1.23 · best wer 0.08 · 34 audio-s/s · ETA 2 m · GPU 87 % · 1 m 10 s · $0.00`.

    Where that is wider than the terminal, what tells least goes first.
    """
    s, p = view.status, view.progress if view.trains else None
    stopping = s.reason or "stopping" if s is not None and view.state == STOPPING else ""
    eta = f"ETA {duration(p.eta_s or 0)}" if p else ""
    if width < NARROW:
        eta = " ".join(eta.split()[:3])  # `ETA 4 m 28 s` without its seconds
    parts = [
        (9, view.run.name),
        (0, f"{p.phase} {p.step}/{p.max_steps}" if p else view.phase or view.state),
        (1, stopping),
        (3, f"loss {p.loss:.3g}" if p and p.loss is not None else ""),
        (6, f"best {best_of(p.best)}" if p and p.best else ""),
        (8, f"{p.audio_s_per_s:.0f} audio-s/s" if p and p.audio_s_per_s else ""),
        (2, eta if p and p.eta_s else ""),
        (5, str(view.gpu) if view.gpu else ""),
        (7, duration(view.ran_s) if s else ""),
        (4, money(view.usd)),
    ]
    return fit(parts, width)


def best_of(best: Any) -> str:
    """`wer 0.08 at 400`."""
    if not isinstance(best, dict) or "value" not in best:
        return ""
    value = best["value"]
    number = f"{value:.4g}" if isinstance(value, int | float) else str(value)
    return f"{best.get('metric', '')} {number} at {best.get('step', '?')}".strip()
