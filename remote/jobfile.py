"""What the runner is given: the job, and its secrets. Checked whole, so that a mistake is told before work begins."""

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping

from remote.files import StrPath, read_json
from remote.rundir import EPOCH_ENV, RUN_ENV, SCHEMA, VOLUME_ENV, Job, RunDir, Volume

SECRETS_ENV = "PODCTL_SECRETS"  # path of a 0600 file on tmpfs: {"NAME": "value"}


class BadJob(Exception):
    """The job cannot be run as it is written; says what is wrong, and who writes it."""


def read_job(run: RunDir) -> Job:
    """The job of a run directory. Raises BadJob."""
    if not run.job.exists():
        raise BadJob("there is no job.json in {}: start the run with podctl train".format(run))
    value = read_json(run.job)
    if not isinstance(value, dict):
        raise BadJob("{} is not a JSON object: start the run anew with podctl train".format(run.job))
    if isinstance(value.get("schema"), int) and value["schema"] > SCHEMA:
        raise BadJob(
            "job.json has schema {}, this runner reads {}: start the run anew with podctl train, "
            "which sends its own runner along".format(value["schema"], SCHEMA)
        )
    try:
        job = Job.from_json(value)
    except (TypeError, AttributeError) as e:
        raise BadJob("job.json is not complete: {}".format(str(e).replace("__init__() ", ""))) from e
    mistakes = _mistakes(job)
    if mistakes:
        raise BadJob("job.json: " + "; ".join(mistakes))
    return job


def _mistakes(job: Job) -> List[str]:
    found = []
    if not _are_texts(job.command) or not job.command:
        found.append("command must be a list of words, the first a program")
    if not isinstance(job.env, dict) or not _are_texts([*job.env, *job.env.values()]):
        found.append("env must map names to texts")
    elif any(not k or "=" in k for k in job.env):
        found.append("env has a name that is empty or holds '='")
    for name in ("source_dir", "tool_dir"):
        value = getattr(job, name)
        if not isinstance(value, str) or "\0" in value or not os.path.isdir(value):
            found.append("{} is {!r}, which is not a folder on this machine".format(name, value))
    if isinstance(job.tool_dir, str) and os.pathsep in job.tool_dir:
        found.append("tool_dir holds {!r}, so it cannot stand on a PATH".format(os.pathsep))
    for name in ("max_hours", "grace_s"):
        value = getattr(job, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            found.append("{} must be a number that is not negative".format(name))
    if job.queue not in (True, False):
        found.append("queue must be true or false")
    for i, stage in enumerate(job.prep, 1):
        if not _are_texts([stage.run]) or not _are_texts(stage.inputs) or not _are_texts(stage.outputs):
            found.append("prep {} must have run, inputs and outputs".format(i))
    return found


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, str) and "\0" not in v for v in values)


def read_secrets(environ: Mapping[str, str]) -> Dict[str, str]:
    """Names and values for the job's environment. Raises BadJob, which never holds a value."""
    path = environ.get(SECRETS_ENV, "")
    if not path:
        return {}
    if not os.path.exists(path):
        raise BadJob("the secrets file {} is gone, as after a restart: podctl train sends it again".format(path))
    value = read_json(path)
    names_are_texts = isinstance(value, dict) and all(isinstance(v, str) and "\0" not in v for v in value.values())
    if not names_are_texts or any(not k or "=" in k or "\0" in k for k in value):
        raise BadJob("the secrets file {} is not a JSON object of names and texts".format(path))
    return dict(value)


def forget_secrets(environ: Mapping[str, str]) -> None:
    """Remove the file: it is read, the job has its values, and the next attempt is sent its own."""
    path = environ.get(SECRETS_ENV, "")
    if path:
        try:
            os.unlink(path)
        except OSError:
            pass  # not ours to remove; it lies in memory, for its owner alone


def environment_of(
    job: Job,
    run: RunDir,
    volume: Volume,
    epoch: int,
    python: str,
    inherited: Mapping[str, str],
    secrets: Mapping[str, str],
) -> Dict[str, str]:
    """The job's whole environment. Ours win over the caller's, and a user's PYTHONPATH comes after the tool's."""
    env = dict(inherited)
    env.update(job.env)
    env.update(secrets)
    env.pop(SECRETS_ENV, None)
    tool = Path(job.tool_dir)
    path = [str(tool / "remote" / "bin"), os.path.dirname(python), env.get("PATH") or os.defpath]
    env["PATH"] = os.pathsep.join(path)
    # the machine's own PYTHONPATH is left out: it would differ from pod to pod
    env["PYTHONPATH"] = os.pathsep.join([job.tool_dir, *filter(None, [job.env.get("PYTHONPATH")])])
    env.update({VOLUME_ENV: str(volume.root), RUN_ENV: str(run), EPOCH_ENV: str(epoch), "PODCTL_PYTHON": python})
    return env


def bare_environment(job: Job, inherited: Mapping[str, str]) -> Dict[str, str]:
    """What the environment is built with: no secrets, since packages run code of strangers while they install."""
    env = dict(inherited)
    env.update(job.env)
    for name in (SECRETS_ENV, "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        env.pop(name, None)
    return env


def secrets_are_open(path: StrPath) -> bool:
    """Whether others on this machine can read the secrets file."""
    return bool(os.stat(path).st_mode & 0o077)
