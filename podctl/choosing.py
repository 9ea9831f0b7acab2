"""Which run a `train` or `resume` means, asked where the older ones are, or of what is known of them here."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from podctl import runs
from podctl.errors import BadInput, Busy, PodGone
from podctl.experiment import Experiment
from podctl.facts import gather
from podctl.host import Host, host_of
from podctl.ledger import Ledger, newest
from podctl.plan import NEVER_STARTED, RESUMABLE, Choice, choose_run, make_run_id
from podctl.pods import Run
from podctl.project import Project
from podctl.providers.base import Provider
from podctl.trainer_check import check_training
from podctl.yamls import read_yaml
from remote.clock import Clock
from remote.files import read_json
from remote.rundir import SUCCEEDED


def choose(
    experiment: Experiment,
    provider: Provider,
    project: Project,
    lineage: str,
    clock: Clock,
    token: Callable[[], str],
    *,
    force: bool,
    podctl: str,
    evaluates: bool = False,
) -> Choice:
    """Is it a new run, or does an older one go on? Trainings follow trainings, and what `evaluates` a run follows its
    like. Raises Busy, BadInput, Unreachable."""
    alike = [r for r in runs.open_ledger().runs().values() if bool(r.of) == evaluates]
    before = newest(alike, project.id, lineage)
    new_id = make_run_id(lineage, clock.now(), token())
    state, differences = "", []
    if before is not None and runs.is_gone(before):
        return Choice(new_id, because=f"{before.id} is gone with its volume")
    if before is not None and before.is_rented:
        state, host = standing(before, clock.now())
        if not force:
            refuse_unfetched(before, state, podctl)
            differences = changes_since(before, host, experiment)
            if state in RESUMABLE and not same_volume(before, provider, experiment):
                there = before.detail.get("wanted_volume") or before.pod_name
                differences = [f"pod.volume: it lies on {there} at {before.provider}, this names another", *differences]
    elif before is not None and not before.pod:
        state = NEVER_STARTED
    elif before is not None:
        moved = moved_run(before, provider, experiment) if before.launched_at else None
        before = moved or before
        host = runs.host_for(before)
        state = runs.look(before, host, clock.now()).state
        if not force:
            differences = changes_since(before, host, experiment)
            if moved is None and state in RESUMABLE and not same_machine(before, provider, experiment):
                differences = [f"pod: it lies on {host.name}, and this names another machine", *differences]
    return choose_run(before, state, differences, force=force, new_id=new_id, podctl=podctl, anew=evaluates)


def refuse_unfetched(run: Run, state: str, podctl: str) -> None:
    """A success on a rented pod that nobody has looked at since: its results come first. Raises Busy."""
    if state != SUCCEEDED or run.gone_at is not None:
        return
    told = read_json(runs.results_dir(run) / runs.run_dir(run).receipt.name)
    if not isinstance(told, dict) or told.get("state") != SUCCEEDED:
        raise Busy(
            f"{run.id} succeeded, and its results are not here yet",
            f"{podctl} attach {run.id} fetches them and gives its pod back; then again for a new run",
        )


def standing(run: Run, now: float) -> tuple[str, Host | None]:
    """How a run on a rented pod is, and the way to it; where its pod is no more, what is known of it here."""
    if run.launched_at is None or not run.pod:
        return NEVER_STARTED, None
    if run.gone_at is not None:
        return runs.last_known(run, now).state, None
    host = runs.host_for(run)
    try:
        return runs.look(run, host, now).state, host
    except PodGone:
        return runs.last_known(run, now).state, None


def same_volume(run: Run, provider: Provider, experiment: Experiment) -> bool:
    """Does what the run has lie where this experiment would look for it?"""
    wanted = experiment.pod.volume or ""
    there = {str(run.detail.get("wanted_volume") or ""), str(run.detail.get("volume") or "")}
    return run.provider == provider.name and (wanted in there if wanted else not run.detail.get("volume"))


def experiment_of(run: Run, ledger: Ledger, here: Project) -> bytes:
    """A run's own experiment file, to go on with. Raises BadInput where it is not the one that would go on."""
    if run.project != here.id:
        root = run.detail.get("project_root", "")
        raise BadInput(f"{run.id} is of another project, whose code it needs", f"cd {root}, then again")
    last = newest([r for r in ledger.runs().values() if bool(r.of) == bool(run.of)], run.project, run.name)
    if last is not None and last.id != run.id:
        raise BadInput(f"{last.id} is newer than {run.id}", f"podctl resume {last.id}; an older run stays as it is")
    if run.is_rented or not run.pod:
        state, host = standing(run, 0.0)
    else:
        host = runs.host_for(run)
        state = runs.look(run, host, 0.0).state
    if state == SUCCEEDED:
        raise BadInput(f"{run.id} succeeded: there is nothing to resume", "podctl train --config FILE begins a new run")
    text = experiment_text(run, host)
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


def experiment_text(run: Run, host: Host | None) -> bytes | None:
    """A run's own experiment file, from where it lies, or the copy that was kept here."""
    if host is not None and run.detail.get("run_dir"):
        return host.read(PurePosixPath(runs.run_dir(run).experiment))
    try:
        return (runs.results_dir(run) / "experiment.yaml").read_bytes()
    except OSError:
        return None


def changes_since(run: Run, host: Host | None, experiment: Experiment) -> list[str]:
    """What differs from the run's own experiment beyond what a resume allows."""
    old = experiment_text(run, host)
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
