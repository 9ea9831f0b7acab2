"""How far long work on bytes is: one live line, without a terminal a line each tenth, in JSON the same as events."""

from dataclasses import dataclass, field

from podctl.ui import Ui, size
from remote.clock import Clock, duration

STEPS = 10


@dataclass
class Progress:
    """`verb`: what is done, as `sent`. `n_bytes`: all of it."""

    ui: Ui
    clock: Clock
    verb: str
    n_bytes: int
    _begun: float = field(init=False)
    _told: int = 0

    def __post_init__(self) -> None:
        self._begun = self.clock.now()

    def at(self, done: int) -> None:
        """So many bytes are done."""
        passed = max(self.clock.now() - self._begun, 1e-6)
        rate = done / passed
        left_s = (self.n_bytes - done) / rate if rate else 0.0
        step = done * STEPS // max(self.n_bytes, 1)
        text = f"{self.verb} {size(done)} of {size(self.n_bytes)}, {size(rate)}/s, {duration(left_s)} left"
        if self.ui.live_wanted:
            self.ui.live(text)
        elif self._told < step < STEPS:
            self._told = step
            if self.ui.as_json:
                told = {"bytes": done, "of": self.n_bytes, "bytes_per_s": round(rate), "eta_s": round(left_s, 1)}
                self.ui.emit({"event": "progress", "verb": self.verb, **told})
            else:
                self.ui.note(text)
