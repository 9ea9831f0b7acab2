"""A create call's body and what it wishes for, both ways; and what of it may be changed later."""

from typing import Any

from podctl.sim.records import Pod, Wish
from podctl.sim.refusals import SOLD_OUT, Refused


def read_wish(body: dict[str, Any]) -> Wish:
    """A create call's body. Raises Refused for what breaks a rule between its fields."""
    if "templateId" in body:
        raise Refused(404, "template not found")
    if ("gpu" in body) == ("cpu" in body):
        raise Refused(400, "exactly one of gpu or cpu must be set")
    if "cpu" in body:
        raise Refused(400, SOLD_OUT)
    if not body.get("image"):
        raise Refused(400, "image is required unless templateId is set")
    if "disk" not in body:  # seen 2026-08
        raise Refused(400, "You must provide a template id or pod configuration parameters.")
    gpu, mounts = body["gpu"], body.get("mounts") or {}
    if gpu.get("allowedCudaVersions") and gpu.get("minCudaVersion"):
        raise Refused(400, "allowedCudaVersions and minCudaVersion are mutually exclusive")
    persistent, network = mounts.get("persistent"), mounts.get("network") or []
    if persistent and network:
        raise Refused(400, "mounts.persistent and mounts.network are mutually exclusive")
    return Wish(
        name=body["name"],
        image=body["image"],
        gpu=gpu["id"],
        count=gpu.get("count", 1),
        args=body.get("args", ""),
        disk_gb=body["disk"],
        env=body.get("env", {}),
        ports=tuple(body.get("ports", ())),
        cloud=body.get("cloud", "SECURE"),
        data_centers=tuple(body.get("dataCenterIds", ())),
        min_cuda=gpu.get("minCudaVersion", ""),
        cudas=tuple(gpu.get("allowedCudaVersions", ())),
        volume=network[0]["volumeId"] if network else "",
        volume_gb=persistent["size"] if persistent else 0,
        mount=network[0]["path"] if network else persistent["path"] if persistent else "",
        registry=body.get("registry"),
        start_ssh=body.get("startSsh", False),
        start_jupyter=body.get("startJupyter", False),
    )


def as_body(wish: Wish) -> dict[str, Any]:
    """The other way round, for a PATCH on top of it."""
    gpu: dict[str, Any] = {"id": wish.gpu, "count": wish.count}
    if wish.min_cuda:
        gpu["minCudaVersion"] = wish.min_cuda
    if wish.cudas:
        gpu["allowedCudaVersions"] = list(wish.cudas)
    mounts: dict[str, Any] = {}
    if wish.volume:
        mounts = {"network": [{"volumeId": wish.volume, "path": wish.mount}]}
    elif wish.volume_gb:
        mounts = {"persistent": {"size": wish.volume_gb, "path": wish.mount}}
    return {
        "name": wish.name, "image": wish.image, "gpu": gpu, "args": wish.args, "disk": wish.disk_gb,
        "env": dict(wish.env), "ports": list(wish.ports), "cloud": wish.cloud, "dataCenterIds": list(wish.data_centers),
        "mounts": mounts, "registry": wish.registry, "startSsh": wish.start_ssh, "startJupyter": wish.start_jupyter,
    }  # fmt: skip


def check_mounts(mounts: dict[str, Any], pod: Pod) -> None:
    """What of its storage a pod may change: the path, and its own disk's size."""
    if "network" in mounts and not mounts["network"]:
        raise Refused(400, "clearing mounts is not supported")
    if mounts.get("network"):
        if not pod.wish.volume:
            raise Refused(400, "mount kind cannot be changed")
        if mounts["network"][0]["volumeId"] != pod.wish.volume:
            raise Refused(400, "volumeId cannot be changed")
    if "persistent" in mounts and not pod.has_own_disk:
        raise Refused(400, "mount kind cannot be changed")
