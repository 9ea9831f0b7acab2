"""The cloud's state machine: pods from PROVISIONING to TERMINATED, machines, volumes, balance and bill.

Pure: time is handed in, containers are effects that somebody else carries out. What is due happens in `settle`, at the
moment it was due, so that a clock that is moved by an hour bills and ends things as if the hour had gone by.
"""

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from podctl.sim import effects as do
from podctl.sim.catalogue import Catalogue, Gpu, Stock
from podctl.sim.faults import Faults, Occasion
from podctl.sim.meter import disk_usd_per_hour
from podctl.sim.records import (
    ACTIONS,
    ERROR,
    EXITED,
    PROVISIONING,
    RUNNING,
    STARTING,
    TERMINATED,
    Line,
    Pod,
    Timing,
    Volume,
    Wish,
)
from podctl.sim.stock import Host, Machines, new_id

SOLD_OUT = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
SPOT_NONE = "There are no longer any instances available with the request specifications. Please try again later."
HOST_FULL = ("There are not enough free GPUs on the host machine to start this pod.", "Failed to resume pod.")
NO_BALANCE = "Your account balance is insufficient to create this pod. Please add credits and try again."
SPEND_LIMIT_USD = 80.0
DIES_UNSEEN_S = 30.0  # the status of a pod whose machine died
SPOT_NOTICE_S = 5.0


class Refused(Exception):
    """The cloud will not: an HTTP status, and what it says."""

    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors or []


