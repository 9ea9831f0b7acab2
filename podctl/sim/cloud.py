"""What people may ask of the cloud: pods, volumes, actions; where a pod finds room, and when it is refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from podctl.sim import effects as do
from podctl.sim.catalogue import Gpu
from podctl.sim.lives import Lives
from podctl.sim.records import ACTIONS, ERROR, RUNNING, TERMINATED, Pod, Volume, Wish
from podctl.sim.refusals import HOST_FULL, NO_BALANCE, SOLD_OUT, SPOT_NONE, Refused
from podctl.sim.stock import Host, new_id


class Cloud(Lives):
    """One account's part of it. Every method first lets happen what is due by `now()`."""

    def create(self, wish: Wish) -> Pod:
        """A pod, billed from now on. Raises Refused."""
        self.settle()
        gpu = self._gpu(wish)
        self._check_money(gpu, wish)
        host = self._place(wish)
        if self.faults.take("no-image", self._occasion(wish=wish)):
            raise Refused(422, f"Image {wish.image} was not found in its registry.")
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

    def kill_host(self, pod_id: str) -> None:
        """The machine below a pod dies."""
        self._lose_host(self.pod(pod_id))

    def kill_main(self, pod_id: str) -> None:
        """A container's main program dies."""
        self.effects.append(do.KillMain(self.pod(pod_id).id))

    def fill_host(self, pod_id: str) -> None:
        """Somebody else takes what is free on a pod's machine."""
        self._host(self.pod(pod_id)).free = 0

    def preempt(self, pod_id: str, after_s: float = 0.0) -> None:
        """A pod is taken away, as a spot pod is."""
        self._later(after_s, self.pod(pod_id), "preempt")

    # helpers

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

    def _check_money(self, gpu: Gpu, wish: Wish) -> None:
        occasion = self._occasion(wish=wish)
        price = gpu.usd_per_hour(wish.cloud) * wish.count
        if self.faults.take("no-balance", occasion) or self.balance_usd < price:  # an hour's worth is asked for
            raise Refused(402, NO_BALANCE)
        if self.faults.take("spend-limit", occasion) or self.usd_per_hour + price > self.spend_limit_usd:
            raise Refused(400, SOLD_OUT)  # live, it can't be told from capacity

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

    def _with_keys(self, wish: Wish) -> Wish:
        env = dict(wish.env)
        if wish.start_ssh and self.ssh_keys:
            env.setdefault("PUBLIC_KEY", "\n".join(self.ssh_keys))
        if wish.start_jupyter:
            env.setdefault("JUPYTER_PASSWORD", new_id(self.chance, 16))
        return replace(wish, env=env)


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


__all__ = ["HOST_FULL", "NO_BALANCE", "SOLD_OUT", "Cloud", "Refused", "summary"]
