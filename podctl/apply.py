"""A trained model meets other audio: an evaluation or a prediction is a run of its own, of another run (docs/adr/0028).

It goes the ten steps of a train, on the machine and the volume of the run that it is of, with `pod.command` in place of
a training. Here stands what is decided before them.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podctl import runs
from podctl.choosing import experiment_text, standing
from podctl.errors import BadInput, Busy, PodctlError
from podctl.handing import PREDICTIONS
from podctl.host import Host
from podctl.pods import Run
from podctl.project import Project
from podctl.runs import provider_of, results_dir, run_dir
from podctl.trainer_check import check_training
from podctl.ui import shown
from podctl.yamls import apply_sets, read_yaml, to_yaml
from remote.rundir import SUCCEEDED, Volume

EVALUATE, PREDICT = "evaluate", "predict"
SUFFIX = {EVALUATE: "-eval", PREDICT: "-predict"}
NAME_MAX = 30
MAX_HOURS = 2.0  # unless --set says otherwise; a training's own, where that is less
OURS = ("pod", "prep", "name")  # sections of the experiment that --set changes; the rest is the trainer's
SAID_BY_US = ("--run", "--model", "--out", "--rows", "--check", "--format")
# where the volume is mounted is known there alone, so a shell fills it in; what a person typed stays a word
OUT = {EVALUATE: "reports", PREDICT: f"reports/{PREDICTIONS}"}
SCRIPT = (
    'mkdir -p "$PODCTL_RUN_DIR/reports" && '
    'exec trainer "$0" --run "$PODCTL_VOLUME/runs/$1" --out "$PODCTL_RUN_DIR/$2" "${@:3}"'
)
_HAS_CHECKPOINT = 'for mark in "$1"/step-*/COMPLETE; do [ -f "$mark" ] && exit 0; done; exit 3'
_WHICH_ARE_THERE = 'cd -- "$1" 2>/dev/null || exit 0; shift; for f; do [ -e "./$f" ] && printf "%s\\0" "$f"; done; true'


@dataclass(frozen=True)
class Subject:
    """The run that is to be evaluated: how it is, its experiment, and the way to its files where one is open."""

    run: Run
    state: str
    experiment: bytes
    host: Host | None = None
    on_pod: str = ""  # the pod, switched off, on whose disk alone its checkpoints are

    @property
    def is_going(self) -> bool:
        return self.state in ("starting", "running", "stopping")

    def look(self, names: Sequence[str]) -> Collection[str]:
        """Which of these lie below the volume's data/. Raises PodctlError, Unreachable."""
        assert self.host is not None
        data = Volume(run_dir(self.run).root.parent.parent).data
        result = self.host.run(["sh", "-c", _WHICH_ARE_THERE, "sh", str(data), *names])
        return set(filter(None, result.stdout.split("\0")))


@dataclass(frozen=True)
class Wanted:
    """What was asked for: names as the job has to be told, the trainer's own options, and `--set` of either side."""

    does: str
    inputs: Sequence[str] = ()
    options: Sequence[str] = ()
    sets: Sequence[str] = ()
    format: str = ""  # what a submission must be like

    @property
    def pod_sets(self) -> tuple[str, ...]:
        return tuple(s for s in self.sets if _section(s) in OURS)

    @property
    def recipe_sets(self) -> tuple[str, ...]:
        """Of what the model was trained with, as `eval.decode.beams=5`."""
        return tuple(s.removeprefix("train.") for s in self.sets if _section(s) not in OURS)


def _section(text: str) -> str:
    return text.partition("=")[0].split(".")[0].strip()


