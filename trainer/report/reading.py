"""All that a run directory holds for its page: whatever is absent, torn or of an older version is simply not there."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from remote.files import read_json
from remote.rundir import FINAL, Progress, RunDir, Status, parse_progress, parse_status
from trainer.errors import BadData
from trainer.report.secrecy import without_secrets
from trainer.report.series import Line, read_lines
from trainer.results import RunResults, Told, read_results


@dataclass(frozen=True)
class ReadRun:
    """One run, read once."""

    run: RunDir
    name: str
    results: RunResults | None  # None before its first evaluation
    lines: Sequence[Line]  # of metrics.jsonl
    status: Status | None
    progress: Progress | None
    receipt: Mapping[str, Any]
    source: Mapping[str, Any]
    env: Mapping[str, Any]
    summary: Mapping[str, Any]
    experiment: Mapping[str, Any]  # without any value that may be a secret
    health: Any
    quarantine: Sequence[tuple[str, int]]  # reason, how often
    usd: float | None

    @property
    def train(self) -> Mapping[str, Any]:
        """The recipe as it was written; {} where it is unknown."""
        return _mapping(self.experiment.get("train"))

    @property
    def headline(self) -> Told | None:
        """What its number was made of; an evaluation by hand where there is nothing else."""
        if self.results is None:
            return None
        by_hand = self.results.evaluated
        return self.results.headline or (by_hand[-1] if by_hand else None)

    @property
    def state(self) -> str:
        """The last word on it: of podctl, of its runner, or of the files that the trainer left."""
        if self.receipt.get("state"):
            return str(self.receipt["state"])
        if self.status is not None and self.status.state in FINAL:
            return self.status.state
        if self.summary:
            return "trained"
        return self.status.state if self.status is not None else "not ended"

    @property
    def duration_s(self) -> float | None:
        """Of the newest attempt: nobody adds them up."""
        told = self.receipt.get("duration_s")
        if isinstance(told, (int, float)):
            return float(told)
        if self.status is not None:
            return max(0.0, (self.status.ended_at or self.status.heartbeat_at) - self.status.started_at)
        times = [line["t"] for line in self.lines if isinstance(line.get("t"), (int, float))]
        return max(times) - min(times) if len(times) > 1 else None

    @property
    def attempts(self) -> int:
        """How often it was begun."""
        told = self.receipt.get("attempts")
        return told if isinstance(told, int) else self.status.attempt if self.status is not None else 1

    @property
    def gpu(self) -> str:
        """`NVIDIA L4`, `2 × NVIDIA L4`, or what stood in for one."""
        gpus = self.env.get("gpus")
        names = [str(_mapping(g).get("name", g)) for g in gpus] if isinstance(gpus, list) else []
        if not names:
            cpus = self.env.get("cpus")
            return f"no GPU, {cpus} CPU cores" if cpus else ""
        return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in Counter(names).items())


def read_run(path: Path, usd: float | None = None) -> ReadRun:
    """Raises BadData where there is no run. `usd` is what it cost, where no receipt says so."""
    run = RunDir(path.absolute())
    if not any(p.exists() for p in (run.experiment, run.metrics, run.status, run.reports)):
        raise BadData(f"{path} is no run directory", "name one: runs/ID on the volume, or .podctl/runs/ID on a laptop")
    try:
        results = read_results(run)
    except BadData:
        results = None
    receipt = _mapping(read_json(run.receipt))
    told = receipt.get("usd")
    status, progress = read_json(run.status), read_json(run.progress)
    return ReadRun(
        run=run,
        name=run.root.name,
        results=results,
        lines=read_lines(_text(run.metrics)),
        status=parse_status(status) if isinstance(status, dict) else None,
        progress=parse_progress(progress) if isinstance(progress, dict) else None,
        receipt=receipt,
        source=_mapping(read_json(run.source)),
        env=_mapping(read_json(run.env)),
        summary=_mapping(read_json(run.summary)),
        experiment=without_secrets(_experiment(run)),
        health=read_json(run.data_health),
        quarantine=_reasons(_text(run.quarantine)),
        usd=usd if usd is not None else (float(told) if isinstance(told, (int, float)) else None),
    )


def kind_of(reason: str) -> str:
    """A reason without what is of one utterance alone: `audio/a.wav: no such file` → `…: no such file`."""
    reason = re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*(?<![:;,.])", "…", reason)
    return re.sub(r"\d+(?:\.\d+)?", "#", reason)


def _reasons(text: str) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for line in text.split("\n"):
        match = _parsed(line)
        if isinstance(match, dict):
            counts[kind_of(str(match.get("reason", "")))] += 1
    return counts.most_common()


def _experiment(run: RunDir) -> Mapping[str, Any]:
    """experiment.yaml, or the recipe that was exported where nobody wrote one."""
    try:
        value = yaml.safe_load(_text(run.experiment))
    except yaml.YAMLError:
        value = None
    if isinstance(value, dict):
        return value
    recipe = read_json(run.export / "recipe.json")
    return {"train": recipe} if isinstance(recipe, dict) else {}


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
