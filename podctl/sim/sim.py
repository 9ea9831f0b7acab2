"""An emulated RunPod on loopback, in a `with` block: servers, clock, pods that really run, faults, and the bill.

with Sim(tmp_path, faults=[Fault("sold-out", times=1)]) as sim:
    run_podctl(env=sim.env())
    sim.advance(3600)
    assert sim.bill() < 1.0
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from podctl.sim.backend import Backend, Entrance, NoContainers
from podctl.sim.catalogue import Catalogue, Stock
from podctl.sim.clock import LOOK_S, VirtualClock
from podctl.sim.cloud import Cloud, summary
from podctl.sim.container import ProcessBackend
from podctl.sim.faults import Fault, Faults
from podctl.sim.front import Front
from podctl.sim.keys import PodRights
from podctl.sim.namespaces import NamespaceBackend
from podctl.sim.records import Pod, Timing, Volume
from podctl.sim.shapes import pod_json
from podctl.sim.web import Web
from podctl.sim.wire import Answer, Exchange, Request

ACCOUNT_KEY = "rpa_SIM0ACCOUNT0KEY0OF0NOBODY0000000"


class Sim:
    """One cloud, one account. Its files are below `root`; `backend` is "process", "namespaces" or "none".

    With `proxy` the provider's SSH proxy answers too: a shell for a person. `rate` 60 lets a minute go by in a second;
    `advance` moves time at once. `seed` decides every id and every choice. Who must do something just when a client
    asks, or before it hears the answer, does it in `before_request` and `after_answer`: the client waits meanwhile.
    """

    def __init__(
        self,
        root: Path,
        *,
        backend: str = "process",
        rate: float = 1.0,
        seed: int = 0,
        faults: Sequence[Fault] = (),
        timing: Timing | None = None,
        stock: Stock | None = None,
        catalogue: Catalogue | None = None,
        balance_usd: float = 100.0,
        spend_limit_usd: float = 80.0,
        rights: PodRights | None = None,
        guard_tick_s: float = 0.05,
        port: int = 0,
        pod_env: Mapping[str, str] | None = None,
        proxy: bool = False,
    ) -> None:
        root = root.resolve()
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.account_key = root, ACCOUNT_KEY
        self._web = Web(self._answer, port, lambda: self.clock.now())  # first: the port may be taken
        self.clock = VirtualClock(_made(root / "time") / "clock", rate)
        self.faults = Faults()
        self.faults.add(*faults)
        self._tick_s, self._pod_env = guard_tick_s, dict(pod_env or {})
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self.backend = self._backend(backend)
        self._proxy = self._open_proxy() if proxy else None
        self.cloud = Cloud(
            self.clock.now, catalogue=catalogue, stock=stock, faults=self.faults, timing=timing, seed=seed,
            balance_usd=balance_usd, spend_limit_usd=spend_limit_usd, next_port=self.backend.next_port,
        )  # fmt: skip
        self.cloud.look = lambda pod, t: pod_json(pod, t, self.backend.outlook)
        self.front = Front(self.cloud, self.backend.outlook, rights or PodRights(), self.account_key, self._locked)
        self.before_request: list[Callable[[Request], None]] = []
        self.after_answer: list[Callable[[Request, Answer], None]] = []
        self._thread = threading.Thread(target=self._run, name="sim-cloud", daemon=True)

    def __enter__(self) -> Self:
        self.clock.__enter__()
        self._web.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()
        self._web.__exit__(None, None, None)
        self.clock.__exit__(None, None, None)
        if self._proxy is not None:
            self._proxy.close()
        with self._lock:
            self.backend.close()

    # what a test or a person asks

    @property
    def url(self) -> str:
        """The servers' base: `/v2`, `/graphql` and `/v1` are below it."""
        return self._web.url

    def env(self) -> dict[str, str]:
        """What podctl (or another client) needs in its environment to speak to this cloud."""
        return {**self._urls(), "RUNPOD_API_KEY": self.account_key, "PODCTL_CLOCK_FILE": str(self.clock.path)}

    @property
    def requests(self) -> list[Exchange]:
        """All that was asked and answered, oldest first."""
        with self._lock:
            return list(self.front.record)

    def pods(self, *, gone: bool = False) -> list[Pod]:
        """Those that are there, the oldest first; with `gone` also those that were."""
        with self._locked():
            return [p for p in self.cloud.pods.values() if gone or p.status != "TERMINATED"]

    def pod(self, name: str = "") -> Pod:
        """The one pod there is (whose name or id holds that)."""
        found = [p for p in self.pods() if name in p.wish.name or name == p.id]
        assert len(found) == 1, f"{len(found)} pods {name}: {[p.wish.name for p in found]}"
        return found[0]

    def bill(self, pod_id: str | None = None) -> float:
        """Dollars so far, of a pod or of all."""
        with self._locked():
            return self.cloud.bill(pod_id)

    def table(self) -> list[Mapping[str, Any]]:
        """A line a pod, for people."""
        with self._locked():
            return [summary(p, self.cloud.t) for p in self.cloud.pods.values()]

    def advance(self, seconds: float) -> None:
        """Let so much time go by, and all that is due in it happen."""
        self.clock.advance(seconds)
        self.tick()

    def create_volume(self, name: str = "data", size_gb: int = 50, data_center: str = "US-KS-2") -> Volume:
        with self._locked():
            return self.cloud.create_volume(name, size_gb, data_center)

    def volume_dir(self, id: str) -> Path:
        """Where a network volume's data is on this machine."""
        return self.backend.volume_dir(id)

    def log(self, pod_id: str, source: str = "container") -> str:
        """What a pod's container said."""
        with self._locked():
            return "".join(f"{line.text}\n" for line in self.cloud.pods[pod_id].log if line.source == source)

    def kill_host(self, pod: Pod | str) -> None:
        """The machine below a pod dies."""
        with self._locked():
            self.cloud.kill_host(pod if isinstance(pod, str) else pod.id)
        self.tick()

    def fill_host(self, pod: Pod | str) -> None:
        """Somebody else takes all that is free on a pod's machine."""
        with self._locked():
            self.cloud.fill_host(pod if isinstance(pod, str) else pod.id)

    def preempt(self, pod: Pod | str, after_s: float = 0.0) -> None:
        """A pod is taken away, as a spot pod is."""
        with self._locked():
            self.cloud.preempt(pod if isinstance(pod, str) else pod.id, after_s)
        self.tick()

    def kill_main(self, pod: Pod | str) -> None:
        """A pod's main program dies, and its container with it; it is started again after a while."""
        with self._locked():
            self.cloud.kill_main(pod if isinstance(pod, str) else pod.id)

    def spend_all(self) -> None:
        """The account's balance is gone."""
        with self._locked():
            self.cloud.credit_usd -= self.cloud.balance_usd

    @property
    def strangers(self) -> list[Any]:
        """Strangers' sshds that answer at addresses of before; `.received` is what they were told."""
        return getattr(self.backend, "strangers", [])

    def tick(self) -> None:
        """Let happen what is due, and have it done to containers."""
        with self._lock:
            now = self.clock.now()
            for news in self.backend.look(now):
                if news.line is not None:
                    self.cloud.container_said(news.pod, news.line)
                else:
                    self.cloud.container_ended(news.pod, news.boot)
            self.cloud.settle()
            while self.cloud.effects:
                effect = self.cloud.effects.pop(0)
                self.backend.do(effect, self.cloud.pods[effect.pod], now)

    # helpers

    def _answer(self, request: Request) -> Answer:
        for told in list(self.before_request):
            told(request)
        answer = self.front.answer(request)
        for heard in list(self.after_answer):
            heard(request, answer)
        return answer

    def _backend(self, name: str) -> Backend:
        if name == "none":
            return NoContainers(self.root)
        return (NamespaceBackend if name == "namespaces" else ProcessBackend)(self.root, self._env_of)

    def _open_proxy(self) -> Any:
        """The provider's way to a shell, for a person; where no proxy is asked for, answers name the real one."""
        from podctl.sim.proxy import ShellProxy

        def enter(user: str) -> Entrance | None:
            with self._lock:
                pods = [p for p in self.cloud.pods.values() if p.token == user and p.status == "RUNNING"]
                return self.backend.entrance(pods[0]) if pods else None

        proxy = ShellProxy(enter, lambda: list(self.cloud.ssh_keys))
        self.backend.outlook = replace(self.backend.outlook, proxy=("127.0.0.1", proxy.port))
        return proxy

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The cloud as it is now; what was asked of it is done before anybody else looks."""
        with self._lock:
            self.cloud.settle()
            yield
            self.tick()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_S):
            self.tick()

    def _urls(self) -> dict[str, str]:
        return {
            "PODCTL_RUNPOD_API_URL": f"{self.url}/v2",
            "PODCTL_RUNPOD_GRAPHQL_URL": f"{self.url}/graphql",
            "RUNPOD_API_BASE_URL": self.url,
        }

    def _env_of(self, pod: Pod) -> dict[str, str]:
        """What RunPod puts into a pod's environment, and where this cloud is."""
        return {
            **self._urls(),
            "PODCTL_CLOCK_FILE": str(self.clock.path),
            "PODCTL_GUARD_TICK_S": str(self._tick_s),
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_POD_HOSTNAME": pod.token,
            "RUNPOD_API_KEY": pod.key,
            "RUNPOD_DC_ID": pod.data_center,
            "RUNPOD_GPU_COUNT": str(pod.wish.count),
            "RUNPOD_CPU_COUNT": "8",
            "RUNPOD_PUBLIC_IP": self.backend.outlook.ip,
            "RUNPOD_TCP_PORT_22": str(pod.port),
            "RUNPOD_VOLUME_ID": pod.wish.volume,
            "CUDA_VERSION": pod.cuda,
            **self._pod_env,
        }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
