"""The experiment file: one YAML that says what to train and what machine it may cost. Every mistake at once.

`pod:` and `prep:` are typed here, `train:` belongs to the trainer, which is asked as a subprocess.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from podctl.errors import BadInput
from podctl.pods import Machine, PodSpec, SshAddress
from podctl.ui import shown
from podctl.yamls import apply_sets, read_yaml, to_yaml
from remote.mistakes import Mistake, mistakes_of
from remote.rundir import Stage

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")
NAME = r"^[a-z0-9][a-z0-9-]{0,29}$"


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Hold(Part):
    """Keep the pod for a while after the end, and pay for it."""

    hold: str = Field(pattern=r"^\d+[mh]$", description="how long, in minutes or hours: 30m, 2h")


Ending = Literal["stop", "terminate"] | Hold


class GuardSection(Part):
    """`pod.guard:`, what the programs on a rented pod go by (docs/adr/0013)."""

    boot_grace: str = Field(
        default="15m",
        pattern=r"^[1-9]\d*[smh]$",
        description="a pod without a living watchdog for so long ends itself: 900s, 15m",
    )
    fetch_grace: str = Field(
        default="10m", pattern=r"^\d+[smh]$", description="after a run's end, for its results to be fetched"
    )

    @property
    def boot_grace_s(self) -> int:
        return seconds_of(self.boot_grace)

    @property
    def fetch_grace_s(self) -> int:
        return seconds_of(self.fetch_grace)


def seconds_of(text: str) -> int:
    """`90s`, `15m`, `2h`."""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


class SshSection(Part):
    """`pod.ssh:`, a machine that you have already. A bare name is one of ~/.ssh/config."""

    host: str = Field(
        min_length=1, pattern=r"^[^-\s@:/][^\s@/]*$", description="a name, an address, or a Host of ~/.ssh/config"
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="none: as ~/.ssh/config says, else 22")
    user: str | None = Field(default=None, pattern=r"^[^-\s@:/][^\s@:/]*$", description="none: as ~/.ssh/config says")
    key: str | None = Field(
        default=None, min_length=1, description="path of a private key; none: the agent's or usual ones"
    )
    host_key: str | None = Field(
        default=None,
        pattern=r"^\S+ [A-Za-z0-9+/=]+",
        description="its public host key; none: as ~/.ssh/known_hosts says",
    )
    disk: str = Field(
        default="~/.cache/podctl",
        pattern=r"^(/|~/)",
        description="a folder on its own disk: code, environments, caches",
    )
    python: str | None = Field(
        default=None, min_length=1, description="a Python there that has all a training needs; none: one is built"
    )
    usd_per_hour: float = Field(default=0.0, ge=0, le=1000, description="dollars an hour, where somebody bills it")


class PodSection(Part):
    """`pod:`, the machine and what it may cost."""

    provider: str = Field(default="local", description="who rents it out: local, ssh, runpod")
    ssh: SshSection | None = Field(default=None, description="with provider: ssh, how to reach the machine")
    gpu: tuple[str, ...] = Field(default=(), description="names of GPUs, ranked: the first that is to be had")
    gpu_count: int = Field(default=1, ge=1, le=64, description="GPUs of one machine")
    data_centers: tuple[str, ...] = Field(default=(), description="ranked; empty: wherever the volume is")
    volume: str | None = Field(
        default=None, description="a network volume's name or id; with provider: ssh, a folder's path there"
    )
    image: str | None = Field(default=None, description="a container image; none: the provider's official one")
    disk_gb: int = Field(default=40, ge=1, le=20_000, description="GB of local disk")
    max_hours: float = Field(
        gt=0, le=24 * 30, description="hours until the run is saved and stopped; no default: it costs"
    )
    max_usd: float | None = Field(default=None, gt=0, description="dollars, over all attempts of a run")
    max_usd_per_hour: float | None = Field(
        default=None, gt=0, description="no dearer machine than this, dollars an hour"
    )
    on_success: Ending | None = Field(default=None, description="what becomes of the pod: stop, terminate, {hold: 30m}")
    on_failure: Ending | None = Field(default=None, description="as on_success")
    spot: bool = Field(default=False, description="cheaper, and taken away at any moment")
    command: str | tuple[str, ...] | None = Field(
        default=None, min_length=1, description="runs in place of the trainer"
    )
    env: Mapping[str, str] = Field(default_factory=dict, description="${NAME} is this machine's; no secrets")
    secrets: tuple[str, ...] = Field(default=(), description="names; the values come from here and are never written")
    guard: GuardSection = Field(default=GuardSection(), description="what the programs on a rented pod go by")

    @field_validator("gpu", "data_centers", "secrets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("ssh", mode="before")
    @classmethod
    def _a_name_is_a_host(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @field_validator("max_hours", "max_usd", "max_usd_per_hour", "gpu_count", "disk_gb", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must be a number, not {str(value).lower()}")
        return value

    @field_validator("env", mode="before")
    @classmethod
    def _env_is_text(cls, value: Any) -> Any:
        """`N: 4` and `ON: true` are what a person means by "4" and "true"."""
        if not isinstance(value, dict):
            return value
        return {str(k): _as_text(v) for k, v in value.items()}

    @field_validator("secrets", "env")
    @classmethod
    def _names_of_variables(cls, value: Any) -> Any:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return value


class PrepStage(Part):
    """`prep:`, a shell command before the training, skipped where its outputs are newer than its inputs."""

    run: str = Field(min_length=1, description="a shell command, in the project, on the machine that trains")
    inputs: tuple[str, ...] = Field(default=(), description="relative to the volume's data/")
    outputs: tuple[str, ...] = Field(default=(), description="relative to the volume's data/")


class ExperimentFile(Part):
    """Its name, the machine, what is prepared, what is trained."""

    name: str = Field(pattern=NAME, description="a-z, 0-9 and -, at most 30")
    pod: PodSection
    prep: tuple[PrepStage, ...] = ()
    train: Any = Field(default=None, description="what is trained, and how; without it, pod.command says what runs")


@dataclass(frozen=True)
class Experiment:
    """An experiment without a mistake that this side can see."""

    path: Path
    name: str
    pod: PodSection
    prep: tuple[PrepStage, ...]
    env: Mapping[str, str]  # expanded
    document: Mapping[str, Any]  # resolved: overrides applied

    @property
    def yaml(self) -> str:
        """The resolved file, as it is saved with the run."""
        return to_yaml(self.document)

    @property
    def trains(self) -> bool:
        """Is it the trainer that runs, or a command of one's own?"""
        return self.pod.command is None

    @property
    def spec(self) -> PodSpec:
        p = self.pod
        return PodSpec(
            gpu=p.gpu,
            gpu_count=p.gpu_count,
            data_centers=p.data_centers,
            volume=p.volume,
            image=p.image,
            disk_gb=p.disk_gb,
            spot=p.spot,
            max_usd_per_hour=p.max_usd_per_hour,
            env=self.env,
            machine=machine_of(p),
        )

    @property
    def stages(self) -> list[Stage]:
        return [Stage(run=s.run, inputs=list(s.inputs), outputs=list(s.outputs)) for s in self.prep]


