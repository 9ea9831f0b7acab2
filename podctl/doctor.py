"""`podctl doctor`: looks at this machine, at an experiment and at the machine it names; changes nothing."""

import contextlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from podctl import probe, shell
from podctl.envfile import unknown_names
from podctl.errors import MissingHere, PodctlError
from podctl.experiment import Experiment
from podctl.findings import OK, Finding, Here, Need, finding_of, judge_here, judge_there
from podctl.pods import Machine, PodSpec
from podctl.project import Project
from podctl.settings import FILE, load_settings, read_env_file, refuse_tracked_keys, state_dir
from podctl.sshkeys import look_at_keys

PROGRAMS = ("tmux", "bash", "git", "ssh", "ssh-keygen", "rsync", "espeak-ng")
SOCKET_TAIL = "/0123456789abcdef.0123456789abcdef"  # a control socket's name, and what ssh hangs on while it makes one
_READ_KEYS = ("RUNPOD_API_KEY", "LAMBDA_API_KEY", "HF_TOKEN", "WANDB_API_KEY")


def check_up(project: Project, config: Path | None = None) -> Iterator[Finding]:
    """This machine, and with an experiment its file and the machine it names."""
    experiment, trouble = read(project, config) if config is not None else (None, None)
    need = need_of(experiment)
    yield from judge_here(look_here(project, need), need)
    if trouble is not None:
        yield trouble
    elif experiment is not None:
        yield Finding(OK, "here", "experiment", f"{config} has no mistake")
        if experiment.pod.provider == "ssh" and experiment.spec.machine is not None:
            yield from check_machine(experiment.spec.machine, need)
        if experiment.pod.provider == "runpod":
            from podctl.providers.runpod.checkup import check_account

            yield from check_account(with_gpu(experiment.spec, project))


def check_machine(machine: Machine, need: Need) -> Iterator[Finding]:
    """A machine that somebody has already: does it answer, and what is it like there?"""
    from podctl.host import host_of
    from podctl.providers.ssh import pod_of

    name = str(machine.address)
    try:
        host = host_of(pod_of(machine))
        answers = probe.look(host, volume=machine.volume_dir, disk=machine.disk_dir, python=machine.python)
    except PodctlError as e:
        yield finding_of(e, name, "ssh")
        return
    yield from judge_there(answers, need, name)


def read(project: Project, config: Path) -> tuple[Experiment | None, Finding | None]:
    """The experiment, or what is wrong with it."""
    from podctl.prepare import Order, checked_experiment

    try:
        return checked_experiment(Order(config), load_settings(project.root)), None
    except PodctlError as e:
        return None, finding_of(e, "here", "experiment")


def with_gpu(spec: PodSpec, project: Project) -> PodSpec:
    """With the GPU that the settings name, where the experiment names none."""
    named = load_settings(project.root).gpu_type
    return spec if spec.gpu or not named else replace(spec, gpu=(named,))


def need_of(experiment: Experiment | None) -> Need:
    """What an experiment asks for; without one, whatever may be asked for."""
    if experiment is None:
        return Need()
    machine = experiment.spec.machine if experiment.pod.provider == "ssh" else None
    return Need(
        local=experiment.pod.provider == "local",
        own_key=experiment.pod.provider == "runpod",
        maybe_local=False,
        trains=experiment.trains,
        espeak=any("prepare demo" in stage.run for stage in experiment.prep),
        key=machine.address.key if machine else "",
        python=machine.python if machine else "",
    )


