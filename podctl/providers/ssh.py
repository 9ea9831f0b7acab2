"""A machine that you have already, reached over SSH: nothing is rented, and nothing but the run can be ended."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from podctl.errors import BadInput
from podctl.pods import Boot, Can, Machine, Offer, Pod, PodSpec, SshAddress


class SshProvider:
    """`pod.provider: ssh`. A pod's id says all that reaches it, so that a run is found again by the ledger alone."""

    name = "ssh"
    can = Can(tunnel=True, rents=False)

    def offers(self, spec: PodSpec) -> Sequence[Offer]:
        """The one machine there is. Raises BadInput where the experiment names none."""
        if spec.machine is None:
            raise BadInput("pod.ssh is missing", "name the machine: ssh: gpubox")
        return [
            Offer(
                provider=self.name,
                gpu="",
                gpu_count=0,
                usd_per_hour=spec.machine.usd_per_hour,
                ref=str(spec.machine.address),
            )
        ]

    def create(self, name: str, offer: Offer, spec: PodSpec, boot: Boot) -> Pod:
        """The machine as it is: it is on already."""
        assert spec.machine is not None
        return replace(pod_of(spec.machine), name=name)

    def start(self, pod_id: str) -> Pod:
        """It is on already, or its owner knows why not."""
        return self.get(pod_id)

    def get(self, pod_id: str) -> Pod:
        """The machine; whether it answers is found out by asking it."""
        return pod_of(machine_of(pod_id))

    def list(self) -> Sequence[Pod]:
        """Nobody keeps a list of machines that nobody rents out."""
        return []

    def stop(self, pod_id: str) -> None:
        """Nothing to stop but the run, which its runner does; the machine stays on."""

    def terminate(self, pod_id: str) -> None:
        """Nothing to give back."""


def pod_of(machine: Machine) -> Pod:
    return Pod(
        provider=SshProvider.name,
        id=id_of(machine),
        name=machine.address.host,
        state="running",
        usd_per_hour=machine.usd_per_hour,
        volume_dir=PurePosixPath(machine.volume_dir),
        disk_dir=PurePosixPath(machine.disk_dir),
        ssh=machine.address,
        python=machine.python,
    )


def id_of(machine: Machine) -> str:
    """`ssh://me@gpubox:22/data/podctl?disk=…`: no secret is in it, a key only by its path."""
    a = machine.address
    more = {"disk": machine.disk_dir, "key": a.key, "python": machine.python, "host_key": a.host_key}
    more["usd"] = f"{machine.usd_per_hour:g}" if machine.usd_per_hour else ""
    query = urlencode({k: v for k, v in more.items() if v}, quote_via=quote)
    volume = machine.volume_dir if machine.volume_dir.startswith("/") else "/" + machine.volume_dir
    host = f"[{a.host}]" if ":" in a.host else quote(a.host)
    user, port = f"{quote(a.user)}@" * bool(a.user), f":{a.port}" if a.port else ""
    return f"ssh://{user}{host}{port}{quote(volume, safe='/~')}?{query}"


def machine_of(pod_id: str) -> Machine:
    """What `id_of` wrote. Raises BadInput for anything else."""
    url = urlsplit(pod_id)
    host = unquote(url.netloc.rpartition("@")[2].rpartition(":")[0] if url.port else url.netloc.rpartition("@")[2])
    if url.scheme != "ssh" or not host:
        raise BadInput(f"{shlex.quote(pod_id)} is no machine", "podctl ps --all lists the runs there are")
    more = {k: v[0] for k, v in parse_qs(url.query).items()}
    path = unquote(url.path)
    address = SshAddress(
        host=host.strip("[]"),  # urlsplit's own hostname would be in lower case, an alias may not be
        port=url.port,
        user=unquote(url.username or ""),
        key=more.get("key", ""),
        host_key=more.get("host_key", ""),
        user_config=True,
    )
    return Machine(
        address=address,
        volume_dir=path[1:] if path.startswith("/~") else path,
        disk_dir=more.get("disk", Machine.disk_dir),
        python=more.get("python", ""),
        usd_per_hour=float(more.get("usd", 0)),
    )