def machine_of(pod: PodSection) -> Machine | None:
    """The machine that `pod.ssh` names, if any."""
    if pod.ssh is None:
        return None
    s = pod.ssh
    key = str(Path(s.key).expanduser().absolute()) if s.key else ""
    address = SshAddress(s.host, s.port, s.user or "", key, s.host_key or "", user_config=True)
    return Machine(address, pod.volume or "", s.disk, s.python or "", s.usd_per_hour)


def read_experiment(
    path: Path, *, sets: Sequence[str] = (), local: bool = False, environ: Mapping[str, str] | None = None
) -> tuple[Experiment | None, dict[str, Any], list[Mistake]]:
    """The experiment or None, its resolved document, and this side's mistakes.

    Raises BadInput where there is no mapping to speak about.
    """
    document, mistakes = read_yaml(path)
    mistakes += apply_sets(document, sets)
    if local:
        if not isinstance(document.get("pod"), dict | None):
            mistakes.append(Mistake("pod", "must be a mapping of keys"))
        else:
            document["pod"] = {**(document.get("pod") or {}), "provider": "local"}
    try:
        parsed = ExperimentFile.model_validate(document)
    except ValidationError as e:
        errors = e.errors(include_url=False)
        mistakes += [_clearer(m) for m in mistakes_of(errors, "", _known())]
        return None, document, mistakes
    env, missing = expand_env(parsed.pod.env, os.environ if environ is None else environ)
    mistakes += missing + _mistakes_of_ssh(parsed.pod)
    if parsed.pod.command is None and "train" not in document:
        mistakes.append(Mistake("train", "is missing: say what to train, or give pod.command"))
    experiment = Experiment(path, parsed.name, parsed.pod, parsed.prep, env, document)
    return experiment, document, mistakes


