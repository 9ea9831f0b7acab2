"""What becomes of pods by itself: boots, crashes, machines that die, a balance that ends; and what it costs.

Pure: time is handed in, containers are effects that somebody else carries out. What is due happens in `settle`, at the
moment it was due, so that a clock that is moved by an hour bills and ends things as if the hour had gone by.
"""

import heapq
import random
from collections.abc import Callable
from typing import Any

from podctl.sim import effects as do
from podctl.sim.catalogue import Catalogue, Stock
from podctl.sim.faults import Faults, Occasion
from podctl.sim.meter import disk_usd_per_hour
from podctl.sim.records import ERROR, EXITED, RUNNING, STARTING, TERMINATED, Line, Pod, Timing, Volume, Wish
from podctl.sim.stock import Host, Machines

SPEND_LIMIT_USD = 80.0
DIES_UNSEEN_S = 30.0  # the status of a pod whose machine died
SPOT_NOTICE_S = 5.0


class Lives:
    """The pods of one account, as time goes by."""

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

    # what containers tell, and what befalls

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
            self._lose_host(pod)
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

    def _lose_host(self, pod: Pod) -> None:
        """The machine dies: its containers are gone, what it says of them is old for a while, then ERROR."""
        self._host(pod).dead = True
        if not pod.is_paid_compute:
            return
        self.effects.append(do.Halt(pod.id, 0.0))
        pod.boot += 1  # nothing of this start comes any more
        pod.cursed = "host-gone"
        self._later(DIES_UNSEEN_S, pod, "error")

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

    def _end_container(self, pod: Pod, *, grace: bool = True) -> None:
        pod.boot += 1
        pod.old_port, pod.has_address = pod.port or pod.old_port, False
        pod.port, pod.stale_port_reads = 0, 0
        self.effects.append(do.Halt(pod.id, self.timing.stop_grace_s if grace else 0.0))

    def _give_back(self, pod: Pod) -> None:
        host = self._host(pod)
        if pod.is_paid_compute:
            host.free = min(host.size, host.free + pod.wish.count)

    def _host(self, pod: Pod) -> Host:
        return self.machines.hosts[pod.host]

    # helpers: money

    def _bill(self, pod: Pod) -> None:
        runs = pod.is_paid_compute
        pod.meter.set("gpu", pod.usd_per_hour if runs else 0.0, self.t)
        alive = pod.status != TERMINATED
        disk = disk_usd_per_hour(pod.wish.disk_gb, pod.wish.volume_gb, runs) if alive else 0.0
        pod.meter.set("disk", disk, self.t)

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
