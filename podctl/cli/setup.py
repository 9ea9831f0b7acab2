"""`podctl init`, `doctor` and `completion`."""

from typing import Annotated

import typer

from podctl.cli.options import AsJson, epilogue, this_project


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("init", "init --ssh gpubox --volume /data/podctl", "init --yes"))(init)


def init(
    ssh: Annotated[
        str, typer.Option("--ssh", metavar="HOST", help="A machine you have: [USER@]HOST[:PORT].", show_default=False)
    ] = "",
    volume: Annotated[
        str, typer.Option("--volume", metavar="DIR", help="With --ssh: the folder there for runs.", show_default=False)
    ] = "",
    owner: Annotated[
        str, typer.Option("--owner", metavar="NAME", help="Your name within pods' names.", show_default=False)
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask: no keys, a new SSH key where none is.")] = False,
    as_json: AsJson = False,
) -> int:
    """Make this project ready: keys, .gitignore, an SSH key, a first experiment."""
    from podctl import shell
    from podctl.cli import program
    from podctl.init import Order
    from podctl.init import init as make_ready
    from podctl.ui import Ui

    ui, project = Ui(as_json=as_json), this_project()
    with shell.ending_like_ctrl_c():
        told = make_ready(Order(yes, owner, ssh, volume, program()), project, ui)
    for line in told.changed:
        ui.done(line)
    for line in told.kept:
        ui.note(f"· {line}")
    for line in told.warnings:
        ui.warn(line)
    if as_json:
        ui.emit({"event": "init", "project": project.id, "root": str(project.root), **vars(told)})
    for line in told.next:
        ui.hint(line)
    return 0