class Cloud:
    """One account's part of it. Every method first lets happen what is due by `now()`."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        catalogue: Catalogue | None = None,
        stock: Stock | None = None,
        faults: Faults | None = None,
        timing: Timing | None = None,
        seed: int = 0,
        balance_usd: float = 100.0,
        spend_limit_usd: float = SPEND_LIMIT_USD,
        next_port: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.catalogue = catalogue or Catalogue.shipped()
        self.faults = faults if faults is not None else Faults()
        self.timing = timing or Timing()
        self.chance = random.Random(seed)
        self.machines = Machines(self.catalogue, self.catalogue.stock if stock is None else stock, self.chance)
        self.credit_usd, self.spend_limit_usd = balance_usd, spend_limit_usd
        self.pods: dict[str, Pod] = {}
        self.volumes: dict[str, Volume] = {}
        self.ssh_keys: list[str] = []
        self.effects: list[do.Effect] = []
        self.look: Callable[[Pod, float], dict[str, Any]] | None = None  # how a pod looks from outside
        self._next_port = next_port
        self._clock = now
        self.began = self.t = now()
        self._due: list[tuple[float, int, str, int, str]] = []
        self._order = 0

    # what people ask

    def create(self, wish: Wish) -> Pod:
        """A pod, billed from now on. Raises Refused."""
        self.settle()
        gpu = self._gpu(wish)
        self._check_money(gpu, wish)
        host = self._place(wish)
        price = (wish.bid_usd if wish.bid_usd is not None else gpu.usd_per_hour(wish.cloud)) * wish.count
        pod = Pod(
            new_id(self.chance), self._with_keys(wish), host.id, host.data_center, f"rpa_pod_{new_id(self.chance, 32)}",
            price, self.t, host.cuda,
        )  # fmt: skip
        host.free -= wish.count
        self.pods[pod.id] = pod
        hidden = self.faults.take("hidden-pod", self._occasion(pod))
        pod.hidden_reads = hidden.reads if hidden else 0
        self._bill(pod)
        for curse in ("no-machine", "pod-error"):
            if not pod.cursed and self.faults.take(curse, self._occasion(pod)):
                pod.cursed = curse
        self._say(pod, "system", "create container " + wish.image)
        if pod.cursed != "no-machine":
            self._later(self.timing.provision_s, pod, "machine")
        self._changed(pod)
        self.settle()
        return pod

    def act(self, pod_id: str, action: str) -> Pod:
        """Start, stop, restart or terminate. Raises Refused where the pod is not, or not in a state for it."""
        pod = self.pod(pod_id)
        if action not in ACTIONS[pod.status]:
            raise Refused(409, "Action not valid for current pod status")
        if pod.locked and action in ("stop", "restart"):
            raise Refused(409, "pod is locked")
        if action == "start":
            self._start(pod)
        elif action == "stop":
            self._stop(pod)
        elif action == "restart":
            self._reset(pod)
        else:
            self.terminate(pod_id)
        self.settle()
        return pod

    def terminate(self, pod_id: str) -> None:
        """Gone for good, or so it says. Raises Refused where there is none."""
        pod = self.pod(pod_id)
        if not self.faults.take("delete-ignored", self._occasion(pod)):
            self._end(pod)

    def change(self, pod_id: str, wish: Wish, *, locked: bool | None = None) -> Pod:
        """Another configuration. A running container is reset, its disk wiped."""
        pod = self.pod(pod_id)
        resets = replace(wish, name=pod.wish.name) != pod.wish
        pod.wish = wish
        pod.locked = pod.locked if locked is None else locked
        if resets and pod.status == RUNNING:
            self._reset(pod)
        self._changed(pod)
        self.settle()
        return pod

    def pod(self, pod_id: str) -> Pod:
        """One that is not gone. Raises Refused."""
        self.settle()
        pod = self.pods.get(pod_id)
        if pod is None or pod.status == TERMINATED:
            raise Refused(404, "pod not found")
        return pod

    def live(self) -> list[Pod]:
        """All that are not gone, the newest first."""
        self.settle()
        return [p for p in reversed(self.pods.values()) if p.status != TERMINATED]

    def create_volume(self, name: str, size_gb: int, data_center: str, type: str = "") -> Volume:
        """Raises Refused for a data centre that has none."""
        self.settle()
        center = self.catalogue.data_centers.get(data_center)
        if center is None or not center.volume_types:
            able = ", ".join(d.id for d in self.catalogue.data_centers.values() if d.volume_types)
            raise Refused(400, f"Data center {data_center} does not support network volumes. Supported: {able}")
        if type and type not in center.volume_types:
            raise Refused(400, f"Data center {data_center} has no network volumes of type {type}.")
        volume = Volume(
            new_id(self.chance, 10), name, size_gb, data_center, type or center.volume_types[0], self.t
        )  # fmt: skip
        self.volumes[volume.id] = volume
        return volume

    # money

    def bill(self, pod_id: str | None = None) -> float:
        """Dollars so far: of one pod, or of all that ever were."""
        self.settle()
        return sum(p.meter.usd(self.t) for p in self.pods.values() if pod_id in (None, p.id))

    @property
    def balance_usd(self) -> float:
        return self.credit_usd - sum(p.meter.usd(self.t) for p in self.pods.values())

    @property
    def usd_per_hour(self) -> float:
        return sum(p.meter.usd_per_hour for p in self.pods.values())

    # what containers tell

    def container_said(self, pod_id: str, text: str) -> None:
        self._say(self.pods[pod_id], "container", text)

    def container_ended(self, pod_id: str, boot: int) -> None:
        """Its main program is no more: it is started again after a while, and billed meanwhile."""
        self.settle()
        pod = self.pods[pod_id]
        if pod.status == RUNNING and pod.boot == boot:
            self._say(pod, "system", "container exited, restarting")
            self.effects.append(do.Halt(pod.id, 0.0))
            self._later(self.timing.restart_s, pod, "again")

    # what befalls

    def kill_host(self, pod_id: str) -> None:
        """The machine dies: its containers are gone, what it says of them is old for a while, then ERROR."""
        pod = self.pod(pod_id)
        self._host(pod).dead = True
        if not pod.is_paid_compute:
            return
        self.effects.append(do.Halt(pod.id, 0.0))
        pod.boot += 1  # nothing of this start comes any more
        pod.cursed = "host-gone"
        self._later(DIES_UNSEEN_S, pod, "error")

    def fill_host(self, pod_id: str) -> None:
        """Somebody else takes what is free on a pod's machine."""
        self._host(self.pod(pod_id)).free = 0

    def preempt(self, pod_id: str, after_s: float = 0.0) -> None:
        """A pod is taken away, as a spot pod is."""
        self._later(after_s, self.pod(pod_id), "preempt")

    def settle(self) -> None:
        """Let happen what is due by now, in order, each at its own time."""
        now = max(self._clock(), self.t)
        while True:
            due = self._due[0][0] if self._due and self._due[0][0] <= now else now
            broke = self._broke_at(due)
            if broke is not None:
                self.t = broke
                self._go_broke()
                continue
            self.t = max(self.t, due)
            if not self._due or self._due[0][0] > now:
                return
            _, _, pod_id, boot, what = heapq.heappop(self._due)
            pod = self.pods[pod_id]
            if boot == pod.boot and pod.status != TERMINATED:
                self._happen(pod, what)

    # helpers: money

    def _broke_at(self, until: float) -> float | None:
        """When, before a moment, the balance is used up; None where it lasts."""
        rate = sum(p.meter.usd_per_hour for p in self.pods.values() if p.is_paid_compute) / 3600
        if rate <= 0:
            return None
        at = self.t + max(0.0, self.balance_usd) / rate
        return at if at <= until else None

    def _go_broke(self) -> None:
        for pod in [p for p in self.pods.values() if p.is_paid_compute]:
            self._say(pod, "system", "account balance is zero")
            if pod.wish.volume:
                self._halt(pod)
            else:
                self._end(pod)

    def _check_money(self, gpu: Gpu, wish: Wish) -> None:
        occasion = self._occasion(wish=wish)
        price = gpu.usd_per_hour(wish.cloud) * wish.count
        if self.faults.take("no-balance", occasion) or self.balance_usd < price:  # an hour's worth is asked for
            raise Refused(402, NO_BALANCE)
        if self.faults.take("spend-limit", occasion) or self.usd_per_hour + price > self.spend_limit_usd:
            raise Refused(400, SOLD_OUT)  # live, it can't be told from capacity

    def _bill(self, pod: Pod) -> None:
        runs = pod.is_paid_compute
        pod.meter.set("gpu", pod.usd_per_hour if runs else 0.0, self.t)
        alive = pod.status != TERMINATED
        disk = disk_usd_per_hour(pod.wish.disk_gb, pod.wish.volume_gb, runs) if alive else 0.0
        pod.meter.set("disk", disk, self.t)

    # helpers: places

    def _gpu(self, wish: Wish) -> Gpu:
        gpu = self.catalogue.gpus.get(wish.gpu)
        if gpu is None:
            raise Refused(400, f"Unknown GPU type: {wish.gpu}")
        if wish.count > gpu.max_count:
            raise Refused(400, f"GPU count must be at most {gpu.max_count} for {gpu.id}")
        return gpu

    def _place(self, wish: Wish) -> Host:
        centers = wish.data_centers
        unknown = [c for c in centers if c not in self.catalogue.data_centers]
        if unknown:
            raise Refused(400, f"Unknown data center: {', '.join(unknown)}")
        if wish.volume:
            volume = self.volumes.get(wish.volume)
            if volume is None:
                raise Refused(404, "network volume not found")
            if wish.cloud == "COMMUNITY":
                raise Refused(400, "Network volumes are only available in Secure Cloud.")
            if centers and volume.data_center not in centers:
                raise Refused(
                    400,
                    f"Network volume {volume.id} is in {volume.data_center}; the pod must be in the same data center.",
                )
            centers = (volume.data_center,)
        occasion = self._occasion(wish=replace(wish, data_centers=centers))
        for name in ("sold-out", "sold-out-late"):
            if self.faults.take(name, occasion):
                raise Refused(400, SOLD_OUT)
        gpu = self.catalogue.gpus[wish.gpu]
        host = self.machines.find(wish.gpu, wish.count, centers, wish.min_cuda, wish.cudas)
        if wish.bid_usd is not None and (wish.bid_usd < gpu.spot_usd or host is None):
            raise Refused(400, SPOT_NONE)
        if host is None or (wish.cloud == "COMMUNITY" and wish.data_centers):  # seen: community has no data centres
            raise Refused(400, SOLD_OUT)
        return host

    def _host(self, pod: Pod) -> Host:
        return self.machines.hosts[pod.host]

    # helpers: a pod's life

    def _happen(self, pod: Pod, what: str) -> None:
        if what == "machine":
            self._boot(pod)
        elif what == "run":
            self._run(pod, wipe=True)
        elif what == "again":
            self._say(pod, "system", "start container")
            self.effects.append(do.Launch(pod.id, wipe=False))
            self._plague(pod)
            if pod.has_address:
                self._later(self.timing.sshd_s, pod, "sshd")
        elif what == "address":
            pod.has_address = True
            late = self.faults.take("late-ssh", self._occasion(pod))
            self._later(self.timing.sshd_s + (late.seconds_or(90.0) if late else 0.0), pod, "sshd")
        elif what == "sshd":
            self.effects.append(do.OpenSsh(pod.id))
        elif what == "error":
            pod.status = ERROR
            pod.has_address = False
            self._bill(pod)
        elif what == "kill-main":
            self.effects.append(do.KillMain(pod.id))
        elif what == "host-gone":
            self.kill_host(pod.id)
        elif what == "preempt":
            self._say(pod, "system", "spot instance reclaimed")
            self.effects.append(do.Term(pod.id))
            self._later(SPOT_NOTICE_S, pod, "taken")
        elif what == "taken":
            self._halt(pod, grace=False)
        elif what == "broke":
            self.credit_usd -= self.balance_usd
        self._changed(pod)

    def _boot(self, pod: Pod) -> None:
        pod.status = STARTING
        self._say(pod, "system", "start container")
        slow = self.faults.take("slow-boot", self._occasion(pod))
        self._later(self.timing.start_s + (slow.seconds_or(600.0) if slow else 0.0), pod, "run")

    def _run(self, pod: Pod, *, wipe: bool) -> None:
        if pod.cursed == "pod-error":
            self._later(0.0, pod, "error")
            return
        pod.status = RUNNING
        pod.started_at = self.t
        pod.port = self._next_port() or self.chance.randrange(10000, 60000)
        pod.zero_gpu = bool(self.faults.take("zero-gpu", self._occasion(pod)))
        self.effects.append(do.Launch(pod.id, wipe=wipe))
        self._later(self.timing.address_s, pod, "address")
        self._plague(pod)

    def _plague(self, pod: Pod) -> None:
        """What befalls it some time after its container has begun."""
        occasion = self._occasion(pod)
        loop = self.faults.take("restart-loop", occasion)
        if loop:
            self._later(loop.seconds_or(3.0), pod, "kill-main")
        for name, what in (("host-gone", "host-gone"), ("balance-gone", "broke")):
            fault = self.faults.take(name, occasion)
            if fault:
                self._later(fault.seconds_or(60.0), pod, what)
        taken = self.faults.take("preempted", occasion) if pod.wish.bid_usd is not None else None
        if taken:
            self._later(taken.seconds_or(60.0), pod, "preempt")

    def _start(self, pod: Pod) -> None:
        host = self._host(pod)
        full = self.faults.take("host-full", self._occasion(pod))
        if full or host.free < pod.wish.count or host.dead:
            raise Refused(400, HOST_FULL[full.text if full else 0])
        if self.balance_usd < pod.usd_per_hour:
            raise Refused(402, NO_BALANCE)
        if pod.status == ERROR:
            self._give_back(pod)
        host.free -= pod.wish.count
        pod.boot += 1
        pod.cursed = ""
        stale = self.faults.take("stale-port", self._occasion(pod)) if pod.old_port else None
        if stale:
            pod.stale_port_reads = stale.reads
            self.effects.append(do.Stranger(pod.id, pod.old_port))
        self._boot(pod)
        self._bill(pod)
        self._changed(pod)

    def _stop(self, pod: Pod) -> None:
        if self.faults.take("stop-ignored", self._occasion(pod)):
            pod.ignored_stop = True
            return
        self._halt(pod)

    def _halt(self, pod: Pod, *, grace: bool = True) -> None:
        """Its container ends, its GPUs are free for others; its disk is gone, its volume stays."""
        self._give_back(pod)
        self._end_container(pod, grace=grace)
        pod.status = EXITED
        self._say(pod, "system", "stop container")
        self._bill(pod)
        self._changed(pod)

    def _reset(self, pod: Pod) -> None:
        self._end_container(pod)
        pod.status = STARTING
        self._later(self.timing.start_s + self.timing.stop_grace_s, pod, "run")
        self._bill(pod)
        self._changed(pod)

    def _end(self, pod: Pod) -> None:
        if pod.status == TERMINATED:
            return
        self._give_back(pod)
        self._end_container(pod)
        self.effects.append(do.Remove(pod.id, keep_volume=False))
        pod.status, pod.gone_at = TERMINATED, self.t
        self._bill(pod)
        self._changed(pod)

    def _give_back(self, pod: Pod) -> None:
        host = self._host(pod)
        if pod.is_paid_compute:
            host.free = min(host.size, host.free + pod.wish.count)

    def _end_container(self, pod: Pod, *, grace: bool = True) -> None:
        pod.boot += 1
        pod.old_port, pod.has_address = pod.port or pod.old_port, False
        pod.port, pod.stale_port_reads = 0, 0
        self.effects.append(do.Halt(pod.id, self.timing.stop_grace_s if grace else 0.0))

    def _with_keys(self, wish: Wish) -> Wish:
        env = dict(wish.env)
        if wish.start_ssh and self.ssh_keys:
            env.setdefault("PUBLIC_KEY", "\n".join(self.ssh_keys))
        if wish.start_jupyter:
            env.setdefault("JUPYTER_PASSWORD", new_id(self.chance, 16))
        return replace(wish, env=env)

    # helpers: the rest

    def _later(self, seconds: float, pod: Pod, what: str) -> None:
        self._order += 1
        heapq.heappush(self._due, (self.t + seconds, self._order, pod.id, pod.boot, what))

    def _say(self, pod: Pod, source: str, text: str) -> None:
        pod.log.append(Line(self.t, len(pod.log) + 1, source, text))

    def _changed(self, pod: Pod) -> None:
        if self.look is not None:
            pod.past.append((self.t, self.look(pod, self.t)))

    def _occasion(self, pod: Pod | None = None, wish: Wish | None = None) -> Occasion:
        meant = wish or (pod.wish if pod else None)
        assert meant is not None
        centers = (pod.data_center,) if pod else tuple(meant.data_centers)
        return Occasion(meant.name, meant.gpu, centers, t=self.t - self.began)


def summary(pod: Pod, t: float) -> Mapping[str, Any]:
    """A line about a pod, for people."""
    return {
        "id": pod.id,
        "name": pod.wish.name,
        "status": pod.status,
        "gpu": pod.wish.gpu,
        "count": pod.wish.count,
        "data_center": pod.data_center,
        "usd_per_hour": round(pod.meter.usd_per_hour, 4),
        "usd": round(pod.meter.usd(t), 6),
        "age_s": round(t - pod.created_at, 1),
    }


__all__ = ["PROVISIONING", "Cloud", "Refused", "summary"]
