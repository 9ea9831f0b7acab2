"""A provider in memory that rents, refuses, forgets and lies as it is told to, on a clock that a test holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from podctl.errors import NoCapacity, PodctlError, ProviderUnclear
from podctl.pods import Announced, Boot, Can, Offer, Pod, PodSpec, SshAddress
from podctl.ready import Ready, Unfit

KEY = "ssh-ed25519 AAAA"


class HandClock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.t = 1_000_000.0
        self.due: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        return self.t

    def elapsed(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        self.t += seconds
        for at, call in [d for d in self.due if d[0] <= self.t]:
            self.due.remove((at, call))
            call()

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        self.due.append((self.t + seconds, call))


@dataclass
class Renter:
    """`script` says how the next creates go: a pod's state, or an exception; empty means that all is well."""

    clock: HandClock
    name: str = "fake"
    can: Can = field(default=Can(stop=True, volumes=True))
    volume: str = "vol"
    script: list[object] = field(default_factory=list)
    start_script: list[object] = field(default_factory=list)
    deaf: set[str] = field(default_factory=set)  # pods that go on whatever they are told
    undying: set[str] = field(default_factory=set)  # stop when they are told, and are never deleted
    unclear_lists: int = 0
    hidden_until: dict[str, float] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def offers(self, spec: PodSpec) -> Sequence[Offer]:
        return [Offer(self.name, gpu, 1, 1.0) for gpu in spec.gpu]

    def create(self, name: str, offer: Offer, spec: PodSpec, boot: Boot) -> Pod:
        self.calls.append(("create", offer.gpu))
        step = self.script.pop(0) if self.script else "running"
        if isinstance(step, PodctlError | KeyboardInterrupt) and not getattr(step, "makes", False):
            raise step
        pod = self.put(name, "running" if isinstance(step, BaseException) else str(step), gpu=offer.gpu)
        if isinstance(step, BaseException):
            raise step
        return pod

    def put(self, name: str, state: str, gpu: str = "H100") -> Pod:
        """A pod that is there."""
        pod = Pod(
            self.name, f"p{len(self.pods)}", name, state, 1.0, PurePosixPath("/workspace"), PurePosixPath("/disk"),
            started_at=self.clock.t, gpu=gpu, volume=self.volume, created_at=self.clock.t,
            ssh=SshAddress("127.0.0.1", 22, "root"),
        )  # fmt: skip
        self.pods[pod.id] = pod
        return pod

    def start(self, pod_id: str) -> Pod:
        self.calls.append(("start", pod_id))
        step = self.start_script.pop(0) if self.start_script else "running"
        if isinstance(step, BaseException):
            raise step
        self.pods[pod_id] = replace(self.pods[pod_id], state=str(step))
        return self.pods[pod_id]

    def get(self, pod_id: str) -> Pod:
        pod = self.pods.get(pod_id)
        if pod is None or self.hidden_until.get(pod_id, 0) > self.clock.t:
            return Pod(self.name, pod_id, "", "gone", 0.0, PurePosixPath("/w"), PurePosixPath("/d"))
        return pod

    def list(self) -> Sequence[Pod]:
        if self.unclear_lists:
            self.unclear_lists -= 1
            raise ProviderUnclear("no answer")
        return [p for p in self.pods.values() if self.hidden_until.get(p.id, 0) <= self.clock.t]

    def stop(self, pod_id: str) -> None:
        self._end("stop", pod_id, "stopped")

    def terminate(self, pod_id: str) -> None:
        self._end("terminate", pod_id, "gone")

    def _end(self, verb: str, pod_id: str, state: str) -> None:
        self.calls.append((verb, pod_id))
        if state == "gone" and pod_id in self.undying:
            return
        if pod_id in self.pods and pod_id not in self.deaf and self.hidden_until.get(pod_id, 0) <= self.clock.t:
            self.pods[pod_id] = replace(self.pods[pod_id], state=state)

    @property
    def living(self) -> Sequence[Pod]:
        return [p for p in self.pods.values() if p.state in ("running", "starting", "broken")]

    def did(self, verb: str) -> Sequence[str]:
        return [what for v, what in self.calls if v == verb]


def makes(error: BaseException) -> BaseException:
    """The call makes a pod all the same."""
    error.makes = True  # type: ignore[attr-defined]
    return error


def sold_out() -> NoCapacity:
    return NoCapacity("no longer any instances available")


def at_once(provider: Renter, pod: Pod, gpu_count: int, ui: object, clock: HandClock, **limits: float) -> Ready:
    """A pod that answers as soon as it runs; one that is broken never will."""
    seen = provider.get(pod.id)
    if seen.state != "running":
        raise Unfit(f"{pod.name} is {seen.state}")
    return Ready(seen, Announced("b", PurePosixPath("/g"), KEY), None, 1.0)  # type: ignore[arg-type]