def find_subject(run: Run, project: Project, now: float, podctl: str = "podctl") -> Subject:
    """Asks the run's machine, where that is on. Raises BadInput, Busy, PodctlError where there is nothing to evaluate,
    or no way to it, Unreachable."""
    if run.of:
        raise BadInput(f"{run.id} is no training: it {run.does}s {run.of}", f"{podctl} {run.does} {run.of}")
    if run.project != project.id:
        root = run.detail.get("project_root", "")
        raise BadInput(f"{run.id} is of another project, whose code it needs", f"cd {root}, then again")
    if run.launched_at is None or not run.pod:
        raise BadInput(f"{run.id} never began: there is no model", f"{podctl} train with the same file begins it")
    host: Host | None
    if run.is_rented:
        state, host = standing(run, now)
    else:
        host = runs.host_for(run)
        state = runs.look(run, host, now).state
    text = experiment_text(run, host)
    if text is None:
        raise BadInput(
            f"the experiment file of {run.id} is not on this machine",
            f"{podctl} up --config FILE for a pod with its volume, {podctl} pull {run.id} experiment.yaml, then again",
        )
    on_pod = ""
    if run.is_rented and not (run.detail.get("volume") or run.detail.get("wanted_volume")):
        on_pod = _pod_with_its_data(run, host, podctl)
    if host is not None and not has_checkpoint(run, host):
        raise no_checkpoint(run, podctl)
    return Subject(run, state, text, host, on_pod)


def has_checkpoint(run: Run, host: Host) -> bool:
    """Is there a complete one? Raises Unreachable."""
    return host.run(["sh", "-c", _HAS_CHECKPOINT, "sh", str(run_dir(run).checkpoints)]).ok


def no_checkpoint(run: Run, podctl: str) -> PodctlError:
    return BadInput(
        f"{run.id} holds no complete checkpoint: there is no model yet",
        f"{podctl} status {run.id} shows how far it is",
    )


def tells_of_a_model(subject: Subject) -> bool:
    """Whether it is known, of a run whose pod is off, that it has a checkpoint."""
    if subject.host is not None or subject.state == SUCCEEDED:
        return True
    home = results_dir(subject.run)
    return (home / run_dir(subject.run).best.name).exists() or any(home.glob("checkpoints/step-*/COMPLETE"))


def _pod_with_its_data(run: Run, host: Host | None, podctl: str) -> str:
    """The pod that must be switched on, of a run without a network volume. Raises PodctlError, Busy."""
    state = "running" if host is not None else provider_of(run).get(run.pod).state
    if state == "gone":
        raise PodctlError(
            f"the pod of {run.id} is gone, and its checkpoints with it: it had no network volume",
            f"what came home is in {shown(results_dir(run))}; with pod.volume a model outlives its pod",
        )
    if state != "stopped":
        command = shlex.quote(f'trainer evaluate --run "$PODCTL_RUN_DIR" --out /tmp/{run.id}')
        raise Busy(
            f"the checkpoints of {run.id} are on its pod's own disk, and the pod is {state}",
            f"{podctl} exec {run.id} -- sh -c {command} runs it there; or again once it is switched off",
        )
    return run.pod


def purpose_of(run: Run) -> dict[str, Any]:
    """What the ledger keeps of why a run is there, {} for one that stands by itself."""
    return (
        {k: run.detail[k] for k in ("of", "does", "to", "overwrite", "asked_at") if k in run.detail} if run.of else {}
    )


def purpose(
    subject: Subject, wanted: Wanted, to: Path | None = None, *, overwrite: bool = False, asked_at: float = 0.0
) -> dict[str, Any]:
    """`of` which run it is, what it `does`, where predictions go `to` on this machine, and since when that is known."""
    told: dict[str, Any] = {"of": subject.run.id, "does": wanted.does}
    return told | ({"to": str(to), "overwrite": overwrite, "asked_at": asked_at} if to is not None else {})