def look_here(project: Project, need: Need) -> Here:
    """See what there is; nothing is changed, nothing but this machine is asked."""
    from podctl.providers.local import local_python

    programs = {name: told for name in PROGRAMS if (told := _version_of(name))}
    python = local_python()
    has_torch = _has_torch(python) if need.trains and (need.local or need.maybe_local) else None
    runs, torn, ledger_trouble = _ledger()
    where, trouble, free_kb = _state()
    in_file, env_trouble = _env_file(project)
    env_path = project.root / FILE
    try:
        keys = look_at_keys(Path.home())
    except RuntimeError:
        keys = None
    return Here(
        programs=programs,
        hints={name: shell.install_hint(name) for name in PROGRAMS if name not in programs},
        shares=why_not_shared() if "ssh" in programs else "",
        trainer_python=python,
        has_torch=has_torch,
        state_dir=where,
        state_trouble=trouble,
        free_kb=free_kb,
        ledger_runs=runs,
        ledger_torn=torn,
        ledger_trouble=ledger_trouble,
        tracked=_tracked(project),
        env_mode=stat.S_IMODE(env_path.stat().st_mode) if env_path.exists() else None,
        env_trouble=env_trouble,
        slips=unknown_names(in_file),
        keys_in_file=tuple(n for n, v in in_file.items() if v and _names_a_key(n)),
        keys_in_environment=tuple(n for n in _READ_KEYS if os.environ.get(n)),
        ssh_keys=keys,
    )


def why_not_shared() -> str:
    """Why ssh could not keep a shared connection open here; "" where it can. Makes a socket and removes it."""
    asked = shell.run(["ssh", "-G", "-o", "ControlMaster=auto", "-o", "ControlPath=/tmp/x", "localhost"], timeout_s=10)
    if not asked.ok or "controlmaster" not in asked.stdout.lower():
        return "this ssh knows no ControlMaster"
    try:
        with tempfile.TemporaryDirectory(prefix="podctl-") as tmp, socket.socket(socket.AF_UNIX) as s:
            s.bind(tmp + SOCKET_TAIL)
            s.listen()
    except OSError as e:
        return f"no socket in {tempfile.gettempdir()}: {e.strerror or e}"
    return ""


def _version_of(program: str) -> str:
    """A program's word about itself, "" where there is none that runs."""
    if not shell.found(program):
        return ""
    flag = {"tmux": "-V", "ssh": "-V"}.get(program, "--version")
    if program == "ssh-keygen":
        return program  # it has no such flag
    with contextlib.suppress(MissingHere):
        told = shell.run([program, flag], timeout_s=10)
        lines = (told.stdout.strip() or told.stderr.strip()).splitlines()
        return re.split(r",? +protocol|, OpenSSL|, LibreSSL| \(", " ".join(lines[0].split()))[0] if lines else program
    return ""


def _has_torch(python: str) -> bool | None:
    with contextlib.suppress(MissingHere):
        told = shell.run([python, "-c", "import importlib.util as u; print(u.find_spec('torch') is not None)"])
        return told.stdout.strip() == "True" if told.ok else None
    return None


def _ledger() -> tuple[int, int, str]:
    """Runs, lines that can't be read, and what is wrong with the file."""
    from podctl.runs import open_ledger

    try:
        ledger = open_ledger()
        runs = len(ledger.runs())
        whole = sum(1 for _ in ledger.events())
        lines = sum(1 for line in ledger.path.read_bytes().split(b"\n") if line) if ledger.path.exists() else 0
    except PodctlError as e:
        return 0, 0, e.message
    return runs, lines - whole, ""


def _state() -> tuple[str, str, int]:
    """The state directory, what is wrong with it, and the room on its disk in kB."""
    try:
        path = state_dir()
        above = path
        while not os.path.lexists(above):
            above = above.parent
        if not above.is_dir():
            return str(path), f"{above} is no folder, and runs are to be kept in {path}", 0
        if not os.access(above, os.W_OK | os.X_OK):
            return str(path), f"{above} is not yours to write, and runs are to be kept in {path}", 0
        return str(path), "", shutil.disk_usage(above).free // 1024
    except PodctlError as e:
        return "", e.message, 0
    except OSError as e:
        return "", f"{e.filename}: {e.strerror}", 0


def _env_file(project: Project) -> tuple[dict[str, str], str]:
    try:
        return read_env_file(project.root / FILE), ""
    except PodctlError as e:
        return {}, e.message


def _tracked(project: Project) -> str:
    try:
        refuse_tracked_keys(project.root)
    except PodctlError as e:
        return f"{e.message}\n{e.hint}"
    return ""


def _names_a_key(name: str) -> bool:
    return bool(re.search(r"(TOKEN|KEY|SECRET|PASSWORD)", name.upper()))
