"""`podctl attach` and `podctl logs`."""

from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run, watcher


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("attach", "attach demo", "attach demo-261121-080000-1a2b --json"))(attach)
    app.command(epilog=epilogue("logs | less", "logs -f demo"))(logs)


def attach(run: RunWord = "", as_json: AsJson = False) -> int:
    """Come back to a run: its whole log, then live to its end."""
    from podctl.ui import Ui
    from podctl.watch import refuse_unstarted

    found, ledger = meant_run(run)
    w = watcher(found, Ui(as_json=as_json))
    refuse_unstarted(w.quiet_look())
    return int(w.attend(ledger))


def logs(
    run: RunWord = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Stay, and show what comes.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print a run's log as it is."""
    from podctl.ui import Ui
    from podctl.watch import refuse_unstarted

    found, ledger = meant_run(run)
    ui = Ui(as_json=as_json)
    w = watcher(found, ui)
    refuse_unstarted(w.quiet_look())
    if follow:
        return int(w.attend(ledger))
    w.show_what_is_there()
    return 0
