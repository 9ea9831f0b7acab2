"""RunPod's JSON and podctl's nouns, one into the other. Pure; what it does not know, it passes over."""

import base64
import gzip
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from podctl.errors import BadInput
from podctl.pods import Boot, Offer, Pod, PodSpec, SshAddress, Volume
from podctl.providers.runpod.catalogue import PROVIDER
from podctl.providers.runpod.gpu_names import short
from podctl.providers.runpod.loose import mapping, number

# An official image that RunPod's own API description names (2026-08): Ubuntu 24.04, Python 3.12, sshd from PUBLIC_KEY.
DEFAULT_IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
MOUNT = "/workspace"
DISK_DIR = "~/.cache/podctl"
MIN_CUDA = "13.0"  # torch 2.13.0 as the public index serves it
LEAST_PERSISTENT_GB = 10
MOST_VARIABLES = 50
# The boot guard goes on from a file that it can start again: in /tmp, but for emulated pods, which share that one.
START = (
    'bash -c \'d=${PODCTL_GUARD_DIR:-/tmp} && mkdir -p "$d"'
    ' && printf %s "$PODCTL_BOOT" | base64 -d | gunzip >"$d/podctl-boot" && exec sh "$d/podctl-boot"\''
)
STATES = {
    "PROVISIONING": "starting",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "stopped",
    "ERROR": "broken",
    "TERMINATED": "gone",
}


def create_body(name: str, offer: Offer, spec: PodSpec, boot: Boot, volume_id: str) -> dict[str, Any]:
    """What `POST /pods` is sent. Raises BadInput for more variables than RunPod takes."""
    body: dict[str, Any] = {
        "name": name,
        "image": spec.image or DEFAULT_IMAGE,
        "cloud": "SECURE",  # network volumes are nowhere else
        "gpu": {"id": offer.ref, "count": offer.gpu_count, "minCudaVersion": MIN_CUDA},
        "disk": spec.disk_gb,
        "ports": ["22/tcp"],
        "mounts": mounts(spec, volume_id),
        "env": environment(boot),
        "startSsh": True,  # the account's keys, where PUBLIC_KEY names none; they are never changed
    }
    if boot.start_script:
        body["args"] = START
    if offer.data_center:
        body["dataCenterIds"] = [offer.data_center]
    return body


def mounts(spec: PodSpec, volume_id: str) -> dict[str, Any]:
    if volume_id:
        return {"network": [{"volumeId": volume_id, "path": MOUNT}]}
    return {"persistent": {"size": max(LEAST_PERSISTENT_GB, spec.disk_gb), "path": MOUNT}}


def packed(script: str) -> str:
    """A script for an environment variable, whose limit nobody tells: half the size of its text."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode("ascii")


def environment(boot: Boot) -> dict[str, str]:
    """The container's variables. Raises BadInput."""
    env = dict(boot.env)
    if boot.public_key:
        env["PUBLIC_KEY"] = boot.public_key.strip()
    if boot.start_script:
        env["PODCTL_BOOT"] = packed(boot.start_script)
    for name, value in env.items():
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise BadInput(f"pod.env.{name} holds bytes that are no text", "correct it, or send it as a file")
    if len(env) > MOST_VARIABLES:
        raise BadInput(
            f"{len(env)} environment variables are too many: RunPod takes {MOST_VARIABLES}",
            "move some of pod.env into a file of the project",
        )
    return env


def pod_of(told: Mapping[str, Any], ssh_key: str = "") -> Pod:
    """A pod as RunPod tells it; `ssh_key`: path of the private key that opens it."""
    gpu, env, ssh = mapping(told.get("gpu")), mapping(told.get("env")), mapping(told.get("ssh"))
    state = STATES.get(str(told.get("status") or "").upper(), "starting")  # a state that is new: not there, not gone
    proxy = mapping(ssh.get("proxy"))
    cost = max(0.0, number(told.get("cost")) or 0.0)
    path, volume = mount_of(told.get("mounts"))
    return Pod(
        provider=PROVIDER,
        id=str(told.get("id") or ""),
        name=str(told.get("name") or ""),
        state=state,
        usd_per_hour=0.0 if state in ("stopped", "gone") else cost,  # RunPod may go on telling the price (seen 2026)
        volume_dir=PurePosixPath(path),
        disk_dir=PurePosixPath(DISK_DIR),
        started_at=unix_time(told.get("startedAt")),
        gpu=short(str(gpu.get("id") or "")),
        ssh=address_of(ssh.get("direct"), ssh_key) if state in ("starting", "running") else None,
        python=str(env.get("PODCTL_PYTHON") or ""),
        gpu_count=max(1, int(number(gpu.get("count")) or 1)) if gpu else 0,
        data_center=str(told.get("dataCenterId") or ""),
        volume=volume,
        created_at=unix_time(told.get("createdAt")),
        proxy=str(proxy.get("command") or ""),
        host_id=host_id(str(proxy.get("username") or "")),
    )


def gone(pod_id: str) -> Pod:
    """What is left of a pod that RunPod knows no more. A new one may be unknown for a while too: the caller judges."""
    return Pod(PROVIDER, pod_id, "", "gone", 0.0, PurePosixPath(MOUNT), PurePosixPath(DISK_DIR))


def mount_of(told: Any) -> tuple[str, str]:
    """Where the data is mounted, and the network volume's id."""
    mounts = mapping(told)
    network = mounts.get("network")
    for entry in network if isinstance(network, list) else []:
        entry = mapping(entry)
        if entry.get("path"):
            return str(entry["path"]), str(entry.get("volumeId") or "")
    return str(mapping(mounts.get("persistent")).get("path") or MOUNT), ""


def address_of(told: Any, key: str) -> SshAddress | None:
    """Where a pod's own sshd answers; None before it has a public port."""
    direct = mapping(told)
    host, port = direct.get("host"), direct.get("port")
    if not isinstance(host, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:-]*", host):
        return None
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        return None
    user = str(direct.get("username") or "root")
    return SshAddress(
        host=host, port=port, user=user if re.fullmatch(r"[A-Za-z0-9_.][\w.-]*", user) else "root", key=key
    )


def host_id(proxy_user: str) -> str:
    """The machine's part of the proxy's user name, `POD-64411eb2`.

    Undocumented: it reads as the machine's own address, 100.64.0.0/10, in hexadecimal (seen 2026-08).
    """
    found = re.fullmatch(r"[^-]+-([0-9a-f]{8})", proxy_user)
    return found[1] if found else ""


def volume_of(told: Mapping[str, Any]) -> Volume:
    size = number(told.get("size")) or 0
    return Volume(str(told.get("id") or ""), str(told.get("name") or ""), int(size), str(told.get("dataCenter") or ""))


def unix_time(told: Any) -> float | None:
    """RFC 3339 to Unix time; None for anything else."""
    if not isinstance(told, str):
        return None
    try:
        moment = datetime.fromisoformat(told)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo else None
