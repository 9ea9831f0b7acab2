"""`podctl pods`, `up`, `down` and `reap`: rented machines by themselves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podctl.cli.options import AsJson, epilogue, this_project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from podctl.fleet import Machine

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("pods", "pods --json | jq -r 'select(.expired) | .name'"))(pods)
    app.command(epilog=epilogue("up --config whisper.yaml", "up -c whisper.yaml --set pod.max_hours=2"))(up)
    app.command(epilog=epilogue("down", "down demo", "down pc-ann-demo-261121-080000-1a2b"))(down)
    app.command(epilog=epilogue("reap", "reap --yes", "reap pc-bob-demo-261121-080000-1a2b-a1-2611211000"))(reap)


def pods(as_json: AsJson = False) -> int:
    """List the machines that are rented now, and what each costs."""
    from podctl.ui import Ui, money
    from remote.clock import duration

    ui = Ui(as_json=as_json)
    machines = _fleet()
    if as_json:
        for m in machines:
            ui.emit(m.as_dict())
        return 0
    if not machines:
        ui.note("nothing is rented")
        return 0
    rows = []
    for m in machines:
        p, now = m.pod, m.now
        age = duration(max(0.0, now - (p.started_at or p.created_at or now)))
        left = duration(m.until - now) if m.until and m.until > now else "over" if m.until else ""
        gpu = f"{p.gpu_count} × {p.gpu}" if p.gpu_count > 1 else p.gpu
        rows.append([p.name, p.state, gpu, money(p.usd_per_hour), money(m.usd), age, left, p.id])
    ui.table(["POD", "STATE", "GPU", ">$/H", ">$", ">AGE", ">LEFT", "ID"], rows, drop=("GPU", "AGE", "ID"))
    hour = sum(m.pod.usd_per_hour for m in machines if m.pod.state in ("running", "starting", "broken"))
    ui.note(f"{money(hour)} an hour")
    for m in machines:
        if m.why:
            ui.warn(f"{m.pod.name}: {m.why}")
    if any(m.why for m in machines):
        ui.hint("podctl reap    ends those")
    return 0


def up(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The experiment file.", show_default=False)
    ],
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key; repeatable.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="For the run that `train --debug` would start.")] = False,
    unguarded: Annotated[bool, typer.Option("--unguarded", help="Even where nothing on it could end it.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Rent or resume an experiment's machine, guarded, and start nothing on it; `train` takes it up."""
    from podctl.cli import program
    from podctl.cli.train import show_plan
    from podctl.errors import BadInput, Cancelled
    from podctl.place import take_up
    from podctl.prepare import Order, prepare
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    ui, clock = Ui(as_json=as_json), clock_from_env()
    order = Order(config, tuple(sets or ()), debug=debug, unguarded=unguarded, podctl=program())
    with prepare(order, clock) as p:
        if not p.provider.can.rents:
            raise BadInput(f"pod.provider {p.provider.name} rents nothing: the machine is there", "podctl train")
        show_plan(p, ui)
        if not yes and not ui.confirm("rent it, or take up what is rented?" if p.plan.resumes else "rent it?"):
            raise Cancelled("nothing was rented")
        run = take_up(p, ui, clock)
    if as_json:
        ui.emit({"event": "up", "run": run.id, "pod": run.pod, "name": run.pod_name})
    ui.hint(f"{program()} ssh {run.id}    to look around")
    ui.hint(f"{program()} train --config {config}    to train on it")
    ui.hint(f"{program()} down {run.id}    to give it back")
    return 0


def down(
    what: Annotated[
        str, typer.Argument(metavar="RUN|POD", help="A run, or a pod's id or name.", show_default=False)
    ] = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Give a machine back: what runs there saves first, then the pod is terminated."""
    from podctl.bring_down import down_pod, down_run
    from podctl.cli.options import watcher
    from podctl.errors import BadInput
    from podctl.runs import find_run, open_ledger
    from podctl.ui import Ui

    ui, ledger = Ui(as_json=as_json), open_ledger()
    try:
        run = find_run(ledger, this_project().id, what)
    except BadInput:
        if not what:
            raise
        return down_pod(what, _fleet(), ui, yes=yes)
    return down_run(watcher(run, ui), ledger, yes=yes)


def reap(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="POD...", help="These, whoever's they are; else yours that expired.", show_default=False
        ),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """End your pods whose time is over; a colleague's only by its name."""
    from podctl.bring_down import reap_these
    from podctl.fleet import named
    from podctl.ui import Ui

    ui, machines = Ui(as_json=as_json), _fleet()
    meant = named(machines, names) if names else [m for m in machines if m.is_ours and m.why]
    return reap_these(meant, ui, yes=yes, rest=len(machines) - len(meant))


def _fleet() -> "Sequence[Machine]":
    from podctl.books import now_at
    from podctl.fleet import fleet, renters
    from podctl.runs import open_ledger
    from podctl.settings import load_settings
    from remote.clock import clock_from_env

    owner, runs, clock = load_settings(this_project().root).owner, open_ledger().runs(), clock_from_env()
    # by each provider's own clock: a laptop's that is a day off must make no pod look forgotten
    return [m for p in renters() for m in fleet(p.list(), runs, owner, now_at(p, clock))]
