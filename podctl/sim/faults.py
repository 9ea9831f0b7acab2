"""How the cloud misbehaves: faults as data, that can be put together, each with when and how often.

Every one was seen on the real one by somebody, or is announced by it.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podctl.errors import BadInput

FAULTS: Mapping[str, str] = {
    # create
    "sold-out": "400, capacity text; the listing says NONE",
    "sold-out-late": "400, capacity text, after the listing said otherwise",
    "spend-limit": "400, capacity text: the account's limit an hour is reached, and nobody says so",
    "no-balance": "402",
    "error-after-create": "500, and the pod was made and is billed",
    "hang-after-create": "no answer for `seconds`, then the connection ends; the pod was made",
    "cut-after-create": "the connection ends without an answer; the pod was made",
    "error-before-create": "500, and no pod was made",
    "hidden-pod": "a new pod answers 404 for `reads` reads, and is on no list",
    # a pod's life
    "slow-boot": "the container takes `seconds` longer to start",
    "no-machine": "the pod stays in PROVISIONING for ever, billed",
    "pod-error": "the pod ends in ERROR in place of RUNNING, billed",
    "zero-gpu": "the container has no GPU",
    "late-ssh": "sshd refuses for `seconds` after the pod has its address",
    "restart-loop": "the container's main program is killed `seconds` after each start",
    "host-gone": "the machine dies once the container has run for `seconds`; the status does not tell for 30 s",
    "preempted": "a spot pod is taken away once it has run for `seconds`: SIGTERM to its main program, 5 s, gone",
    "balance-gone": "the balance is gone once a pod has run for `seconds`: it stops, without a network volume it goes",
    # actions
    "host-full": "400 on start: another has the GPUs; `text` chooses between the two ways of saying it (0, 1)",
    "stale-port": "after a start, `reads` reads show the port of before; a stranger's sshd answers there",
    "stop-ignored": "200 on stop, EXITED in the answer; it runs on and is billed",
    "delete-ignored": "204 on delete; it is still there and billed",
    "key-cannot-stop": "the pod's own key reads and may not stop",
    # answers
    "stale-list": "lists are `seconds` old",
    "stale-status": "reads of a pod are `seconds` old",
    "rate-limited": "429 with Retry-After: `seconds`",
    "cloudflare": "an HTML page with `status` 502 or 520, in place of doing anything",
    "cloudflare-after": "the same, after doing it",
    "server-error": "500, in place of doing anything",
    "logs-down": "503 for a pod's log",
    # how the real one may change
    "unknown-keys": "answers carry keys that nobody described",
    "unknown-status": "a pod that starts says INITIALIZING, which nobody described",
    "paged": "lists come in pages of `limit`, as the description of September 2026 has it",
    "graphql-gone": "410 for GraphQL",
}
ALWAYS = -1


@dataclass(frozen=True)
class Fault:
    """One way to misbehave.

    It happens `times` times (for ever: ALWAYS) after the first `skip` occasions, to pods whose name holds `pod`, to
    that `gpu` and `data_center`, to requests whose path holds `path` and have that `method`, not before `at` (seconds
    since the cloud began). What it needs beside that has a default of its own.
    """

    name: str
    times: int = ALWAYS
    skip: int = 0
    pod: str = ""
    gpu: str = ""
    data_center: str = ""
    path: str = ""
    method: str = ""
    at: float = 0.0
    seconds: float | None = None
    reads: int = 3
    status: int = 502
    text: int = 0
    limit: int = 2

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise BadInput(f"there is no fault {self.name!r}", f"it is one of: {', '.join(FAULTS)}")

    @classmethod
    def parse(cls, words: str) -> "Fault":
        """`host-full`, `slow-boot,seconds=600`, `sold-out,gpu=NVIDIA L40S,times=1`. Raises BadInput."""
        name, *pairs = words.split(",")
        values: dict[str, object] = {}
        for pair in pairs:
            key, _, text = pair.partition("=")
            kind = cls.__dataclass_fields__.get(key)
            if kind is None or key == "name":
                known = ", ".join(k for k in cls.__dataclass_fields__ if k != "name")
                raise BadInput(f"a fault has no {key!r}", f"it has: {known}")
            try:
                values[key] = text if kind.type is str else int(text) if kind.type is int else float(text)
            except ValueError:
                raise BadInput(f"{key}={text}: not a number", f"podctl sim --fault {name},{key}=1") from None
        return cls(name, **values)  # type: ignore[arg-type]

    def seconds_or(self, default: float) -> float:
        return default if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Occasion:
    """What is about to happen, so that a fault can say whether it is meant."""

    pod: str = ""
    gpu: str = ""
    data_centers: tuple[str, ...] = ()
    path: str = ""
    method: str = ""
    t: float = 0.0

    def is_meant_by(self, fault: Fault) -> bool:
        return (
            fault.pod in self.pod
            and fault.gpu in ("", self.gpu)
            and (not fault.data_center or not self.data_centers or fault.data_center in self.data_centers)
            and fault.path in self.path
            and fault.method in ("", self.method)
            and self.t >= fault.at
        )


@dataclass
class Faults:
    """The faults that are on. What has happened stands in `fired`."""

    fired: list[str] = field(default_factory=list)
    _on: list[Fault] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._on.extend(faults)

    def remove(self, name: str) -> None:
        """All of that name are over."""
        with self._lock:
            self._on = [f for f in self._on if f.name != name]

    def clear(self) -> None:
        with self._lock:
            self._on.clear()

    def names(self) -> Iterable[str]:
        with self._lock:
            return [f.name for f in self._on]

    def peek(self, name: str, occasion: Occasion | None = None) -> Fault | None:
        """Whether it would happen now; that is no occasion of it."""
        with self._lock:
            meant = occasion or Occasion()
            return next((f for f in self._on if f.name == name and not f.skip and meant.is_meant_by(f)), None)

    def take(self, name: str, occasion: Occasion | None = None) -> Fault | None:
        """The fault, if it happens on this occasion; it then has happened once more."""
        with self._lock:
            meant = occasion or Occasion()
            for i, fault in enumerate(self._on):
                if fault.name != name or not meant.is_meant_by(fault):
                    continue
                if fault.skip:
                    self._on[i] = replace(fault, skip=fault.skip - 1)
                    continue
                if fault.times == 1:
                    del self._on[i]
                elif fault.times > 0:
                    self._on[i] = replace(fault, times=fault.times - 1)
                self.fired.append(name)
                return fault
            return None
