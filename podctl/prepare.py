"""Steps 1 to 5 of a train: from what was typed to a plan. Decides everything, starts nothing.

Every mistake is found here, at once, while it is free.
"""

import contextlib
import importlib.util
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from podctl import ledger as events
from podctl import runs, shell, source
from podctl.errors import BadInput, MissingHere
from podctl.experiment import Experiment, bad_file, read_experiment
from podctl.facts import gather
from podctl.host import Host, host_of
from podctl.ledger import Ledger, newest
from podctl.plan import RESUMABLE, Choice, choose_run, make_plan, make_run_id, without_effect
from podctl.pods import Plan, PodSpec, Run
from podctl.project import Project, find_project, working_dir
from podctl.providers.base import Provider, provider_named
from podctl.providers.local import local_python
from podctl.settings import Settings, load_settings, refuse_tracked_keys, state_dir
from podctl.trainer_check import check_training
from podctl.yamls import read_yaml, to_yaml
from remote.clock import Clock
from remote.mistakes import Mistake
from remote.rundir import SUCCEEDED


@dataclass(frozen=True)
class Order:
    """What was typed."""

    config: Path
    sets: tuple[str, ...] = ()
    local: bool = False
    debug: bool = False
    force_restart: bool = False
    queue: bool = False
    beside: bool = False
    podctl: str = "podctl"  # as a person can type it


@dataclass(frozen=True)
class Prepared:
    """All that is decided; nothing is started yet."""

    experiment: Experiment
    spec: PodSpec  # the experiment's, with what the settings fill in
    settings: Settings
    project: Project
    snapshot: source.Snapshot
    provider: Provider
    lineage: str
    debug: bool
    queue: bool  # waits until the runs before it on the same machine have ended
    beside: bool  # may share the machine with others
    choice: Choice
    plan: Plan
    idle_keys: Mapping[str, str]


@contextlib.contextmanager
def prepare(
    order: Order, clock: Clock, token: Callable[[], str] = lambda: secrets.token_hex(2), *, look_only: bool = False
) -> Iterator[Prepared]:
    """Steps 1 to 5. While the block lasts nobody else decides about this name; `look_only` takes no such lock.

    Raises BadInput with every mistake, Busy, MissingHere.
    """
    project = find_project(working_dir() / order.config.parent, working_dir())
    settings = load_settings(project.root)
    refuse_tracked_keys(project.root)
    experiment = checked_experiment(order, settings)
    provider = provider_named(experiment.pod.provider)
    refuse_what_is_missing(experiment)
    lineage = experiment.name + ("-debug" if order.debug else "")
    held = contextlib.nullcontext() if look_only else events.starting(state_dir(), project.id, lineage)
    with held:
        snap = source.snapshot(project, exclude=state_dir())
        pod, spec = experiment.pod, experiment.spec
        choice = choose(order, experiment, provider, project, lineage, clock, token)
        if not spec.gpu and settings.gpu_type:
            spec = replace(spec, gpu=(settings.gpu_type,))
        offers = provider.offers(spec)
        plan = make_plan(choice, settings.owner, offers, pod.max_hours, pod.max_usd)
        idle = without_effect(provider.name, dict.fromkeys(sorted(pod.model_fields_set)))
        yield Prepared(
            experiment,
            spec,
            settings,
            project,
            snap,
            provider,
            lineage,
            order.debug,
            order.queue,
            order.beside,
            choice,
            plan,
            idle,
        )


def checked_experiment(order: Order, settings: Settings) -> Experiment:
    """Steps 1 and 2: both halves of the file, and every mistake in it at once. Raises BadInput."""
    experiment, document, mistakes = read_experiment(order.config, sets=order.sets, local=order.local)
    if experiment is not None:
        mistakes += [
            Mistake("pod.secrets", f"{name} is not set on this machine: export {name}=… or put it into .runpod.env")
            for name in experiment.pod.secrets
            if settings.secret(name) is None
        ]
        mistakes += provider_mistakes(experiment.pod.provider)
    if document.get("train") is not None:
        mistakes += check_training(to_yaml(document)).mistakes
    if mistakes or experiment is None:
        raise bad_file(order.config, mistakes)
    return experiment


def provider_mistakes(name: str) -> list[Mistake]:
    try:
        provider_named(name)
    except BadInput as e:
        return [Mistake("pod.provider", f"{e.message}: {e.hint.removeprefix('pod.provider is ')}")]
    return []


