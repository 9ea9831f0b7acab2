"""Step 10: the log to the last byte, how far it is, and what became of it. Leaving never ends a run."""

import codecs
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from podctl import fetch
from podctl import ledger as events
from podctl.books import close_unseen
from podctl.errors import PodctlError, PodGone, Unreachable
from podctl.fetch import Receipt
from podctl.gauge import Gauge
from podctl.host import Host
from podctl.ledger import Ledger
from podctl.link import ASLEEP_S, Link
from podctl.live import PULSE_WIDTH, Pulse, live_line, pulse_is_due
from podctl.localhost import LocalHost
from podctl.mirror import Mirror
from podctl.plan import NEVER_STARTED, UNSEEN
from podctl.pods import Run
from podctl.release import Ending, end_broken, release
from podctl.runs import View, last_known, look, provider_of, results_dir, run_dir
from podctl.ui import Ui, money
from remote.clock import Clock, duration
from remote.rundir import FAILED, LOST, STOPPED, SUCCEEDED

LOOK_S = 1.5  # between two questions for the status, once it has gone on for a while
FIRST_LOOK_S = 0.2
ANSWER_S = 10.0  # for the status: sooner than a dead connection is noticed, and who looks on wants to know
DRAIN_LOOKS = 20  # half-second looks for the last bytes of a log that its runner counted
STALLED_S = 10.0  # without a byte of a log that is longer by the machine's word: its stream hangs
ODD_S = 60.0  # of answers that make no sense, before they are believed
END_PATIENCE_S = 300.0  # for what is left to fetch from a machine that is lost after a run's end
READ_PATIENCE_S = 60.0


