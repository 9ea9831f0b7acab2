"""`podctl tensorboard`."""

from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("tensorboard", "tensorboard demo --no-browser"))(tensorboard)


def tensorboard(
    run: RunWord = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show a run's curves until Ctrl-C."""
    import sys
    import webbrowser

    from podctl import shell
    from podctl.errors import PodctlError
    from podctl.runs import host_for
    from podctl.tensorboard import serving
    from podctl.ui import Ui

    found, _ = meant_run(run)
    ui = Ui(as_json=as_json)
    try:
        with shell.ending_like_ctrl_c(), serving(found, host_for(found)) as (url, process):
            if as_json:
                ui.emit({"event": "serving", "run": found.id, "url": url})
            else:
                ui.data(url)
            ui.note("Ctrl-C ends it")
            if not no_browser and sys.stdout.isatty():
                webbrowser.open(url)
            process.wait()
    except KeyboardInterrupt:
        return 0
    raise PodctlError("TensorBoard ended by itself")
