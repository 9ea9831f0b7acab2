"""Runs as a person reads them: the table of `ps`, and one run in full."""

from collections.abc import Sequence

from podctl import fetch
from podctl.errors import PodctlError
from podctl.host import Host
from podctl.live import best_of
from podctl.runs import View, results_dir, run_dir
from podctl.ui import Ui, money
from remote.clock import duration, utc
from remote.rundir import FAILED, SUCCEEDED

TAIL_LINES, TAIL_BYTES = 5, 8192
DROP = ("PROJECT", "BEST", "AGE", "$", "STEP")  # where a terminal is narrow, in this order


def show_table(ui: Ui, views: Sequence[View], podctl: str, *, with_project: bool) -> None:
    """A line a run; in JSON an object a run."""
    if ui.as_json:
        for view in views:
            ui.emit(view.as_dict())
        return
    if not views:
        ui.note("no runs here yet")
        ui.hint(f"{podctl} train --config FILE; {podctl} ps --all shows those of other projects")
        return
    head = ["RUN", "STATE", ">STEP", "BEST", ">AGE", ">$"]
    rows = [
        [v.run.id, v.state, step_of(v), best_of(v.progress.best) if v.progress else "", age_of(v), money(v.usd)]
        for v in views
    ]
    if with_project:
        head.append("PROJECT")
        rows = [[*row, v.run.project] for row, v in zip(rows, views, strict=True)]
    ui.table(head, rows, drop=DROP)


def show_one(ui: Ui, view: View, host: Host, podctl: str) -> None:
    """All there is to say about a run, and the end of its log where it failed."""
    where, s, p = run_dir(view.run), view.status, view.progress
    if ui.as_json:
        ui.emit({**view.as_dict(), "best_checkpoint": fetch.best_checkpoint(where, host), "log": str(where.log)})
        return
    beat = f"{duration(view.there_now - s.heartbeat_at)} ago" if s and not view.is_over else ""
    facts = [
        ("run", view.run.id),
        ("state", f"{view.state} ({s.phase})" if s and not view.is_over else view.state),
        ("reason", fetch.reason_of(view)),
        (
            "result",
            fetch.make_receipt(view, host, results_dir(view.run), podctl).headline if view.is_over else "",
        ),
        ("step", step_of(view)),
        ("loss", f"{p.loss:.4g}" if p and p.loss is not None else ""),
        ("best", best_of(p.best) if p else ""),
        ("speed", f"{p.audio_s_per_s:.0f} audio-s/s" if p and p.audio_s_per_s else ""),
        ("GPU", f"{view.gpu}, {view.gpu.used_gb:.0f} of {view.gpu.total_gb:.0f} GB" if view.gpu else ""),
        ("ETA", duration(p.eta_s) if p and p.eta_s and not view.is_over else ""),
        ("attempt", str(s.attempt) if s else ""),
        ("began", utc(s.started_at) if s else utc(view.run.created_at)),
        ("ran", duration(view.ran_s) if s else ""),
        ("heartbeat", beat),
        ("cost", money(view.usd)),
        ("machine", f"{view.run.pod.partition('?')[0] or '–'} ({view.run.provider})"),
        ("directory", str(where) if view.run.launched_at else ""),
        ("log", f"{where.log}, {view.log_size} bytes" if view.run.launched_at else ""),
        ("checkpoint", fetch.best_checkpoint(where, host) if view.run.launched_at else ""),
    ]
    ui.facts(facts)
    if view.state == FAILED:
        ui.note("the end of its log:")
        end = host.run(["tail", "-c", str(TAIL_BYTES), str(where.log)])  # not all of it: that may be 200 MB
        for line in end.stdout.encode("utf-8", "surrogateescape").decode("utf-8", "replace").splitlines()[-TAIL_LINES:]:
            ui.note(f"  {line}")
    if not view.is_over:
        ui.hint(f"{podctl} attach {view.run.id}")


def show_gone(ui: Ui, view: View, e: PodctlError, podctl: str) -> None:
    """A run whose pod is no more, by what came home of it."""
    p = view.progress
    if ui.as_json:
        ui.emit({**view.as_dict(), "pod": "gone"})
        return
    facts = [
        ("run", view.run.id),
        ("state", view.state),
        ("reason", fetch.reason_of(view)),
        ("step", step_of(view)),
        ("best", best_of(p.best) if p else ""),
        ("cost", money(view.usd) + {"an upper bound": " at most"}.get(str(view.run.detail.get("bill_by")), "")),
        ("machine", e.message),
        ("volume", str(view.run.detail.get("wanted_volume") or view.run.detail.get("volume") or "")),
        ("mirror", str(results_dir(view.run)) if results_dir(view.run).is_dir() else ""),
    ]
    ui.facts(facts)
    if view.state != SUCCEEDED:
        ui.hint(f"{podctl} {view.run.again} goes on with it")


def step_of(view: View) -> str:
    """`120/600`."""
    return f"{view.progress.step}/{view.progress.max_steps}" if view.progress else ""


def age_of(view: View) -> str:
    return duration(max(0.0, view.now - view.run.created_at))