def bad_file(path: Path, mistakes: Sequence[Mistake], hint: str = "") -> BadInput:
    """All mistakes as one error."""
    lines = tuple(dict.fromkeys(str(m) for m in mistakes))
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return BadInput(f"{count} in {shown(path)}", hint or "correct the file, or the --set that says it", lines)


def expand_env(env: Mapping[str, str], environ: Mapping[str, str]) -> tuple[dict[str, str], list[Mistake]]:
    """`${NAME}` by this machine's value. What looks like a secret is a mistake: values are written with the run."""
    expanded, mistakes = {}, []
    for key, value in env.items():
        names = re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value)
        where = f"pod.env.{key}"
        for name in [key, *names]:
            if SECRET_NAME.search(name.upper()):
                mistakes.append(Mistake(where, f"{name} looks like a secret: name it under pod.secrets instead"))
        for name in names:
            if name not in environ:
                mistakes.append(Mistake(where, f"{name} is not set on this machine: export {name}=…"))
        expanded[key] = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lambda m: environ.get(m[1], ""), value)
    return expanded, mistakes


def _mistakes_of_ssh(pod: PodSection) -> list[Mistake]:
    if pod.provider != "ssh":
        return []
    found = []
    if pod.ssh is None:
        found.append(Mistake("pod.ssh", "is missing: a name of ~/.ssh/config, or {host: …, port: …, user: …, key: …}"))
    if not pod.volume or not pod.volume.startswith(("/", "~/")):
        found.append(
            Mistake("pod.volume", "must be a folder on that machine, /data/podctl or ~/podctl: runs lie there")
        )
    if pod.ssh and pod.ssh.key and not Path(pod.ssh.key).expanduser().is_file():
        found.append(Mistake("pod.ssh.key", f"there is no file {pod.ssh.key}"))
    return found


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _clearer(mistake: Mistake) -> Mistake:
    if mistake.where == "name" and "pattern" in mistake.what:
        return Mistake(
            "name", f"must be a-z, 0-9 and -, at most 30, begun by a letter or digit, {mistake.what.split(', ')[-1]}"
        )
    if ".str" in mistake.where or ".tuple" in mistake.where:  # pydantic names the branch of a union
        return Mistake(mistake.where.split(".str")[0].split(".tuple")[0], "must be a command: text, or a list of words")
    for branch in (".literal", ".Hold"):
        if branch in mistake.where:
            return Mistake(mistake.where.split(branch)[0], "must be stop, terminate or {hold: 30m}")
    return mistake


def _known() -> dict[str, list[str]]:
    return {
        "": list(ExperimentFile.model_fields),
        "pod": list(PodSection.model_fields),
        "pod.ssh": list(SshSection.model_fields),
        "pod.guard": list(GuardSection.model_fields),
        "prep": list(PrepStage.model_fields),
    }
