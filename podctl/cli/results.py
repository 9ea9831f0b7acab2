"""`podctl pull`."""

from pathlib import Path
from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("pull", "pull demo --to results --checkpoints"))(pull)


def pull(
    run: RunWord = "",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where to; .podctl/runs/RUN in the project.", show_default=False),
    ] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Also the checkpoints.")] = False,
    as_json: AsJson = False,
) -> int:
    """Bring a run's files here, with the exported model."""
    from podctl.errors import MissingHere
    from podctl.fetch import pull_all, results_dir
    from podctl.runs import host_for, run_dir
    from podctl.ui import Ui, shown

    found, _ = meant_run(run)
    ui, target = Ui(as_json=as_json), to or results_dir(found)
    try:
        pull_all(run_dir(found), host_for(found), target, checkpoints=checkpoints)
    except OSError as e:
        where = shown(e.filename or target)
        raise MissingHere(f"{where} can't be written: {e.strerror}", "--to another folder, or free some space") from e
    if as_json:
        ui.emit({"event": "pulled", "run": found.id, "to": str(target)})
    else:
        ui.data(str(target))
        ui.done(f"{found.id} is in {shown(target)}")
    return 0