def experiment_for(subject: Subject, wanted: Wanted, folder: Path) -> str:
    """The experiment of the evaluation: the run's own machine, and a command in place of its training.

    `folder` is for a moment's use. Raises BadInput for a `--set` that the recipe does not take, or that names another
    machine.
    """
    path = folder / "trained.yaml"
    path.write_bytes(subject.experiment)
    document, _ = read_yaml(path)
    _refuse_other_recipe(document, wanted)
    left_out = ("command", "on_success", "on_failure")  # those are of a training
    pod = {k: v for k, v in (document.get("pod") or {}).items() if k not in left_out}
    pod["max_hours"] = min(float(pod.get("max_hours") or MAX_HOURS), MAX_HOURS)
    pod["command"] = command_of(subject.run.id, wanted)
    made = {"name": name_of(subject.run, wanted.does), "pod": pod}
    _refuse_other_machine(subject, pod, made, wanted)
    return to_yaml(made)


def command_of(run_id: str, wanted: Wanted) -> list[str]:
    """argv of the job. Raises BadInput for an option that is not the person's to say."""
    shape = ["--format", wanted.format] if wanted.format else []
    for option in wanted.options:
        begun = option.partition("=")[0]
        if len(begun) > 2 and any(said.startswith(begun) for said in SAID_BY_US):
            raise BadInput(f"{begun} is said by podctl itself", "leave it out; podctl pull fetches what a run has")
    sets = [word for text in wanted.recipe_sets for word in ("--set", text)]
    inputs = ["--", *dict.fromkeys(wanted.inputs)] if wanted.inputs else []
    return ["bash", "-c", SCRIPT, wanted.does, run_id, OUT[wanted.does], *shape, *wanted.options, *sets, *inputs]


def refuse_odd_inputs(does: str, names: Sequence[str]) -> None:
    """What the trainer would refuse once a pod is paid for. Raises BadInput."""
    others = [n for n in names if not n.endswith(".jsonl")]
    if others and does == EVALUATE:
        raise BadInput(
            f"{shown(others[0])} is no manifest (.jsonl): only what was transcribed can be scored",
            "podctl predict transcribes sound files",
        )
    if others and len(others) < len(names):
        raise BadInput("manifests and sound files are two predictions", "name only manifests (.jsonl), or only sounds")


def name_of(run: Run, does: str) -> str:
    """`tiny-eval`: a lineage beside the training's own."""
    suffix = SUFFIX[does]
    return run.name[: NAME_MAX - len(suffix)].rstrip("-") + suffix


def _refuse_other_recipe(document: Mapping[str, Any], wanted: Wanted) -> None:
    """A key that the recipe does not have is found here, while it is free."""
    if not wanted.recipe_sets or document.get("train") is None:
        return
    changed: dict[str, Any] = {"name": document.get("name"), "pod": document.get("pod"), "train": document["train"]}
    mistakes = apply_sets(changed, [f"train.{s}" for s in wanted.recipe_sets])
    mistakes = mistakes or list(check_training(to_yaml(changed)).mistakes)
    if mistakes:
        raise BadInput(
            "the model's recipe takes no such --set",
            "pod.… is the machine's, all else the recipe's, as eval.decode.beams=5",
            tuple(str(m) for m in mistakes),
        )


def _refuse_other_machine(subject: Subject, pod: Mapping[str, Any], made: dict[str, Any], wanted: Wanted) -> None:
    """A --set that leads away from where the run's checkpoints lie."""
    then = {k: pod.get(k) for k in ("provider", "volume")}
    changed = {**made, "pod": dict(pod)}
    if apply_sets(changed, wanted.pod_sets):
        return  # it is told with all other mistakes
    now = {k: changed["pod"].get(k) for k in then}
    if subject.run.detail.get("volume") == now["volume"]:  # by its id
        now["volume"] = then["volume"]
    if now != then:
        where = f"{then['provider'] or 'local'}" + (f", volume {then['volume']}" if then["volume"] else "")
        raise BadInput(
            f"{subject.run.id} lies at {where}: its model can't be used elsewhere",
            f"leave that --set out; podctl pull {subject.run.id} --checkpoints brings it here",
        )
