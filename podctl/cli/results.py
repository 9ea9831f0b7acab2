"""`podctl pull` and `podctl report`: what a run has, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run


def register(app: typer.Typer) -> None:
    app.command(
        epilog=epilogue("pull", "pull demo --to results --checkpoints", "pull demo reports export/config.json")
    )(pull)
    app.command(epilog=epilogue("report", "report whisper --no-browser", "report whisper lora --to both.html"))(report)


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


def report(
    run: RunWord = "",
    other: Annotated[
        str,
        typer.Argument(metavar="OTHER", help="A second run, to be compared with.", show_default=False),
    ] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the path only.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="Where the page goes; beside the run's results.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Make a page of a run's curves, errors and worst utterances, or of two runs side by side, and open it."""
    import os
    import sys
    import webbrowser

    from podctl.errors import BadInput
    from podctl.homecoming import bring_small_files
    from podctl.page import can_show, make_page, place_of
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    found, _ = meant_run(run, training=True)
    second = meant_run(other)[0] if other else None
    for r in (found, second):
        if r is not None and r.of:
            raise BadInput(f"{r.id} {r.does}s {r.of}, and stands in that one's report", f"podctl report {r.of}")
    if second is not None and second.id == found.id:
        raise BadInput(f"{found.id} is one run, and a comparison needs two", f"podctl report {found.id}")
    ui, now = Ui(as_json=as_json), clock_from_env().now()
    target = place_of(found, second, to)
    views = [bring_small_files(r, ui, now) for r in (found, second) if r is not None]
    page = make_page(found, second, target, views[0].usd)
    if not page.made_here:
        ui.warn(f"{page.why}: this is the page that {found.id} made of itself")
    if as_json:
        told = {"run": found.id, "other": second.id if second else "", "state": views[0].state}
        ui.emit({"event": "report", **told, "file": str(page.path), "made_here": page.made_here})
    else:
        ui.data(str(page.path))
    if not no_browser and not as_json and can_show(os.environ, sys.platform, is_terminal=sys.stdout.isatty()):
        webbrowser.open(page.path.as_uri())
    return 0
