"""What comes home from a run: its small files by themselves, models when they are asked for, and the receipt."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from podctl import ledger as events
from podctl.errors import BadInput, PodctlError, PodGone
from podctl.handing import hand_on
from podctl.host import Host, write
from podctl.ledger import Event, Ledger
from podctl.pods import Run
from podctl.runs import View, results_dir, run_dir
from podctl.transfer import Outcome, pull_data
from podctl.ui import money, shown
from podctl.uplink import Desk
from remote.rundir import EXIT_BAD_INPUT, LOST, STOPPED, SUCCEEDED, RunDir

EXPORT_SMALL_KB = 1024  # an export's configuration and tokeniser, not its weights


@dataclass(frozen=True)
class Receipt:
    """How a run ended, what it reached and what it cost. `exit_code` is podctl's own."""

    run: str
    project: str
    state: str
    reason: str
    exit_code: int
    headline: str
    duration_s: float
    attempts: int
    usd: float
    bill: str
    run_dir: str
    log: str
    best_checkpoint: str
    export: str
    tensorboard: str  # the command that shows it
    results: str  # where its small files were fetched to
    pod: str = ""  # what became of a rented one: gone, stopped, kept
    metrics: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""  # what went wrong after the end
    copies: tuple[str, ...] = ()  # where else its results were put: an evaluation's, beside the run that it is of

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def settle(view: View, host: Host, ledger: Ledger, project: str, podctl: str) -> Receipt:
    """Close a run that is over: fetch, bill, receipt. Repeating it changes nothing."""
    run, where = view.run, run_dir(view.run)
    results = results_dir(run)
    trouble: list[str] = []  # the end of a run is told, whatever a disk says
    if view.status is not None:
        with _noting(trouble, "its results could not be fetched"):
            fetch_results(where, host, results)
    with _noting(trouble, "its end could not be recorded"):
        close_books(view, ledger, project)
    copies, why = handed_on(run, ledger)
    trouble += [why] if why else []
    receipt = replace(make_receipt(view, host, results, podctl), trouble="; ".join(trouble), copies=copies)
    text = json.dumps(receipt.as_dict(), indent=1, ensure_ascii=False) + "\n"
    with _noting(trouble, "its receipt could not be written"):
        write(host, PurePosixPath(where.receipt), text)
        if results.is_dir() and not trouble:
            (results / where.receipt.name).write_text(text, encoding="utf-8")
    return replace(receipt, trouble="; ".join(trouble))


def handed_on(run: Run, ledger: Ledger) -> tuple[tuple[str, ...], str]:
    """What an evaluation found, also where it is looked for: the paths, and what is wrong with them."""
    trouble: list[str] = []
    copies: tuple[str, ...] = ()
    if run.of:
        with _noting(trouble, "its results could not be put where they belong"):
            copies = hand_on(run, ledger.runs())
    return copies, "; ".join(trouble)


def make_receipt(view: View, host: Host, results: Path, podctl: str, *, where: RunDir | None = None) -> Receipt:
    """What there is to say about a run that is over."""
    where, status = where or run_dir(view.run), view.status
    summary = _object(host.read(PurePosixPath(where.summary)))
    metrics = summary.get("metrics")
    has_export = host.run(["test", "-d", str(where.export)]).ok
    duration_s = max(0.0, (status.ended_at or status.heartbeat_at) - status.started_at) if status else 0.0
    return Receipt(
        run=view.run.id,
        project=view.run.project,
        state=view.state,
        reason=reason_of(view),
        exit_code=exit_code_of(view),
        headline=str(summary.get("headline", "")),
        duration_s=round(duration_s, 3),
        attempts=status.attempt if status else view.run.attempts,
        usd=round(view.usd, 4),
        bill=money(view.usd),
        run_dir=str(where),
        log=str(where.log),
        best_checkpoint=best_checkpoint(where, host),
        export=str(where.export) if has_export else "",
        tensorboard=f"{podctl} tensorboard {view.run.id}"
        if host.run(["test", "-d", str(where.tensorboard)]).ok
        else "",
        results=str(results) if results.is_dir() else "",
        metrics=metrics if isinstance(metrics, dict) else {},
    )


def exit_code_of(view: View) -> int:
    """podctl's word for how a run ended."""
    if view.state == SUCCEEDED:
        return 0
    if view.run.of and view.status is not None and view.status.exit_code == EXIT_BAD_INPUT:
        return BadInput.exit_code  # nothing was trained: whoever asked made a mistake
    if view.state == STOPPED:
        return 7 if view.status is not None and view.status.limit else 75
    return 1


