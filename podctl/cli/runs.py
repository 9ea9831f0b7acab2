"""`podctl ps`, `status` and `stop`."""

from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run, this_project, watcher


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("ps", "ps --all", "ps --json | jq .state"))(ps)
    app.command(epilog=epilogue("status", "status demo", "status --json"))(status)
    app.command(epilog=epilogue("stop", "stop demo --grace 300"))(stop)


def ps(
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Of all projects.")] = False, as_json: AsJson = False
) -> int:
    """List the runs of this project, the newest last."""
    from podctl import report
    from podctl.books import close_all_unseen
    from podctl.cli import program
    from podctl.runs import open_ledger, views
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    project, ledger, now = this_project(), open_ledger(), clock_from_env().now()
    known = [r for r in ledger.runs().values() if everywhere or r.project == project.id]
    seen = close_all_unseen(views(known, now), ledger, now)
    report.show_table(Ui(as_json=as_json), seen, program(), with_project=everywhere)
    return 0


def status(run: RunWord = "", as_json: AsJson = False) -> int:
    """Show one run in full."""
    from podctl import report
    from podctl.books import close_unseen
    from podctl.cli import program
    from podctl.errors import PodGone
    from podctl.providers.base import provider_named
    from podctl.runs import host_for, last_known, look
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    found, ledger = meant_run(run)
    host, ui, now = host_for(found), Ui(as_json=as_json), clock_from_env().now()
    try:
        report.show_one(ui, look(found, host, now), host, program())
    except PodGone as e:
        close_unseen(found, ledger, provider_named(found.provider), now)
        report.show_gone(ui, last_known(ledger.runs()[found.id], now), e, program())
    return 0


def stop(
    run: RunWord = "",
    grace: Annotated[
        float | None,
        typer.Option("--grace", metavar="SECONDS", min=0, help="To save in; what its job says.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Have a run save, then end it; it can be resumed."""
    from podctl.stop import stop_run
    from podctl.ui import Ui

    found, ledger = meant_run(run)
    return stop_run(watcher(found, Ui(as_json=as_json)), ledger, grace)
