"""Step 10: the log to the last byte, how far it is, and what became of it. Leaving never ends a run."""

import codecs
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from podctl import fetch
from podctl.errors import PodctlError
from podctl.fetch import Receipt
from podctl.host import Host
from podctl.ledger import Ledger
from podctl.plan import NEVER_STARTED
from podctl.pods import Run
from podctl.runs import View, look, run_dir
from podctl.ui import Ui, money
from remote.clock import Clock, duration
from remote.rundir import FAILED, LOST, STOPPED, SUCCEEDED

LOOK_S = 1.5  # between two questions for the status, once it has gone on for a while
FIRST_LOOK_S = 0.2
DRAIN_LOOKS = 20  # half-second looks for the last bytes of a log that its runner counted


class Watcher:
    """Follows one run on one host."""

    def __init__(self, run: Run, host: Host, ui: Ui, clock: Clock, podctl: str = "podctl") -> None:
        self.run = run
        self.host = host
        self.ui = ui
        self.clock = clock
        self.podctl = podctl
        self._told: dict[str, Any] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def attend(self, ledger: Ledger, *, offset: int = 0) -> int:
        """Stay until the end: log, status, receipt. Returns podctl's exit code; Ctrl-C leaves with 0."""
        try:
            view = self.follow(offset)
            receipt = fetch.settle(view, self.host, ledger, self.run.project, self.podctl)
        except KeyboardInterrupt:
            return self.leave()
        self.show_receipt(view, receipt)
        return receipt.exit_code

    def follow(self, offset: int = 0) -> View:
        """The log from an offset to its last byte, and the final view."""
        view = self.look()
        looked_at, wait_s = self.clock.now(), FIRST_LOOK_S
        for chunk in self.host.follow(PurePosixPath(run_dir(self.run).log), offset=offset):
            if chunk:
                self.show_log(chunk, offset)
                offset += len(chunk)
            if view.is_over:
                break
            if abs(self.clock.now() - looked_at) >= wait_s:
                view = self.look()
                looked_at, wait_s = self.clock.now(), min(LOOK_S, 1.4 * wait_s)
                if view.is_over:
                    break
        end = self._end_of_log(view)
        for chunk in self._until(offset, end):
            self.show_log(chunk, offset)
            offset += len(chunk)
        self.ui.live("")
        return view

    def look(self) -> View:
        """How it is, told to whoever looks on."""
        view = look(self.run, self.host, self.clock.now())
        if self.ui.as_json:
            told = view.as_dict()
            if told != {**self._told, "usd": told["usd"]}:
                self.ui.emit({"event": "status", **told})
                self._told = told
        else:
            self.ui.live(live_line(view))
        return view

    def quiet_look(self) -> View:
        """How it is, told to nobody."""
        return look(self.run, self.host, self.clock.now())

    def show_what_is_there(self) -> None:
        """The log up to this moment."""
        offset, end = 0, self.quiet_look().log_size
        for chunk in self._until(0, end):
            self.show_log(chunk, offset)
            offset += len(chunk)

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
        if self.ui.as_json:
            self.ui.emit({"event": "receipt", **receipt.as_dict()})

    def _end_of_log(self, view: View) -> int:
        if view.status is not None and view.status.is_final:
            return view.status.log_bytes
        return view.log_size  # nobody counted; what is there is all there will be

    def _until(self, offset: int, end: int) -> Iterator[bytes]:
        """The rest of the log, bounded: a log shorter than its runner's count ends the wait too."""
        looks = 0
        if offset >= end:
            return
        for chunk in self.host.follow(PurePosixPath(run_dir(self.run).log), offset=offset):
            looks += not chunk
            if chunk:
                chunk = chunk[: end - offset]
                offset += len(chunk)
                yield chunk
            if offset >= end or looks > DRAIN_LOOKS:
                return


def live_line(view: View) -> str:
    """`demo-… · train 120/600 · loss 1.23 · best wer 0.08 · 34 audio-s/s · ETA 2 m · 1 m 10 s · $0.00`."""
    s, p = view.status, view.progress
    parts = [view.run.name, f"{p.phase} {p.step}/{p.max_steps}" if p else (s.phase if s else view.state)]
    if s is not None and view.state == "stopping":
        parts.append(s.reason or "stopping")
    if p is not None:
        parts += [f"loss {p.loss:.3g}"] if p.loss is not None else []
        parts += [f"best {best_of(p.best)}"] if p.best else []
        parts += [f"{p.audio_s_per_s:.0f} audio-s/s"] if p.audio_s_per_s else []
        parts += [f"ETA {duration(p.eta_s)}"] if p.eta_s else []
    parts += [duration(view.now - s.started_at)] if s is not None else []
    return " · ".join([*parts, money(view.usd)])


def best_of(best: Any) -> str:
    """`wer 0.08 at 400`."""
    if not isinstance(best, dict) or "value" not in best:
        return ""
    value = best["value"]
    number = f"{value:.4g}" if isinstance(value, int | float) else str(value)
    return f"{best.get('metric', '')} {number} at {best.get('step', '?')}".strip()


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
        ("curves", receipt.tensorboard),
    ]
    ui.facts(facts, talk=True)
    if view.state in (STOPPED, LOST, FAILED):
        ui.hint(f"{podctl} train with the same file resumes it")


def refuse_unstarted(view: View) -> None:
    """A run that never began has no log. Raises PodctlError."""
    if view.state == NEVER_STARTED:
        raise PodctlError(f"{view.run.id} never began", "podctl train starts it")
