"""`podctl pull`."""

from pathlib import Path
from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run


def register(app: typer.Typer) -> None:
    app.command(
        epilog=epilogue("pull", "pull demo --to results --checkpoints", "pull demo reports export/config.json")
    )(pull)


def pull(
    run: RunWord = "",
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="In the run's directory; all of it.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where to; .podctl/runs/RUN in the project.", show_default=False),
    ] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Also the checkpoints.")] = False,
    as_json: AsJson = False,
) -> int:
    """Bring a run's files here, with the exported model, or only what is named of them."""
    from podctl.errors import MissingHere
    from podctl.fetch import pull_all
    from podctl.runs import host_with_files, results_dir, run_dir
    from podctl.ui import Ui, shown, size
    from podctl.uplink import Desk
    from remote.clock import clock_from_env

    found, ledger = meant_run(run)
    ui, target = Ui(as_json=as_json), to or results_dir(found)
    desk = Desk(ui, clock_from_env())
    try:
        outcome = pull_all(
            run_dir(found),
            host_with_files(found, ledger),
            target,
            desk,
            checkpoints=checkpoints,
            names=tuple(paths or ()),
        )
    except OSError as e:
        where = shown(e.filename or target)
        raise MissingHere(f"{where} can't be written: {e.strerror}", "--to another folder, or free some space") from e
    if as_json:
        told = {"files": outcome.n_files, "bytes": outcome.n_bytes, "held": outcome.n_held}
        ui.emit({"event": "pulled", "run": found.id, "to": str(target), **told})
    else:
        ui.data(str(target))
        held = f", {outcome.n_held} were here" if outcome.n_held else ""
        files = f"{outcome.n_files} file{'s' * (outcome.n_files != 1)}"
        ui.done(f"{found.id} is in {shown(target)}: {files}, {size(outcome.n_bytes)} fetched{held}")
    return 0