class Watcher:
    """Follows one run on one host."""

    def __init__(self, run: Run, host: Host, ui: Ui, clock: Clock, podctl: str = "podctl") -> None:
        self.run = run
        self.host = host
        self.ui = ui
        self.clock = clock
        self.podctl = podctl
        self.link = Link(ui, clock, hint=f"{podctl} attach {run.id}")
        self._offset = 0  # of the next byte of the log
        self._mirror: Mirror | None = None
        self._gauge: Gauge | None = None
        self._told: dict[str, Any] = {}
        self._pulse: Pulse | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def attend(self, ledger: Ledger, *, offset: int = 0) -> int:
        """Stay until the end: log, status, receipt. Returns podctl's exit code; Ctrl-C leaves with 0.

        A link that breaks is waited for. Raises Unreachable where that takes too long.
        """
        try:
            with self._company():
                view = self.follow(offset)
                if self._mirror is not None:
                    self._mirror.finish()
            receipt = self.settle(view, ledger)
        except KeyboardInterrupt:
            return self.leave()
        except PodGone as e:
            return self.pod_is_gone(e, ledger)
        self.show_receipt(view, receipt)
        return receipt.exit_code

    def settle(self, view: View, ledger: Ledger, ending: Ending | None = None) -> Receipt:
        """Its results home, its books closed; a rented pod is given back, or what `ending` says. A pod that can't be
        ended is named in the receipt's trouble, and raised once everything is told."""
        receipt = self.link.keep_trying(
            lambda: fetch.settle(view, self.host, ledger, self.run.project, self.podctl), patience_s=END_PATIENCE_S
        )
        if not self.run.is_rented:
            return receipt
        released = release(view, self.host, ledger, self.clock, self.ui, ending)
        receipt = replace(receipt, usd=round(released.usd, 4), bill=money(released.usd), pod=released.how)
        fetch.keep_receipt(self.run, receipt)
        return receipt

    def pod_is_gone(self, e: PodGone, ledger: Ledger) -> int:
        """The pod ended under us: what is known of the run by what came home, and its books."""
        run, provider = self.run, provider_of(self.run)
        end_broken(run, provider, self.clock, self.ui)
        now = self.clock.now()
        view = last_known(run, now)
        event = events.STOPPED if e.state == "stopped" else events.GONE
        state = "" if view.state == UNSEEN else view.state
        close_unseen(run, ledger, provider, now, state, event=event)
        self.ui.live("")
        if view.state == UNSEEN:
            kept = "what it saved is on its volume" if run.detail.get("volume") else "and its data with it"
            raise PodGone(f"{e.message}: {kept}", f"{self.podctl} {run.again} goes on with {run.id}") from e
        view = replace(view, run=ledger.runs()[run.id])
        copies, trouble = fetch.handed_on(run, ledger)
        receipt = replace(fetch.receipt_from_home(view, self.podctl), pod=e.state, copies=copies, trouble=trouble)
        self.show_receipt(view, receipt)
        return receipt.exit_code

    def follow(self, offset: int = 0) -> View:
        """The log from an offset to its last byte, and the final view. No byte comes twice, however often the link
        breaks; the end of a stream is no end of a run."""
        self._offset = offset
        view = self.link.keep_trying(self._follow_for_a_while)
        while not view.is_over:
            view = self.link.keep_trying(self._follow_for_a_while)
        end = view.status.log_bytes if view.status is not None and view.status.is_final else view.log_size
        try:
            self.link.keep_trying(lambda: self._read_until(end), patience_s=END_PATIENCE_S)
        except Unreachable:
            self.ui.warn("the end of the log did not come")
        self.ui.live("")
        return view

    def look(self) -> View:
        """How it is, told to whoever looks on."""
        view = self.quiet_look(timeout_s=ANSWER_S)
        self.link.answered()
        if self.ui.as_json:
            told = view.as_dict()
            if told != {**self._told, "usd": told["usd"]}:
                self.ui.emit({"event": "status", **told})
                self._told = told
        elif self.ui.live_wanted:
            self.ui.live(live_line(view, self.ui.width))
        else:
            self._tell_pulse(view)
        return view

    def quiet_look(self, *, timeout_s: float = 60) -> View:
        """How it is, told to nobody."""
        view = look(self.run, self.host, self.clock.now(), timeout_s=timeout_s)
        return replace(view, gpu=self._gauge.now) if self._gauge is not None else view

    def show_what_is_there(self) -> None:
        """The log up to this moment."""
        end = self.quiet_look().log_size
        self.link.keep_trying(lambda: self._read_until(end), patience_s=READ_PATIENCE_S)

    def show_mirrored_log(self, e: PodGone) -> int:
        """What came home of the log of a run whose pod is no more. Raises PodGone where nothing did."""
        try:
            with (results_dir(self.run) / "log").open("rb") as f:
                for chunk in iter(lambda: f.read(1 << 18), b""):
                    self.show_log(chunk, self._offset)
                    self._offset += len(chunk)
        except OSError:
            raise e from None
        self.ui.warn(f"{e.message}: this is what was mirrored here")
        return 0

    def leave(self) -> int:
        """The person goes, the run stays."""
        if self.ui.as_json:
            self.ui.emit({"event": "detached", "run": self.run.id})
        self.ui.note(f"{self.run.id} goes on without you")
        self.ui.hint(f"{self.podctl} attach {self.run.id}    to come back")
        self.ui.hint(f"{self.podctl} stop {self.run.id}    to save and end it")
        return 0

    def show_log(self, chunk: bytes, offset: int) -> None:
        if self.ui.as_json:
            self.ui.emit({"event": "log", "run": self.run.id, "offset": offset, "text": self._decoder.decode(chunk)})
        else:
            self.ui.log(chunk)

    def show_receipt(self, view: View, receipt: Receipt) -> None:
        """The last word; in JSON the last line."""
        say_how_it_ended(self.ui, view, receipt, self.podctl)
        if self._mirror is not None and self._mirror.trouble:
            self.ui.warn(f"not everything could be mirrored here: {self._mirror.trouble}")
            self.ui.hint(f"{self.podctl} pull {self.run.id}")
        if self.ui.as_json:
            self.ui.emit({"event": "receipt", **receipt.as_dict()})

    @contextlib.contextmanager
    def _company(self) -> Iterator[None]:
        """What goes on beside the following: a mirror, where the run is on another disk; a look at its GPUs."""
        with contextlib.ExitStack() as both:
            if not isinstance(self.host, LocalHost):
                self._mirror = both.enter_context(Mirror(self.run, self.host).going_on())
            if self.ui.live_wanted or self.ui.as_json:
                self._gauge = Gauge(self.host)
                both.enter_context(self._gauge.reading())
            yield

    def _follow_for_a_while(self) -> View:
        """Log and status until the run is over, or until the log's stream had better be begun anew."""
        view = self.look()
        looked_at, wait_s = self.clock.elapsed(), FIRST_LOOK_S
        odd_since = behind_since = shorter_size = None
        ticked_at = self.clock.elapsed()
        with _closing(self.host.follow(self._log, offset=self._offset)) as stream:
            for chunk in stream:
                now = self.clock.elapsed()
                if chunk:
                    self._take(chunk)
                    behind_since = None
                if view.is_over or now - ticked_at > ASLEEP_S:
                    return view  # who slept for long holds a stream that may be dead without knowing it
                ticked_at = now
                if now - looked_at < wait_s:
                    continue
                try:
                    view, odd_since = self.look(), None
                except Unreachable:
                    raise
                except PodctlError:
                    odd_since = now if odd_since is None else odd_since
                    if now - odd_since > ODD_S:
                        raise
                looked_at, wait_s = self.clock.elapsed(), min(LOOK_S, 1.4 * wait_s)
                if view.is_over:
                    return view
                if view.log_size > self._offset and not chunk:
                    behind_since = now if behind_since is None else behind_since
                    if now - behind_since > STALLED_S:
                        return view
                if 0 < view.log_size < self._offset:  # 0 may also mean that it can't be looked at now
                    if shorter_size is not None:
                        self._begin_anew(view.log_size)
                        return view
                    shorter_size = view.log_size
                else:
                    shorter_size = None
        self.clock.sleep(LOOK_S)  # a stream that ends by itself says nothing about the run
        return view

    def _read_until(self, end: int) -> None:
        """The rest of the log, bounded: one that is shorter than its runner counted ends the wait too."""
        looks = 0
        if self._offset >= end:
            return
        with _closing(self.host.follow(self._log, offset=self._offset)) as stream:
            for chunk in stream:
                looks += not chunk
                if chunk:
                    self._take(chunk[: end - self._offset])
                if self._offset >= end or looks > DRAIN_LOOKS:
                    return

    @property
    def _log(self) -> PurePosixPath:
        return PurePosixPath(run_dir(self.run).log)

    def _take(self, chunk: bytes) -> None:
        offset, self._offset = self._offset, self._offset + len(chunk)
        self.link.answered()
        if self._mirror is not None:
            self._mirror.log(chunk, offset)
        self.show_log(chunk, offset)

    def _begin_anew(self, size: int) -> None:
        self.ui.warn(f"the log was cut to {size} bytes over there: it follows from its new beginning")
        if self._mirror is not None:
            self._mirror.log_began_anew()
        self._offset = 0

    def _tell_pulse(self, view: View) -> None:
        """Without a terminal: a line now and then, so that whoever reads later sees that it lived."""
        phase = view.phase
        before, now = self._pulse, self.clock.elapsed()
        if before is None:
            self._pulse = Pulse(now, phase)
        elif pulse_is_due(before, now, phase):
            self._pulse = Pulse(now, phase)
            self.ui.note(live_line(view, PULSE_WIDTH))


