"""`podctl train` and `podctl resume`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run, this_project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from podctl.pods import Offer
    from podctl.prepare import Order, Prepared
    from podctl.ui import Ui


def register(app: typer.Typer) -> None:
    app.command(
        epilog=epilogue(
            "train --config configs/demo.yaml --local",
            "train --config whisper.yaml --debug",
            "train --config whisper.yaml --set train.optim.lr=3e-5 --set pod.max_hours=2",
            "train --config whisper.yaml --dry-run",
            "train --config whisper.yaml --queue --detach",
        )
    )(train)
    app.command(epilog=epilogue("resume", "resume whisper --queue", "resume --set pod.max_hours=4"))(resume)


Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key for this run; repeatable.")
]
Queue = Annotated[bool, typer.Option("--queue", help="Wait there until the runs before it have ended.")]
Beside = Annotated[bool, typer.Option("--beside", help="Share the machine with a run that is going on it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Unguarded = Annotated[
    bool, typer.Option("--unguarded", help="Take a pod even where nothing on it could end it but you.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once it runs.")]


def train(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The experiment file.", show_default=False)
    ],
    debug: Annotated[bool, typer.Option("--debug", help="100 examples and a few steps, as a run of its own.")] = False,
    force_restart: Annotated[bool, typer.Option("--force-restart", help="A new run; the older one is kept.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")] = False,
    local: Annotated[bool, typer.Option("--local", help="On this machine, at no cost.")] = False,
    sets: Sets = None,
    queue: Queue = False,
    beside: Beside = False,
    unguarded: Unguarded = False,
    yes: Yes = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> int:
    """Start a run, or resume the one that stopped."""
    from podctl.cli import program
    from podctl.prepare import Order
    from podctl.ui import Ui

    order = Order(config, tuple(sets or ()), local, debug, force_restart, queue, beside, unguarded, program())
    return begin(order, Ui(as_json=as_json), dry_run=dry_run, yes=yes, detach=detach)


def resume(
    run: RunWord = "",
    sets: Sets = None,
    queue: Queue = False,
    beside: Beside = False,
    unguarded: Unguarded = False,
    yes: Yes = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> int:
    """Go on with a run that stopped, failed or was lost, by its own experiment and with the code as it is now."""
    import tempfile

    from podctl.apply import purpose_of
    from podctl.choosing import experiment_of
    from podctl.cli import program
    from podctl.prepare import Order
    from podctl.ui import Ui

    found, ledger = meant_run(run, training=True)
    text = experiment_of(found, ledger, this_project())
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        path = Path(tmp, "experiment.yaml")
        path.write_bytes(text)
        debug = found.name.endswith("-debug") and not found.of
        purpose = purpose_of(found)
        order = Order(path, tuple(sets or ()), False, debug, False, queue, beside, unguarded, program(), purpose)
        return begin(order, Ui(as_json=as_json), yes=yes, detach=detach)


def begin(order: "Order", ui: "Ui", *, dry_run: bool = False, yes: bool = False, detach: bool = False) -> int:
    """All ten steps."""
    from podctl.errors import Cancelled
    from podctl.launch import launch
    from podctl.prepare import prepare
    from podctl.runs import open_ledger
    from podctl.shell import CtrlC
    from podctl.watch import Watcher
    from remote.clock import clock_from_env

    clock = clock_from_env()
    watcher = None
    try:
        with CtrlC() as key:
            with prepare(order, clock, look_only=dry_run) as prepared:
                show_plan(prepared, ui)
                if dry_run:
                    return 0
                question = "rent it, or take up what is rented?" if prepared.plan.resumes else "rent it?"
                if prepared.provider.can.rents and not yes and not ui.confirm(question):
                    raise Cancelled("nothing was rented")
                launched = launch(prepared, ui, clock, key=key)
            watcher = Watcher(launched.run, launched.host, ui, clock, order.podctl)
        if ui.as_json:
            ui.emit({"event": "launched", "run": launched.run.id, "run_dir": launched.run.detail["run_dir"]})
        if detach or launched.leaves or key.pressed:
            return watcher.leave()
        return watcher.attend(open_ledger(), offset=launched.log_offset)
    except KeyboardInterrupt:
        if watcher is None:
            raise
        return watcher.leave()  # the run lives: leaving is all that Ctrl-C can mean


def machines(offers: "Sequence[Offer]", provider: str) -> str:
    """The machine, or the candidates in the order in which they will be tried."""
    from podctl.ui import money

    def one(o: "Offer") -> str:
        name = o.ref or f"{o.gpu_count} × {o.gpu}" * bool(o.gpu)
        stock = f", stock {o.stock}" if o.stock else ""
        return f"{name}{f' in {o.data_center}' * bool(o.data_center)}, {money(o.usd_per_hour)} an hour{stock}"

    more = f"; or {len(offers) - 1} more" if len(offers) > 1 else ""
    return f"{one(offers[0])} ({provider}){more}"


def ending_in_words(p: "Prepared") -> str:
    """What becomes of the machine."""
    from remote.clock import duration

    if not p.provider.can.rents:
        return "the run ends, the machine stays on"
    words = {"terminate": "the pod is given back", "stop": "the pod is switched off"}
    endings = p.endings

    def said(ending: object) -> str:
        return f"the pod stays for {duration(ending['hold_s'])}" if isinstance(ending, dict) else words[str(ending)]

    success, failure = said(endings["on_success"]), said(endings["on_failure"])
    return success if success == failure else f"{success}; after a failure {failure}"


def show_plan(p: "Prepared", ui: "Ui") -> None:
    """Step 6, before the question."""
    from dataclasses import asdict

    from podctl.ui import money, size
    from remote.clock import duration

    plan, snap = p.plan, p.snapshot
    what = f"resumes: {p.choice.because}" if plan.resumes else f"new{': ' * bool(p.choice.because)}{p.choice.because}"
    commit = (f", commit {snap.commit[:10]}" if snap.commit else ", no commit") if snap.in_git else ", not in git"
    dirty = f", {len(snap.changed)} changed and {len(snap.untracked)} un-added" if snap.dirty else ""
    spent = f", {money(plan.spent_usd)} spent before" if plan.spent_usd else ""
    if ui.as_json:
        told = {"run": plan.run_id, "resumes": plan.resumes, "because": p.choice.because, "provider": p.provider.name}
        told |= {"machine": plan.offers[0].ref, "files": len(snap.files), "bytes": snap.n_bytes, "commit": snap.commit}
        told |= {"offers": [asdict(o) for o in plan.offers], "pod_name": plan.pod_name, "spent_usd": plan.spent_usd}
        told |= {"dirty": snap.dirty, "max_hours": plan.max_hours, "ceiling_usd": plan.ceiling_usd}
        ui.emit({"event": "plan", **told, "without_effect": sorted(p.idle_keys)})
        return
    ui.note(f"{plan.run_id}  {what}")
    facts = [
        ("machine", machines(plan.offers, p.provider.name)),
        ("code", f"{len(snap.files)} file{'s' * (len(snap.files) != 1)}, {size(snap.n_bytes)}{commit}{dirty}"),
        ("volume", p.spec.volume or "none: its data dies with the pod" if p.provider.can.rents else ""),
        ("limit", f"{duration(plan.max_hours * 3600)}, {money(plan.ceiling_usd)} at most{spent}"),
        ("account", f"{money(p.balance.usd)} left" if p.balance else ""),
        ("turn", "after the runs that are going there" if p.queue else "beside them" if p.beside else ""),
        ("at the end", ending_in_words(p)),
    ]
    ui.facts(facts, talk=True)
    if p.balance and p.balance.usd < plan.ceiling_usd:
        ui.warn(f"the account holds {money(p.balance.usd)}: at nothing its pods are stopped, whatever they do")
    if p.unguarded:
        ui.warn("--unguarded: should this machine sleep, nothing may end the pod")
    for key, reason in p.idle_keys.items():
        ui.warn(f"pod.{key} has no effect here: {reason}")
    for what_is, names in (
        ("submodules are not sent", snap.submodules),
        ("LFS pointers, not contents", snap.lfs_pointers),
    ):
        if names:
            ui.warn(f"{what_is}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
