"""`podctl attach`, `logs` and `tensorboard`: what a run says and shows while it goes on."""

from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run, watcher


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("attach", "attach demo", "attach demo-261121-080000-1a2b --json"))(attach)
    app.command(epilog=epilogue("logs | less", "logs -f demo"))(logs)
    app.command(epilog=epilogue("tensorboard", "tensorboard demo --port 6007 --no-browser"))(tensorboard)


def attach(run: RunWord = "", as_json: AsJson = False) -> int:
    """Come back to a run: its whole log, then live to its end."""
    from podctl.errors import PodGone
    from podctl.ui import Ui
    from podctl.watch import refuse_unstarted

    found, ledger = meant_run(run)
    w = watcher(found, Ui(as_json=as_json))
    try:
        refuse_unstarted(w.quiet_look())
    except PodGone as e:
        return int(w.pod_is_gone(e, ledger))
    return int(w.attend(ledger))


def logs(
    run: RunWord = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Stay, and show what comes.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print a run's log as it is."""
    from podctl.errors import PodGone
    from podctl.ui import Ui
    from podctl.watch import refuse_unstarted

    found, ledger = meant_run(run)
    ui = Ui(as_json=as_json)
    w = watcher(found, ui)
    try:
        refuse_unstarted(w.quiet_look())
    except PodGone as e:
        return int(w.show_mirrored_log(e))
    if follow:
        return int(w.attend(ledger))
    w.show_what_is_there()
    return 0


def tensorboard(
    run: RunWord = "",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="PORT",
            min=1,
            max=65535,
            help="Of this machine; 6006 where that is free, else another.",
            show_default=False,
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show a run's curves until Ctrl-C, under one address however often the link breaks."""
    import sys
    import webbrowser

    from podctl import shell
    from podctl.cli import program
    from podctl.link import Link
    from podctl.tensorboard import choose_port, find_curves, serve
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    found, _ = meant_run(run, training=True)
    ui, clock = Ui(as_json=as_json), clock_from_env()

    def show(url: str) -> None:
        if as_json:
            ui.emit({"event": "serving", "run": found.id, "url": url})
        else:
            ui.data(url)
        ui.note("Ctrl-C ends it")
        if not no_browser and sys.stdout.isatty():
            webbrowser.open(url)

    try:
        with shell.ending_like_ctrl_c():
            link = Link(ui, clock, hint=f"{program()} tensorboard {found.id}", goes_on="")
            serve(find_curves(found, ui), choose_port(port), link, clock, show)
    except KeyboardInterrupt:
        pass
    return 0