def say_how_it_ended(ui: Ui, view: View, receipt: Receipt, podctl: str) -> None:
    """A receipt for a person."""
    spent = f"after {duration(receipt.duration_s)}, {receipt.bill}"
    why = f": {receipt.reason}" if receipt.reason else ""
    if view.state == SUCCEEDED:
        ui.done(f"{receipt.run} succeeded {spent}")
    elif view.state == STOPPED:
        ui.warn(f"{receipt.run} stopped {spent}{why}")
    else:
        ui.fail_line(f"{receipt.run} {'is lost' if view.state == LOST else view.state} {spent}{why}")
    if receipt.headline:
        ui.note(f"  {receipt.headline}")
    if receipt.trouble:
        ui.warn(receipt.trouble)
    facts = [
        ("run", receipt.run_dir),
        ("log", receipt.log),
        ("best", receipt.best_checkpoint),
        ("model", receipt.export),
        ("results", receipt.results),
        ("put into", ", ".join(receipt.copies)),
        ("curves", receipt.tensorboard),
    ]
    ui.facts(facts, talk=True)
    if view.state in (STOPPED, LOST, FAILED):
        ui.hint(f"{podctl} {view.run.again} {'begins it anew' if view.run.of else 'resumes it'}")


def refuse_unstarted(view: View) -> None:
    """A run that never began has no log. Raises PodctlError."""
    if view.state == NEVER_STARTED:
        raise PodctlError(f"{view.run.id} never began", "podctl train starts it")


@contextlib.contextmanager
def _closing(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """A stream that is left ends over there too, now and not when somebody sweeps up."""
    try:
        yield pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
