"""`podctl sim`."""

from pathlib import Path
from typing import Annotated

import typer

from podctl.cli.options import AsJson, epilogue


def register(app: typer.Typer) -> None:
    examples = ("sim --rate 10", "sim --volume data --fault sold-out-late,times=1 --fault host-full", "sim --faults")
    app.command(epilog=epilogue(*examples))(sim)


def sim(
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", min=1, help="How many seconds go by in a second.")
    ] = 1.0,
    faults: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="NAME[,K=V…]", help="A way to misbehave; repeatable.", show_default=False),
    ] = None,
    stock: Annotated[
        list[str] | None,
        typer.Option(
            "--stock", metavar="GPU[@DC]=N", help="So many free, and no more; repeatable.", show_default=False
        ),
    ] = None,
    volumes: Annotated[
        list[str] | None,
        typer.Option("--volume", metavar="NAME[@DC]", help="A network volume; repeatable.", show_default=False),
    ] = None,
    balance: Annotated[float, typer.Option("--balance", metavar="USD", help="What the account has.")] = 100.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Decides every id.")] = 0,
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="Of loopback; 0: one that is free.", min=0, max=65535)
    ] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIR", help="Keep volumes here; without it they go with the cloud.", show_default=False
        ),
    ] = None,
    list_faults: Annotated[bool, typer.Option("--faults", help="Say which faults there are, and end.")] = False,
    as_json: AsJson = False,
) -> int:
    """Emulate RunPod on this machine: pods that really run, a bill in play money, faults to try podctl against."""
    from podctl.sim.foreground import Order, run, show_faults
    from podctl.ui import Ui

    ui = Ui(as_json=as_json)
    if list_faults:
        return show_faults(ui)
    return run(Order(rate, faults or (), stock or (), volumes or (), balance, seed, port, folder), ui)
