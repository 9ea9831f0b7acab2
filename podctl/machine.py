"""Which machine a command means that starts nothing: a run's, or the one that an experiment names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from podctl.errors import BadInput, PodctlError
from podctl.facts import gather, whole
from podctl.host import Host, host_of
from podctl.ledger import Ledger
from podctl.pods import Boot, Pod
from podctl.project import Project
from podctl.providers.base import provider_named
from podctl.runs import find_run, is_gone, pod_for


@dataclass(frozen=True)
class There:
    """A machine and the way to it; no `~` is left in its folders."""

    pod: Pod
    host: Host


def reach(pod: Pod) -> There:
    """One command: it answers, and its folders are whole. Raises Unreachable, PodctlError."""
    host = host_of(pod)
    return There(whole(pod, gather(host, pod)), host)


def meant_pod(ledger: Ledger, project: Project, word: str = "", config: Path | None = None) -> Pod:
    """The pod of a run (the project's newest where nothing is said), or of an experiment file. Asks no machine.

    Raises BadInput, and PodctlError where the machine is gone.
    """
    if config is not None:
        if word:
            raise BadInput("a run and an experiment file are two machines", "name one of them")
        return pod_of_experiment(config)
    run = find_run(ledger, project.id, word)
    if not run.pod:
        raise PodctlError(f"{run.id} never had a machine", "podctl train --config FILE, or name one by --config FILE")
    if is_gone(run):
        raise PodctlError(f"the machine of {run.id} is gone, and its volume with it", "podctl ps --all lists the runs")
    return pod_for(run)


def pod_of_experiment(config: Path, sets: Sequence[str] = ()) -> Pod:
    """The machine that an experiment file names, where that is one that is there without renting it."""
    from podctl.experiment import bad_file, read_experiment

    experiment, _, mistakes = read_experiment(config, sets=tuple(sets))
    if experiment is None:
        raise bad_file(config, mistakes)
    name = experiment.pod.provider
    provider = provider_named(name)
    if provider.can.rents:
        raise BadInput(
            f"{config} names no machine that is there: {name} rents one",
            f"podctl up --config {config}, then name its run",
        )
    return provider.create(experiment.name, provider.offers(experiment.spec)[0], experiment.spec, Boot())
