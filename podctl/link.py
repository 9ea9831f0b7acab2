"""A way to a machine that may break: when to try again, when to give up, and what is said meanwhile."""

from collections.abc import Callable
from typing import TypeVar

from podctl.errors import PodGone, Unreachable, Untrusted
from podctl.ui import Ui, fit
from remote.clock import Clock, duration

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
PATIENCE_S = 3600.0  # of time awake, without any answer
ASLEEP_S = 30.0  # nobody takes this long between two looks: the laptop slept
TICK_S = 1.0
BLINK_S = 5.0

T = TypeVar("T")


class Link:
    """What one command knows of its way to a machine. Whoever asks over it says `answered` or `lost`."""

    def __init__(self, ui: Ui, clock: Clock, *, hint: str, goes_on: str = "training goes on") -> None:
        self._ui = ui
        self._clock = clock
        self._hint = hint  # what to type once the machine answers again
        self._goes_on = goes_on
        self._answered_at: float | None = None
        self._down_since: float | None = None
        self._tries = 0  # without an answer since then
        self._wait_s = FIRST_WAIT_S
        self._awake_s = 0.0
        self._ticked_at = 0.0
        self._is_told = False

    def answered(self) -> None:
        """The machine spoke."""
        now = self._clock.elapsed()
        if self._down_since is not None:
            for_s = max(0.0, now - self._down_since)
            self._down_since = None
            self._ui.live("")
            if self._is_told:
                self._tell("up", for_s, f"the link is back after {duration(for_s)}")
        self._answered_at = now

    def lost(self, error: Unreachable, *, patience_s: float = PATIENCE_S) -> None:
        """The machine did not answer: return when it is time to try again, a little later each time.

        A break that the first retry mends is a blink, and is not talked about. Time asleep counts as nothing. Raises
        the error where trying again is no use, Unreachable where patience is over.
        """
        if isinstance(error, Untrusted | PodGone):
            raise error
        if self._down_since is None:
            self._down_since = self._clock.elapsed() if self._answered_at is None else self._answered_at
            self._tries, self._wait_s, self._awake_s, self._is_told = 0, FIRST_WAIT_S, 0.0, False
            self._ticked_at = self._clock.elapsed()
        self._tick()
        if self._awake_s >= patience_s:
            self._ui.live("")
            raise Unreachable(f"no answer for {duration(self._for_s())}: {error.message}", self._hint) from error
        self._tries += 1
        is_blink = self._tries == 1 and not BLINK_S < self._for_s() < ASLEEP_S  # just woken, all looks long ago
        if not is_blink and not self._is_told:
            self._is_told = True
            what = f"no link for {duration(self._for_s())}: {error.message}"
            self._tell("down", self._for_s(), " · ".join(filter(None, (what, self._goes_on, "trying again"))))
        self._wait()

    def keep_trying(self, ask: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
        """What a call that may be repeated returns, once it gets through. Raises as `lost` does."""
        while True:
            try:
                answer = ask()
            except Unreachable as e:
                self.lost(e, patience_s=patience_s)
            else:
                self.answered()
                return answer

    def _wait(self) -> None:
        left = self._wait_s
        self._wait_s = min(LONGEST_WAIT_S, 2 * self._wait_s)
        while left > 0:
            if self._is_told:
                self._ui.live(down_line(self._for_s(), self._goes_on, self._ui.width))
            self._clock.sleep(min(TICK_S, left))
            left -= TICK_S
            if self._tick():
                self._wait_s = FIRST_WAIT_S  # just woken: the network comes back within seconds
                return

    def _tick(self) -> bool:
        """Count time awake. Did the laptop sleep meanwhile?"""
        now = self._clock.elapsed()
        passed, self._ticked_at = max(0.0, now - self._ticked_at), now
        self._awake_s += min(passed, ASLEEP_S)
        return passed > ASLEEP_S

    def _for_s(self) -> float:
        return max(0.0, self._clock.elapsed() - (self._down_since or 0.0))

    def _tell(self, state: str, for_s: float, text: str) -> None:
        if self._ui.as_json:
            self._ui.emit({"event": "link", "state": state, "for_s": round(for_s, 1)})
        if state == "up" or not self._ui.can_live:  # the live line says that it is down, as long as it is
            self._ui.note(text)


def down_line(for_s: float, goes_on: str, width: int) -> str:
    """`no link for 34 s · training goes on · trying again`."""
    return fit([(0, f"no link for {duration(for_s)}"), (1, goes_on), (2, "trying again")], width)