def reason_of(view: View) -> str:
    """Why it ended, in a sentence."""
    if view.status is not None and view.status.reason and view.status.is_final:
        return view.status.reason
    if view.state == LOST:
        return "its runner is gone without a last word: the machine was restarted, or its session was killed"
    return ""


def best_checkpoint(where: RunDir, host: Host) -> str:
    """The path of the checkpoint that evaluated best, "" where there is none."""
    step = _object(host.read(PurePosixPath(where.best))).get("step")
    if not isinstance(step, int):
        return ""
    path = where.checkpoint(step)
    return str(path) if host.run(["test", "-d", str(path)]).ok else ""


def close_books(view: View, ledger: Ledger, project: str) -> None:
    """The end and the bill of the newest attempt, once. A rented pod's books stay open until it has ended."""
    run = view.run
    if run.is_rented:
        return
    end = Event(
        view.now, events.STOPPED, run.id, project, run.provider, run.name, run.pod, detail={"state": view.state}
    )
    bill = replace(end, event=events.BILLED, usd=view.attempt_hours * run.usd_per_hour, detail={})
    ledger.append(end, bill, unless=lambda runs: run.id in runs and runs[run.id].gone_at is not None)


def keep_receipt(run: Run, receipt: Receipt) -> None:
    """The receipt as it was in the end, beside what was fetched."""
    root = results_dir(run)
    with contextlib.suppress(OSError):
        if root.is_dir():
            text = json.dumps(receipt.as_dict(), indent=1, ensure_ascii=False) + "\n"
            (root / run_dir(run).receipt.name).write_text(text, encoding="utf-8")


def receipt_from_home(view: View, podctl: str) -> Receipt:
    """What there is to say about a run whose machine is no more, by what came home of it."""
    from podctl.localhost import LocalHost

    root = results_dir(view.run)
    return make_receipt(view, LocalHost(), root, podctl, where=RunDir(root))


def fetch_results(where: RunDir, host: Host, target: Path) -> None:
    """Everything small: log, metrics, events, reports, provenance, what of the export is no weight. Two commands."""
    ignore_results(target)
    keep_there = {where.checkpoints.name, where.export.name, where.writer.name}
    small = f'find "./$2" -type f -size -{EXPORT_SMALL_KB}k -print0'
    script = f'cd -- "$1" && find . -mindepth 1 -maxdepth 1 -print0 && {{ [ ! -d "$2" ] || {small}; }}'
    listed = host.run(["sh", "-c", script, "sh", str(where.root), where.export.name])
    names = sorted(name.removeprefix("./") for name in listed.stdout.split("\0") if name)
    names = [name for name in names if name not in keep_there and not name.endswith(".tmp")]
    if names:  # without any it would be all
        host.pull(where.root, target, names=names)


def pull_all(
    where: RunDir, host: Host, target: Path, desk: Desk, *, checkpoints: bool, names: Sequence[str] = ()
) -> Outcome:
    """Everything with the exported model, checkpoints only when asked for, since they are large; or only what is named.

    Resumed and verified by hash. Raises BadInput, PodctlError, OSError for this disk.
    """
    names = [os.path.normpath(name) for name in names]
    for name in names:
        if name.startswith(("/", "..")) or name == ".":
            raise BadInput(f"{shown(name)} is not in the run's directory", "name what is, as reports or log")
    ignore_results(target)
    leave = {where.writer.name} | (set() if checkpoints or names else {where.checkpoints.name})
    try:
        return pull_data(host, where.root, target, desk, names=names, leave=sorted(leave))
    except FileNotFoundError as e:
        if str(e.filename) == str(where.root):
            hint = "the run never began, or its directory was removed"
            raise PodctlError(f"there is no {where}", hint) from e
        raise


def ignore_results(results: Path) -> None:
    """`.podctl/` is nobody's source code: it carries its own .gitignore."""
    results.mkdir(parents=True, exist_ok=True)
    root = next((p for p in results.parents if p.name == ".podctl"), None)
    if root is not None and not (root / ".gitignore").exists():
        (root / ".gitignore").write_text("*\n", encoding="ascii")


@contextlib.contextmanager
def _noting(trouble: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except PodGone:
        raise
    except (OSError, PodctlError) as e:
        trouble.append(f"{what}: {e}")


def _object(data: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
