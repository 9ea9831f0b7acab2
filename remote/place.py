"""The runner's place on its machine: a ticket where one can be had, and what it does about the others there."""

import os
from typing import Callable, Optional

from remote import turn
from remote.clock import Clock
from remote.supervisor import Supervisor

Say = Callable[[str], None]


class Place:
    """Taken in the runner's first moment and left in its last. `disk` may be empty: then there is none to take."""

    def __init__(self, disk: str, run_id: str) -> None:
        self.disk = os.path.abspath(disk) if disk else ""
        self._run_id = run_id
        self._ticket: Optional[turn.Ticket] = None
        self._trouble = ""  # why there is no ticket
        try:
            if self.disk:
                self._ticket = turn.take(self.disk, run_id)
        except OSError as e:
            self._trouble = "{}: {}".format(e.filename or self.disk, e.strerror or e)

    def asked_grace_s(self) -> Optional[float]:
        """The grace that whoever stops the run asks for instead of the job's own, if any."""
        return self._ticket.asked_grace_s() if self._ticket else None

    def look_around(self, say: Say) -> None:
        """Say who else runs here: they share the GPU, and its memory."""
        others = turn.others(self.disk, self._run_id)
        if others:
            say("beside {} on this machine".format(turn.in_words(others)))
        if self._trouble:
            say("others on this machine do not see this run: {}".format(self._trouble))

    def wait_for_turn(self, clock: Clock, say: Say, supervisor: Supervisor, begin: Callable[[], None]) -> None:
        """Return when this run has the machine; `begin` is called where it has to wait for that.

        The hours of its limit count from then. Raises Stopping when asked to stop.
        """

        def suspend() -> None:
            supervisor.suspend_limit()
            begin()

        trouble = self._trouble
        try:
            if self._ticket is not None:
                turn.wait(self.disk, self._ticket, clock, say, suspend, supervisor.pause)
                supervisor.restart_limit()
                supervisor.end_all(lambda: turn.left_by_lost(self.disk), "a run that was lost")
        except OSError as e:
            supervisor.restart_limit()
            trouble = "{}: {}".format(e.filename or self.disk, e.strerror or e)
        if trouble:
            say("there is no queue on this machine: {}; it starts without waiting".format(trouble))

    def leave(self) -> None:
        """The turn is the next one's."""
        if self._ticket:
            self._ticket.close()
