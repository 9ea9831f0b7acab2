"""`podctl ssh`, `exec` and `ssh-config`."""

from typing import TYPE_CHECKING, Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run

if TYPE_CHECKING:
    from podctl.ui import Ui


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("ssh", "ssh demo", "ssh --tmux"))(ssh)
    app.command(
        "exec",
        epilog=epilogue("exec -- nvidia-smi", "exec demo -- tar c logs | tar x", "exec -- sh -c 'ls $PODCTL_RUN_DIR'"),
    )(execute)
    app.command("ssh-config", epilog=epilogue("ssh-config", "ssh-config demo --write"))(ssh_config)


def ssh(
    run: RunWord = "",
    tmux: Annotated[bool, typer.Option("--tmux", help="Look on at the run's own screen instead.")] = False,
) -> int:
    """Open a shell on a run's machine, where its code is."""
    from podctl.entering import enter
    from podctl.ui import Ui

    found, _ = meant_run(run)
    return enter(found, Ui(), tmux=tmux)


def execute(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN -- CMD", help="The newest run here where none is named.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run a command on a run's machine, as its job would; the exit code is the command's."""
    from podctl.entering import execute as execute_there
    from podctl.errors import BadInput
    from podctl.ui import Ui

    typed = list(words or ())
    at = typed.index("--") if "--" in typed else len(typed)
    named, command = typed[:at], typed[at + 1 :]
    if len(named) > 1 or not command:
        what = "there is no command" if not command else f"{' '.join(named)} is no run"
        raise BadInput(
            f"{what}: it stands after --", "podctl exec RUN -- CMD …, or podctl exec -- CMD … for the newest"
        )
    found, _ = meant_run("".join(named))
    return execute_there(found, command, Ui(as_json=as_json))


def ssh_config(
    run: RunWord = "",
    write: Annotated[bool, typer.Option("--write", help="Keep it where ssh and editors find it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print an entry of ssh's configuration for a run's machine."""
    from podctl.errors import BadInput
    from podctl.runs import pod_for
    from podctl.sshconfig import entry_of
    from podctl.ui import Ui

    found, _ = meant_run(run)
    ui, pod = Ui(as_json=as_json), pod_for(found) if found.pod else None
    if pod is None or pod.ssh is None:
        raise BadInput(f"{found.id} is on this machine: there is nothing to connect to", "podctl ssh opens a shell")
    entry = entry_of(found, pod.ssh)
    if write:
        return write_entry(entry.name, entry.text(), ui, yes=yes)
    if as_json:
        ui.emit({"event": "ssh_config", "run": found.id, **vars(entry), "text": entry.text()})
    else:
        ui.data(entry.text().rstrip("\n"))
    return 0


def write_entry(name: str, entry: str, ui: "Ui", *, yes: bool) -> int:
    """Into a file of ours; with consent one line in the user's own configuration names it."""
    from pathlib import Path

    from podctl.errors import Cancelled, MissingHere
    from podctl.files import put, text_of
    from podctl.sshconfig import FILE, with_entry, with_include
    from podctl.ui import shown

    try:
        folder = Path.home() / ".ssh"
    except RuntimeError:
        raise MissingHere("there is no home folder with a .ssh in it", "set HOME") from None
    ours, config = folder / FILE, folder / "config"
    before = text_of(config) or ""
    wanted = with_include(before, ours)
    if wanted != before and not yes and not ui.agree(f"add one line to {shown(config)}, at its top: Include {ours}?"):
        raise Cancelled("nothing was written", "podctl ssh-config prints the entry, to put it anywhere")
    put(ours, with_entry(text_of(ours) or "", name, entry), 0o600)
    if wanted != before:
        put(config, wanted, 0o600, keep_mode=True)
        ui.done(f"{shown(config)} includes {shown(ours)}")
    if ui.as_json:
        ui.emit({"event": "ssh_config", "host": name, "file": str(ours), "changed": wanted != before})
    else:
        ui.data(name)
        ui.done(f"ssh {name}")
    return 0
