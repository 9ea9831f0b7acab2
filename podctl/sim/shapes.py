"""How pods, volumes, the catalogue and the bill look in REST v2."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from podctl.sim.catalogue import DataCenter, Gpu
from podctl.sim.cloud import Cloud
from podctl.sim.faults import Occasion
from podctl.sim.records import ACTIONS, ERROR, EXITED, PROVISIONING, RUNNING, STARTING, TERMINATED, Pod, Volume
from remote.clock import utc

CUDA_VERSIONS = ("12.8", "13.0")


@dataclass(frozen=True)
class Outlook:
    """What is special about where these pods really run: everything else looks as at RunPod."""

    ip: str = "127.0.0.1"
    user: str = "root"
    proxy: tuple[str, int] = ("ssh.runpod.io", 22)
    mount_dir: Callable[[Pod], str] | None = None  # where a volume really is; None: where it was asked for
    env: Mapping[str, str] = field(default_factory=dict)  # shown among the pod's own


def pod_json(pod: Pod, t: float, outlook: Outlook) -> dict[str, Any]:
    """A pod as its owner reads it."""
    wish = pod.wish
    runs = pod.status == RUNNING
    has_machine = pod.status in (STARTING, RUNNING, EXITED) or (pod.status == ERROR and pod.started_at is not None)
    port = _shown_port(pod)
    direct = _endpoint(outlook.ip, port, outlook.user) if port and pod.wants_ssh else None
    return {
        "id": pod.id,
        "name": wish.name,
        "image": wish.image,
        "args": wish.args,
        "disk": wish.disk_gb,
        "ports": list(wish.ports),
        "env": {**outlook.env, **wish.env},
        "registry": wish.registry,
        "status": pod.status,
        "actions": list(ACTIONS[pod.status]),
        "mounts": _mounts(pod, outlook),
        "gpu": {"id": wish.gpu, "count": wish.count},
        "cloud": wish.cloud,
        "dataCenterId": pod.data_center if pod.status != PROVISIONING else None,
        "cudaVersion": pod.cuda if has_machine else None,
        "ssh": {"proxy": _proxy(pod.token, outlook.proxy) if has_machine else None, "direct": direct},
        "template": None,
        "cost": 0.0 if pod.status in (EXITED, TERMINATED) else pod.usd_per_hour,
        "locked": pod.locked,
        "globalNetworking": {"enabled": False},
        "runtime": _runtime(pod, t, port, outlook) if runs and (pod.has_address or pod.stale_port_reads) else None,
        "createdAt": utc(pod.created_at),
        "startedAt": utc(pod.started_at) if pod.started_at is not None else None,
    }


def volume_json(volume: Volume) -> dict[str, Any]:
    return {
        "id": volume.id,
        "name": volume.name,
        "size": volume.size_gb,
        "dataCenter": volume.data_center,
        "type": volume.type,
    }


def gpu_json(cloud: Cloud, gpu: Gpu, *, stock: bool, count: int = 1) -> dict[str, Any]:
    """A type; with `stock`, how many could be had, as a hint."""
    shown: dict[str, Any] = {
        "id": gpu.id,
        "name": gpu.name,
        "pool": gpu.pool,
        "manufacturer": "NVIDIA",
        "memory": gpu.memory_gb,
        "secure": True,
        "community": True,
        "price": {"secure": gpu.secure_usd, "community": gpu.community_usd},
        "maxCount": {"secure": gpu.max_count, "community": gpu.max_count},
    }
    if stock:
        centers = [
            {"id": c, "name": cloud.catalogue.data_centers[c].name, "availability": level(cloud, gpu.id, c, count)}
            for c in cloud.machines.centers_with(gpu.id)
        ]
        shown["availability"] = level(cloud, gpu.id, None, count)
        shown["dataCenters"] = [c for c in centers if c["availability"] != "NONE"]
        cudas = sorted({h.cuda for h in cloud.machines.hosts.values() if h.gpu == gpu.id and h.free >= count})
        shown["cudaVersions"] = [{"version": v, "available": v in cudas} for v in CUDA_VERSIONS]
    return shown


def center_json(cloud: Cloud, center: DataCenter, include: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": center.id,
        "name": center.name,
        "region": center.region,
        "globalNetwork": True,
        "networkVolumeTypes": list(center.volume_types),
        "compliance": ["SOC_2_TYPE_2"],
    }
    if "GPU_AVAILABILITY" in include:
        shown["gpuAvailability"] = [
            {"id": gpu.id, "name": gpu.name, "availability": level(cloud, gpu.id, center.id)}
            for gpu in cloud.catalogue.gpus.values()
            if center.id in cloud.machines.centers_with(gpu.id)
        ]
    if "CPU_AVAILABILITY" in include:
        shown["cpuAvailability"] = []
    return shown


def level(cloud: Cloud, gpu: str, center: str | None, count: int = 1) -> str:
    """What the listing says is left."""
    occasion = Occasion(gpu=gpu, data_centers=(center,) if center else (), t=cloud.t - cloud.began)
    fault = cloud.faults.peek("sold-out", occasion)
    if fault and (not fault.data_center or center):
        return "NONE"
    said = cloud.machines.level(gpu, center, count)
    return "HIGH" if said == "NONE" and cloud.faults.peek("sold-out-late", occasion) else said


def _shown_port(pod: Pod) -> int:
    """The port that answers tell: for a while after a start, the one of before."""
    if pod.stale_port_reads:
        return pod.old_port
    return pod.port if pod.status == RUNNING and pod.has_address else 0


def _mounts(pod: Pod, outlook: Outlook) -> dict[str, Any]:
    path = outlook.mount_dir(pod) if outlook.mount_dir else pod.wish.mount
    if pod.wish.volume:
        return {"network": [{"volumeId": pod.wish.volume, "path": path}]}
    return {"persistent": {"size": pod.wish.volume_gb, "path": path}} if pod.has_own_disk else {}


def _endpoint(host: str, port: int, user: str) -> dict[str, Any]:
    return {"host": host, "port": port, "username": user, "command": f"ssh {user}@{host} -p {port}"}


def _proxy(token: str, at: tuple[str, int]) -> dict[str, Any]:
    command = f"ssh {token}@{at[0]}" + f" -p {at[1]}" * (at[1] != 22)
    return {"host": at[0], "port": at[1], "username": token, "command": command}


def _runtime(pod: Pod, t: float, port: int, outlook: Outlook) -> dict[str, Any]:
    ports = [{"private": 22, "public": port, "type": "tcp", "ip": outlook.ip}] if port and pod.wants_ssh else []
    return {
        "uptime": int(t - (pod.started_at or t)),
        "gpus": [{"util": 0, "memoryUtil": 0}] * (0 if pod.zero_gpu else pod.wish.count),
        "cpu": {"util": 3},
        "memory": {"util": 11},
        "ports": ports,
    }
