"""`podctl push` and `podctl sync`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, this_project

if TYPE_CHECKING:
    from podctl.pods import Pod

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The machine that this experiment names.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=epilogue(
            "push corpus/", "push a.tar b.tar --to sets", "push corpus --config whisper.yaml", "push corpus --run demo"
        )
    )(push)
    app.command(epilog=epilogue("sync", "sync demo", "sync --config whisper.yaml"))(sync)


def push(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.", show_default=False)],
    to: Annotated[
        str, typer.Option("--to", metavar="DIR", help="A folder below the volume's data/.", show_default=False)
    ] = "",
    run: Annotated[
        str, typer.Option("--run", metavar="RUN", help="To the machine of this run.", show_default=False)
    ] = "",
    config: ConfigFile = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Send data to a machine's volume, resumed where it was cut and verified by hash."""
    from podctl.errors import Cancelled, PodctlError
    from podctl.machine import reach
    from podctl.parcels import place_for
    from podctl.transfer import push_data
    from podctl.ui import Ui, size
    from podctl.uplink import Desk
    from remote.clock import clock_from_env, duration

    ui, clock = Ui(as_json=as_json), clock_from_env()
    there = reach(_pod(run, config))
    root, below = place_for(there.pod, to)
    begun = clock.now()
    outcome = push_data(there.host, paths, root, below, Desk(ui, clock, yes), there.pod.usd_per_hour)
    if outcome is None:
        raise Cancelled("nothing was sent")
    place = root / below
    if as_json:
        told = {"files": outcome.n_files, "bytes": outcome.n_bytes, "held": outcome.n_held}
        ui.emit({"event": "pushed", "to": str(place), **told, "left_out": outcome.left_out})
    else:
        held = f", {outcome.n_held} were there" if outcome.n_held else ""
        took = duration(clock.now() - begun)
        files = f"{outcome.n_files} file{'s' * (outcome.n_files != 1)}"
        ui.done(f"{files}, {size(outcome.n_bytes)} sent in {took}{held}")
        ui.data(str(place))
    if outcome.left_out:
        names = ", ".join(outcome.left_out[:5]) + " …" * (len(outcome.left_out) > 5)
        raise PodctlError(f"changed while they were sent, and left out: {names}", "again, once nothing writes them")
    return 0


def sync(run: RunWord = "", config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Send the project's code to a machine as it is now, and start nothing; the next run has less to wait for."""
    from podctl.launch import sync_source
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    ui = Ui(as_json=as_json)
    place = sync_source(this_project(), _pod(run, config), ui, clock_from_env())
    ui.emit({"event": "synced", "to": str(place)}) if as_json else ui.data(str(place))
    return 0


def _pod(run: str, config: Path | None) -> "Pod":
    from podctl.machine import meant_pod
    from podctl.runs import open_ledger

    return meant_pod(open_ledger(), this_project(), run, config)
