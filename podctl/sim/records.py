"""What the cloud keeps of a pod and of a network volume."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from podctl.sim.meter import Meter

PROVISIONING, STARTING, RUNNING = "PROVISIONING", "STARTING", "RUNNING"
EXITED, ERROR, TERMINATED = "EXITED", "ERROR", "TERMINATED"
ACTIONS: Mapping[str, tuple[str, ...]] = {
    PROVISIONING: ("stop", "terminate"),
    STARTING: ("stop", "terminate"),
    RUNNING: ("stop", "restart", "terminate"),
    EXITED: ("start", "terminate"),
    ERROR: ("start", "terminate"),
    TERMINATED: (),
}


@dataclass(frozen=True)
class Timing:
    """How long things take, in seconds of the cloud's time. The defaults are for tests."""

    provision_s: float = 0.2  # until there is a machine
    start_s: float = 0.2  # until the container runs, its image pulled
    address_s: float = 0.2  # from there until the answers tell the port
    sshd_s: float = 0.0  # and from there until sshd takes a key
    restart_s: float = 17.0  # a container whose main program ended is started again (seen 2026-08)
    stop_grace_s: float = 0.5  # between SIGTERM and SIGKILL

    @classmethod
    def real(cls) -> "Timing":
        """As it was seen: an address after 50 to 84 s, a key taken a little later."""
        return cls(provision_s=5.0, start_s=35.0, address_s=20.0, sshd_s=5.0, stop_grace_s=10.0)


@dataclass(frozen=True)
class Wish:
    """What a create call asks for, however it was said."""

    name: str
    image: str
    gpu: str
    count: int = 1
    args: str = ""
    disk_gb: int = 10
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    cloud: str = "SECURE"
    data_centers: tuple[str, ...] = ()
    min_cuda: str = ""
    cudas: tuple[str, ...] = ()
    volume: str = ""  # a network volume's id
    volume_gb: int = 0  # of the machine's own disk
    mount: str = ""  # where either is to be seen
    registry: str | None = None
    start_ssh: bool = False
    start_jupyter: bool = False
    bid_usd: float | None = None  # a spot pod


@dataclass(frozen=True)
class Line:
    """A line of a pod's log."""

    t: float
    number: int
    source: str  # container, system
    text: str


@dataclass
class Volume:
    """A network volume. Its data lives in a folder of its own, whatever becomes of pods."""

    id: str
    name: str
    size_gb: int
    data_center: str
    type: str
    created_at: float


@dataclass
class Pod:
    """All about one pod. `boot` counts its container's starts; what was scheduled for an earlier one is void."""

    id: str
    wish: Wish
    host: str  # "": none yet
    data_center: str
    key: str  # its own, for itself alone
    usd_per_hour: float
    created_at: float
    cuda: str = ""  # what its machine reports
    status: str = PROVISIONING
    boot: int = 0
    started_at: float | None = None
    locked: bool = False
    port: int = 0  # outside, of sshd, this start
    has_address: bool = False
    old_port: int = 0  # of the start before
    stale_port_reads: int = 0
    hidden_reads: int = 0
    zero_gpu: bool = False
    cursed: str = ""  # no-machine, pod-error: decided when it was made
    ignored_stop: bool = False  # the last one: its answer says EXITED
    gone_at: float | None = None
    meter: Meter = field(default_factory=Meter)
    log: list[Line] = field(default_factory=list)
    past: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # how it looked from when on

    @property
    def is_paid_compute(self) -> bool:
        return self.status in (PROVISIONING, STARTING, RUNNING, ERROR)

    @property
    def token(self) -> str:
        """Its user name at the provider's proxy: itself, and its machine as eight hexadecimal digits."""
        return f"{self.id}-{zlib.crc32(self.host.encode()):08x}"

    @property
    def has_own_disk(self) -> bool:
        return self.wish.volume_gb > 0

    @property
    def wants_ssh(self) -> bool:
        return "22/tcp" in self.wish.ports
