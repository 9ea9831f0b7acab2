"""Steps 1 to 5 of a train: from what was typed to a plan. Decides everything, starts nothing.

Every mistake is found here, at once, while it is free.
"""

import contextlib
import importlib.util
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from podctl import ledger as events
from podctl import runs, shell, source
from podctl.books import now_at
from podctl.boot import make_boot
from podctl.choosing import choose
from podctl.errors import BadInput, Busy, MissingHere, NoRights
from podctl.experiment import Experiment, Hold, bad_file, read_experiment, seconds_of
from podctl.plan import Choice, make_plan, without_effect
from podctl.podname import make_pod_name, parse_pod_name
from podctl.pods import Balance, Plan, PodSpec, Run
from podctl.project import Project, find_project, working_dir
from podctl.providers.base import Provider, provider_named
from podctl.providers.local import local_python
from podctl.rent import Wish
from podctl.settings import Settings, load_settings, refuse_tracked_keys, state_dir
from podctl.trainer_check import check_training
from podctl.yamls import to_yaml
from remote.clock import Clock
from remote.mistakes import Mistake

BOOT_S = 1800.0  # that a pod may need beyond its hours: until it runs, and for its results to be fetched


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
    unguarded: bool = False
    podctl: str = "podctl"  # as a person can type it
    purpose: Mapping[str, Any] = field(default_factory=dict)  # of a run that evaluates another: podctl/apply.py
    on_pod: str = ""  # the rented pod, switched off, whose disk alone has what the run needs


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
    unguarded: bool = False  # a pod that nothing on it could end is taken all the same
    balance: Balance | None = None  # of the account, where its provider tells it
    purpose: Mapping[str, Any] = field(default_factory=dict)  # of a run that evaluates another, for the ledger
    on_pod: str = ""  # the pod that it needs, if it is a certain one

    @property
    def endings(self) -> dict[str, Any]:
        """What becomes of a rented pod: `on_success` and `on_failure`, each stop, terminate or {"hold_s": n}."""
        usual = "terminate" if self.spec.volume else "stop"  # as safe on a volume, and cheaper
        given = {"on_success": self.experiment.pod.on_success, "on_failure": self.experiment.pod.on_failure}
        return {k: {"hold_s": seconds_of(v.hold)} if isinstance(v, Hold) else v or usual for k, v in given.items()}

    @property
    def wish(self) -> Wish:
        """The pod that is to be rented. Raises MissingHere where there can be no key for it."""
        from podctl.ownkey import own_key

        before = self.choice.resumes
        guard = self.experiment.pod.guard
        end = "terminate" if self.spec.volume else "stop"
        _, public = own_key()
        return Wish(
            run_id=self.plan.run_id,
            pod_name=self.plan.pod_name,
            offers=self.plan.offers,
            spec=self.spec,
            boot=make_boot(public, grace_s=guard.boot_grace_s, end=end, run_id=self.plan.run_id),
            known_pod=before.pod if before and not self.is_elsewhere(before) else self.on_pod,
            may_exist=before is not None or bool(self.on_pod),
            asked_at=before.last_at if before and before.last_event == events.INTENT else None,
        )

    def is_elsewhere(self, run: Run) -> bool:
        return run.provider != self.provider.name


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
    provider = provider_named(experiment.pod.provider, project.root)
    refuse_what_is_missing(experiment)
    lineage = experiment.name + ("-debug" if order.debug else "")
    held = contextlib.nullcontext() if look_only else events.starting(state_dir(), project.id, lineage)
    with held:
        snap = source.snapshot(project, exclude=state_dir())
        pod, spec = experiment.pod, experiment.spec
        choice = choose(
            experiment,
            provider,
            project,
            lineage,
            clock,
            token,
            force=order.force_restart,
            podctl=order.podctl,
            evaluates=bool(order.purpose),
        )
        if choice.resumes is None and not order.force_restart and provider.can.rents:
            refuse_unknown_pods(provider, lineage, settings.owner, order)
        if not spec.gpu and settings.gpu_type:
            spec = replace(spec, gpu=(settings.gpu_type,))
        offers = provider.offers(spec)
        name = pod_name(choice, settings.owner, provider, pod.max_hours, now_at(provider, clock))
        plan = make_plan(choice, name, offers, pod.max_hours, pod.max_usd)
        balance = checked_balance(provider, plan)
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
            order.unguarded,
            balance,
            order.purpose,
            order.on_pod,
        )


def pod_name(choice: Choice, owner: str, provider: Provider, max_hours: float, now: float) -> str:
    """A rented one says until when it may live, so that any laptop can tell a forgotten one."""
    if not provider.can.rents:
        return make_pod_name(owner, choice.run_id)
    attempt = 1 + (choice.resumes.attempts if choice.resumes else 0)
    return make_pod_name(owner, choice.run_id, attempt=attempt, until=now + max_hours * 3600 + BOOT_S)


def refuse_unknown_pods(provider: Provider, lineage: str, owner: str, order: Order) -> None:
    """A pod of this person and name that the ledger does not know: it was lost, or another laptop's. Raises Busy."""
    known = runs.open_ledger().runs()
    for pod in provider.list():
        name = parse_pod_name(pod.name)
        is_ours = name is not None and name.owner == owner and name.is_of_lineage(lineage)
        if name is None or not is_ours or pod.state == "gone" or any(name.is_of(run_id) for run_id in known):
            continue
        raise Busy(
            f"{pod.name} ({pod.id}) is {pod.state}, for a run of {lineage} that is not in this machine's ledger",
            f"{order.podctl} recover --config {order.config} brings its run back, {order.podctl} down {pod.id} gives "
            "it back; --force-restart rents another",
        )


def checked_balance(provider: Provider, plan: Plan) -> Balance | None:
    """What the account has, where that is told. Raises NoRights where it does not last for an hour."""
    ask = getattr(provider, "balance", None)
    balance: Balance | None = ask() if ask is not None and provider.can.balance else None
    cheapest = min((o.usd_per_hour for o in plan.offers), default=0.0)
    if balance is not None and balance.usd < cheapest:
        raise NoRights(
            f"the account holds ${balance.usd:,.2f}, an hour costs ${cheapest:,.2f}",
            f"put money on it at {provider.name}, or ask for a cheaper GPU",
        )
    return balance


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


def _has_torch(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("torch") is not None
    look_up = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    return shell.run([python, "-c", look_up]).ok