def refuse_what_is_missing(experiment: Experiment) -> None:
    """What a run on this machine needs of it. Raises MissingHere with what installs it."""
    if experiment.pod.provider != "local":
        return
    for program in ("tmux", "bash"):  # a run lives in tmux, so that it outlives this command
        if not shell.found(program):
            raise MissingHere(f"{program} is not installed, and a run needs it", shell.install_hint(program))
    if not shell.found(local_python()):  # before anything is started: it is asked about every run
        raise MissingHere(f"PODCTL_PYTHON is {local_python()}, which is not a program", "correct or unset it")
    if experiment.trains and not _has_torch(local_python()):
        raise MissingHere(f"torch is not installed beside {local_python()}", "pip install 'podctl[train]'")


def choose(
    order: Order,
    experiment: Experiment,
    provider: Provider,
    project: Project,
    lineage: str,
    clock: Clock,
    token: Callable[[], str],
) -> Choice:
    """Is it a new run, or does an older one go on? Raises Busy, BadInput, Unreachable."""
    before = newest(runs.open_ledger().runs().values(), project.id, lineage)
    new_id = make_run_id(lineage, clock.now(), token())
    state, differences = "", []
    if before is not None and runs.is_gone(before):
        return Choice(new_id, because=f"{before.id} is gone with its volume")
    if before is not None:
        moved = moved_run(before, provider, experiment) if before.launched_at else None
        before = moved or before
        host = runs.host_for(before)
        state = runs.look(before, host, clock.now()).state
        if not order.force_restart:
            differences = changes_since(before, host, experiment)
            if moved is None and state in RESUMABLE and not same_machine(before, provider, experiment):
                differences = [f"pod: it lies on {host.name}, and this names another machine", *differences]
    return choose_run(before, state, differences, force=order.force_restart, new_id=new_id, podctl=order.podctl)


def experiment_of(run: Run, ledger: Ledger, here: Project) -> bytes:
    """A run's own experiment file, to go on with. Raises BadInput where it is not the one that would go on."""
    if run.project != here.id:
        root = run.detail.get("project_root", "")
        raise BadInput(f"{run.id} is of another project, whose code it needs", f"cd {root}, then again")
    last = newest(ledger.runs().values(), run.project, run.name)
    if last is not None and last.id != run.id:
        raise BadInput(f"{last.id} is newer than {run.id}", f"podctl resume {last.id}; an older run stays as it is")
    host = runs.host_for(run)
    if runs.look(run, host, 0.0).state == SUCCEEDED:
        raise BadInput(f"{run.id} succeeded: there is nothing to resume", "podctl train --config FILE begins a new run")
    text = host.read(PurePosixPath(runs.run_dir(run).experiment))
    if text is None:
        raise BadInput(f"{run.id} never began", "podctl train --config FILE starts it")
    return text


def same_machine(run: Run, provider: Provider, experiment: Experiment) -> bool:
    """Would a run of this experiment meet the older run's volume?"""
    if run.provider != provider.name:
        return False
    machine = experiment.spec.machine
    if machine is None or run.provider != "ssh":
        return True
    from podctl.providers.ssh import machine_of

    then = machine_of(run.pod)
    return (then.address.host, then.volume_dir) == (machine.address.host, machine.volume_dir)


def moved_run(run: Run, provider: Provider, experiment: Experiment) -> Run | None:
    """The run at the machine's new address, where its directory is found there: addresses change, volumes stay."""
    machine = experiment.spec.machine
    if machine is None or run.provider != "ssh" or provider.name != "ssh":
        return None
    from podctl.providers.ssh import id_of, pod_of

    pod = pod_of(machine)
    if run.pod == id_of(machine):
        return None
    facts = gather(host_of(pod), pod, run_id=run.id)
    if not facts.has_run:
        return None
    return replace(run, pod=pod.id, detail={**run.detail, "run_dir": str(facts.volume / "runs" / run.id)})


def changes_since(run: Run, host: Host, experiment: Experiment) -> list[str]:
    """What differs from the run's own experiment beyond what a resume allows."""
    old = host.read(PurePosixPath(runs.run_dir(run).experiment)) if run.detail.get("run_dir") else None
    if old is None:
        return []
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        path = Path(tmp, "experiment.yaml")
        path.write_bytes(old)
        document, _ = read_yaml(path)
    then = (document.get("pod") or {}).get("command")
    now = experiment.document["pod"].get("command")
    if then != now:
        return [f"pod.command: {then} → {now}"]
    if not experiment.trains:
        return []
    return list(check_training(experiment.yaml, against=old.decode("utf-8")).changes)


def _has_torch(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("torch") is not None
    look_up = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    return shell.run([python, "-c", look_up]).ok
