"""`podctl init`, `doctor` and `completion`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podctl.cli.options import AsJson, epilogue, this_project

if TYPE_CHECKING:
    from podctl.experiment import PodSection
    from podctl.findings import Finding
    from podctl.ui import Ui


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("init", "init --ssh gpubox --volume /data/podctl", "init --yes"))(init)
    app.command(epilog=epilogue("doctor", "doctor --config experiment.yaml"))(doctor)
    app.command(epilog=epilogue("completion bash --install", "completion zsh", "completion fish | source"))(completion)


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
    from podctl.init import Order, machine_named
    from podctl.init import init as make_ready
    from podctl.ui import Ui

    ui, project = Ui(as_json=as_json), this_project()
    order = Order(yes, owner, ssh, volume, program())
    with shell.ending_like_ctrl_c():
        told = make_ready(order, project, ui)
    for line in told.changed:
        ui.done(line)
    for line in told.kept:
        ui.note(f"· {line}")
    for line in told.warnings:
        ui.warn(line)
    if as_json:
        ui.emit({"event": "init", "project": project.id, "root": str(project.root), **vars(told)})
    pod = machine_named(order)
    code = check_machine(pod, ui) if pod is not None else 0
    for line in told.next:
        ui.hint(line)
    return code


def check_machine(pod: "PodSection", ui: "Ui") -> int:
    """Ask the machine of a new pod section; the exit code that says whether it will do."""
    from podctl import doctor as examine
    from podctl.experiment import machine_of
    from podctl.findings import Need, verdict

    machine = machine_of(pod)
    assert machine is not None
    findings = []
    for finding in examine.check_machine(machine, Need(maybe_local=False, espeak=True)):
        show(finding, ui)
        findings.append(finding)
    return verdict(findings)


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Also what this experiment needs, and there.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Look at everything that a run needs, and say what to do where it is missing."""
    from podctl.doctor import check_up
    from podctl.findings import verdict
    from podctl.ui import Ui

    ui, findings = Ui(as_json=as_json), []
    for finding in check_up(this_project(), config):
        show(finding, ui)
        findings.append(finding)
    code = verdict(findings)
    if as_json:
        ui.emit({"event": "doctor", "ok": code == 0, "exit_code": code})
    return code


def show(finding: "Finding", ui: "Ui") -> None:
    """A line, and below it what to type."""
    from podctl.cli import as_typed
    from podctl.findings import MARKS

    if ui.as_json:
        ui.emit({"event": "finding", **vars(finding)})
        return
    where = "" if finding.where == "here" else f"{finding.where}: "
    ui.data(f"{MARKS[finding.level]} {where}{finding.text}")
    if finding.fix:
        ui.data(f"    → {as_typed(finding.fix)}")


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish; the one you are in.")] = "",
    install: Annotated[bool, typer.Option("--install", help="Put it where that shell finds it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print what makes a shell complete commands, options, runs and files."""
    import os

    from podctl.completion import SCRIPTS
    from podctl.errors import BadInput
    from podctl.ui import Ui

    ui, name = Ui(as_json=as_json), shell or Path(os.environ.get("SHELL", "")).name
    if name not in SCRIPTS:
        raise BadInput(f"{name or 'nothing'} is no shell that can be helped", f"one of: {', '.join(SCRIPTS)}")
    if install:
        return install_completion(name, ui, yes=yes)
    if as_json:
        ui.emit({"event": "completion", "shell": name, "script": SCRIPTS[name]})
    else:
        ui.data(SCRIPTS[name].rstrip("\n"))
    return 0


def install_completion(shell: str, ui: "Ui", *, yes: bool) -> int:
    """With consent, into a file of ours that the shell reads by itself."""
    import os

    from podctl.completion import SCRIPTS, after_install, target_of
    from podctl.errors import Cancelled, MissingHere
    from podctl.ui import shown
    from remote.files import write_atomic

    try:
        target = target_of(shell, Path.home(), os.environ)
    except RuntimeError:
        raise MissingHere("there is no home folder to put it into", "set HOME") from None
    text = SCRIPTS[shell].encode()
    try:
        is_there = target.is_file() and target.read_bytes() == text
        if not is_there:
            if not yes and not ui.agree(f"write {shown(target)}?"):
                raise Cancelled("nothing was written", f"podctl completion {shell} prints it")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, text)
    except OSError as e:
        raise MissingHere(f"{shown(target)} can't be written: {e.strerror}", f"podctl completion {shell}") from e
    if as_done := not is_there:
        ui.done(f"{shown(target)} written; a new {shell} completes podctl")
    else:
        ui.note(f"{shown(target)} is there already")
    if ui.as_json:
        ui.emit({"event": "completion", "shell": shell, "file": str(target), "changed": as_done})
    if left := after_install(shell, target):
        ui.hint(left)
    return 0
