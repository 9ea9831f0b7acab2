"""Every file of a volume and of a run directory, and the shape of what is in them: the contract of all three packages.

One writer a file (who writes what is said at each property); everybody may read. See docs/adr/0001-run-directory.md.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from remote.files import StrPath, read_json, write_json

SCHEMA = 1
HEARTBEAT_S = 5.0
STALE_S = 60.0  # a heartbeat this old, where the machine can't be asked, means that the run is lost

VOLUME_ENV = "PODCTL_VOLUME"  # the volume's root, the only place it comes from
DISK_ENV = "PODCTL_DISK"  # a folder on the pod's local disk
RUN_ENV = "PODCTL_RUN_DIR"  # the run directory, for the job
EPOCH_ENV = "PODCTL_EPOCH"  # the fencing epoch under which the job may write

STARTING, RUNNING, STOPPING = "starting", "running", "stopping"
SUCCEEDED, FAILED, STOPPED = "succeeded", "failed", "stopped"
LOST = "lost"  # never written: a reader's conclusion
FINAL = frozenset({SUCCEEDED, FAILED, STOPPED})

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_SAVED = 0, 1, 2, 75  # what a job's exit code means


@dataclass(frozen=True)
class Status:
    """`status.json`: how the run is, by its runner, replaced every `HEARTBEAT_S`. Times are Unix seconds."""

    run_id: str
    attempt: int
    boot_id: str
    state: str
    phase: str  # environment, queue, prep, train
    pid: int  # the runner's
    started_at: float
    heartbeat_at: float
    ended_at: Optional[float] = None
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    reason: str = ""  # one sentence for a person: why it ended, or is ending
    limit: str = ""  # the limit that ended it (max_hours), if one did
    log_bytes: int = 0
    disk: str = ""  # the folder on the machine's local disk where its turn is kept
    schema: int = SCHEMA

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True)
class Progress:
    """`progress.json`: how far the training is, by the trainer's rank 0, replaced at most once a second."""

    step: int
    max_steps: int
    epoch: float
    phase: str  # load, train, evaluate, save
    phase_since: float
    last_step_at: float
    loss: Optional[float] = None
    eta_s: Optional[float] = None
    best: Optional[Dict[str, Any]] = None  # {"step": 400, "metric": "wer", "value": 0.08}
    audio_s_per_s: Optional[float] = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Stage:
    """One `prep:` stage: a shell command, what it reads and what it leaves, relative to the volume's data/."""

    run: str
    inputs: List[str]
    outputs: List[str]


@dataclass(frozen=True)
class Job:
    """`job.json`: what the runner needs, in JSON because the standard library reads no YAML. Written by podctl."""

    run_id: str
    project: str
    source_dir: str  # the copy of the user's project, on the pod's local disk: the working directory
    tool_dir: str  # holds remote/ and trainer/, on the pod's local disk
    command: List[str]  # argv, found on a PATH that begins with the environment's and the tool's own bin
    prep: List[Stage]
    env: Dict[str, str]  # no secrets: those come in a file on tmpfs
    max_hours: float  # of this attempt; the runner stops the job there
    grace_s: float = 60.0  # from the request to save until the kill
    queue: bool = False  # wait for the runs that came earlier on this machine; max_hours counts from its turn
    schema: int = SCHEMA

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Job":
        known = _only_fields(cls, value)
        known["prep"] = [Stage(**_only_fields(Stage, s)) for s in known.get("prep", [])]
        return cls(**known)


class Volume:
    """The persistent disk that outlives pods: where its runs, data and caches lie."""

    def __init__(self, root: StrPath) -> None:
        self.root = Path(root)

    @classmethod
    def from_env(cls) -> Optional["Volume"]:
        """The volume this process runs against, if any."""
        root = os.environ.get(VOLUME_ENV, "")
        return cls(root) if root else None

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def data(self) -> Path:
        """Where relative data paths resolve."""
        return self.root / "data"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def env(self) -> Path:
        """Packed Python environments, `<hash>.tar`."""
        return self.root / "env"

    @property
    def current_log(self) -> Path:
        """A link to the newest run's log."""
        return self.root / "logs" / "current.log"

    def run(self, run_id: str) -> "RunDir":
        return RunDir(self.runs / run_id)


