"""The nouns of podctl: what can be rented, what is rented, and what ran on it. Frozen; decisions return them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath


@dataclass(frozen=True)
class PodSpec:
    """What the experiment asks of a machine. `gpu` is ranked; empty where the provider has no choice."""

    gpu: tuple[str, ...] = ()
    gpu_count: int = 1
    data_centers: tuple[str, ...] = ()
    volume: str | None = None
    image: str | None = None
    disk_gb: int = 40
    spot: bool = False
    max_usd_per_hour: float | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    machine: "Machine | None" = None  # pod.provider: ssh


@dataclass(frozen=True)
class Offer:
    """A machine that could be rented now, and its price."""

    provider: str
    gpu: str  # "" for a machine without one that we know of
    gpu_count: int
    usd_per_hour: float
    data_center: str = ""
    ref: str = ""  # the provider's own name for it
    stock: str = ""  # the provider's hint: high, medium, low; "" where it gives none
    spot: bool = False


@dataclass(frozen=True)
class SshAddress:
    """Where a pod's sshd answers, this boot. Addresses and keys change with every start."""

    host: str  # a name or an address; with `user_config` also an alias of ~/.ssh/config
    port: int | None = None  # None: what ~/.ssh/config says, else 22
    user: str = ""  # "": what ~/.ssh/config says, else this machine's user
    key: str = ""  # path of the private key; "": the agent's, or the usual ones
    host_key: str = ""  # `TYPE BASE64`, a line each: what was announced; nothing else is spoken to
    user_config: bool = False  # does ~/.ssh/config have a say, jump hosts included?

    def __str__(self) -> str:
        user, port = f"{self.user}@" * bool(self.user), f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}"


@dataclass(frozen=True)
class Machine:
    """A machine that somebody has already: how to reach it, and where our folders are. `~` is its own."""

    address: SshAddress
    volume_dir: str
    disk_dir: str = "~/.cache/podctl"
    python: str = ""  # has all that a training needs; "": an environment is built there
    usd_per_hour: float = 0.0


@dataclass(frozen=True)
class Pod:
    """A machine of ours, as its provider tells it."""

    provider: str
    id: str
    name: str
    state: str  # starting, running, stopped, broken, gone
    usd_per_hour: float
    volume_dir: PurePosixPath  # $PODCTL_VOLUME there
    disk_dir: PurePosixPath  # the local disk: code, environments, hub caches
    started_at: float | None = None  # of this boot, the provider's word; paid from here
    gpu: str = ""
    ssh: SshAddress | None = None  # None: it has no address yet, or it is this machine
    python: str = ""  # $PODCTL_PYTHON there; "": the runner finds or builds one
    gpu_count: int = 0
    data_center: str = ""
    volume: str = ""  # the network volume's id; "" where its data dies with it
    created_at: float | None = None
    proxy: str = ""  # a command that opens a shell through the provider's proxy, for a person
    host_id: str = ""  # the provider's name of the physical machine, where it tells it

    @property
    def is_here(self) -> bool:
        """Is it this machine?"""
        return self.provider == "local"


@dataclass(frozen=True)
class Volume:
    """A persistent disk at a provider."""

    id: str
    name: str
    size_gb: int
    data_center: str


@dataclass(frozen=True)
class Boot:
    """What travels with a create call so that something on the pod can end it from the first billed second."""

    public_key: str = ""
    host_key: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    start_script: str = ""


@dataclass(frozen=True)
class Announced:
    """What a pod's boot guard said into its log at this start (docs/adr/0013)."""

    boot: str
    guard_dir: PurePosixPath | None = None
    host_key: str = ""  # `TYPE BASE64`
    trouble: str = ""


@dataclass(frozen=True)
class Balance:
    """What an account has left. Dollars."""

    usd: float
    usd_per_hour: float = 0.0  # what it spends now
    limit_usd_per_hour: float | None = None


@dataclass(frozen=True)
class Can:
    """What a provider is able to do."""

    stop: bool = False
    tunnel: bool = False
    scoped_key: bool = False
    balance: bool = False
    volumes: bool = False
    rents: bool = True  # does a create cost money?


@dataclass(frozen=True)
class Result:
    """What a command on a host printed, and its exit code."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True)
class Run:
    """One run as the ledger knows it: intent and history, not the truth about its state (that is on the volume)."""

    id: str
    project: str
    name: str
    provider: str
    pod_name: str
    created_at: float
    pod: str = ""  # the provider's id, once there is one
    usd_per_hour: float = 0.0
    started_at: float | None = None  # of the pod, the provider's word
    launched_at: float | None = None
    gone_at: float | None = None
    usd_billed: float = 0.0  # what ended pods cost
    attempts: int = 0
    last_event: str = ""
    last_at: float = 0.0  # when that was
    detail: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_rented(self) -> bool:
        """Does its machine cost money for as long as it is on?"""
        return bool(self.detail.get("rents", False))

    @property
    def of(self) -> str:
        """The run whose model this one evaluates or lets predict; "" for one that stands by itself (docs/adr/0028)."""
        return str(self.detail.get("of") or "")

    @property
    def does(self) -> str:
        """evaluate or predict, where it is `of` another run."""
        return str(self.detail.get("does") or "") if self.of else ""

    @property
    def again(self) -> str:
        """What is typed after `podctl` to go on with it, or to begin it anew."""
        return f"{self.does} {self.of} with the same words" if self.of else "train with the same file"

    @property
    def was_undone(self) -> bool:
        """Its launch failed, and what it had been given was given back: nothing of it is anywhere."""
        return self.gone_at is not None and self.launched_at is None


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it could cost at most: shown before anything is rented."""

    run_id: str
    resumes: bool
    pod_name: str
    offers: Sequence[Offer]
    max_hours: float
    ceiling_usd: float  # of this attempt
    spent_usd: float = 0.0  # by attempts before it