class RunDir:
    """One run's directory on the volume: the only truth about what happened."""

    def __init__(self, root: StrPath) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    # podctl writes these, before the run starts; the receipt after it ended
    @property
    def experiment(self) -> Path:
        """The resolved experiment file: read alone, it trains the same thing again."""
        return self.root / "experiment.yaml"

    @property
    def job(self) -> Path:
        return self.root / "job.json"

    @property
    def source(self) -> Path:
        """Provenance of the code: commit, dirty files, tool version."""
        return self.root / "source.json"

    @property
    def patch(self) -> Path:
        """What the working tree had beyond the commit."""
        return self.root / "source.patch"

    @property
    def receipt(self) -> Path:
        return self.root / "receipt.json"

    # the runner writes these
    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def log(self) -> Path:
        """stdout and stderr of everything, appended over all attempts."""
        return self.root / "log"

    @property
    def env(self) -> Path:
        """The machine and the Python environment of the newest attempt."""
        return self.root / "env.json"

    @property
    def writer(self) -> Path:
        """The fencing epochs: directories 1, 2, …; the highest may write."""
        return self.root / "writer"

    # the trainer's rank 0 writes these
    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tb"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        return self.root / "best.json"

    @property
    def quarantine(self) -> Path:
        """Input that could not be used: id, reason."""
        return self.root / "quarantine.jsonl"

    @property
    def nonfinite(self) -> Path:
        """Micro-batches whose loss was not finite, a file each; every rank of the trainer writes its own."""
        return self.root / "nonfinite"

    @property
    def cut(self) -> Path:
        """How many utterances of a length fitted at once, where that could only be learnt by a new start; rank 0's."""
        return self.root / "cut.json"

    @property
    def pieces(self) -> Path:
        """What each rank held when the memory of one ran out; rank 0 joins and removes them."""
        return self.root / ".pieces"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def summary(self) -> Path:
        """The last word on the run's quality: {"headline": one line for a person, "metrics": {name: number}}."""
        return self.reports / "summary.json"

    @property
    def data_health(self) -> Path:
        """What the sets of the run are like: sizes, buckets, what was left out and why."""
        return self.reports / "data.json"

    @property
    def sounds(self) -> Path:
        """The worst utterances of its evaluations, to be listened to: FLAC files by a hash of their id."""
        return self.reports / "audio"

    @property
    def page(self) -> Path:
        """The report that a person looks at: one HTML file that needs no other."""
        return self.reports / "report.html"

    @property
    def export(self) -> Path:
        """The best model, loadable without this project."""
        return self.root / "export"

    # the watchdog writes these
    @property
    def blackbox(self) -> Path:
        """Evidence of each ending, `<utc>/`."""
        return self.root / "blackbox"

    @property
    def guard(self) -> Path:
        """What the watchdog did, `<boot>/`; its live state is on the pod's tmpfs."""
        return self.root / "guard"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / "step-{:08d}".format(step)


def read_status(path: StrPath) -> Optional[Status]:
    """The run's status, or None before its runner wrote one."""
    value = read_json(path)
    return parse_status(value) if isinstance(value, dict) else None


def parse_status(value: Mapping[str, Any]) -> Optional[Status]:
    try:
        return Status(**_only_fields(Status, value))
    except TypeError:
        return None  # a schema that lacks what we need


def parse_progress(value: Mapping[str, Any]) -> Optional[Progress]:
    try:
        return Progress(**_only_fields(Progress, value))
    except TypeError:
        return None


def write_dataclass(path: StrPath, value: Any) -> None:
    """Replace a file of the run directory by a dataclass as JSON."""
    write_json(path, dataclasses.asdict(value))


def state_after(exit_code: int, asked_to_stop: bool) -> str:
    """What a job's exit code means for its run: saved (75) and asked to stop is stopped, the rest speaks for itself."""
    if exit_code == EXIT_OK:
        return SUCCEEDED
    if asked_to_stop or exit_code == EXIT_SAVED:
        return STOPPED
    return FAILED


def is_lost(status: Status, runner_alive: Optional[bool], now: float) -> bool:
    """No final word, and nobody left to say one.

    `runner_alive` is the word of the machine that it ran on; None where that can't be asked: then an old heartbeat
    decides. A living runner is never lost, however full the volume that its heartbeat lies on.
    """
    if status.is_final:
        return False
    if runner_alive is not None:
        return not runner_alive
    return now - status.heartbeat_at > STALE_S


def _only_fields(cls: Any, value: Mapping[str, Any]) -> Dict[str, Any]:
    """The entries that this version knows: a newer writer may say more."""
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in value.items() if k in names}
