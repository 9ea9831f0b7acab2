"""This machine as a pod: nothing is rented, nothing is billed, and nothing but the run can be ended."""

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath

from podctl.errors import MissingHere
from podctl.pods import Boot, Can, Offer, Pod, PodSpec
from podctl.settings import state_dir

LOCAL_POD = "local"


class LocalProvider:
    """`pod.provider: local`. Its volume and its disk are folders of the state directory."""

    name = "local"
    can = Can(rents=False)

    def offers(self, spec: PodSpec) -> Sequence[Offer]:
        """The one machine there is, at no price."""
        return [Offer(provider=self.name, gpu="", gpu_count=0, usd_per_hour=0.0, ref=platform.node())]

    def create(self, name: str, offer: Offer, spec: PodSpec, boot: Boot) -> Pod:
        """Makes the folders; repeating it is harmless. Raises MissingHere where they can't be made."""
        pod = self._pod("running", name)
        try:
            for directory in (pod.volume_dir, pod.disk_dir):
                (state_dir() / directory).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise MissingHere(
                f"{e.filename} can't be made: {e.strerror}", "set PODCTL_HOME to a folder of yours"
            ) from e
        return pod

    def start(self, pod_id: str) -> Pod:
        """It is on already, since it is asking."""
        return self.get(pod_id)

    def get(self, pod_id: str) -> Pod:
        """This machine; `gone` where its volume was removed, or for another id."""
        here = pod_id == LOCAL_POD and (state_dir() / "volume").is_dir()
        return self._pod("running" if here else "gone")

    def list(self) -> Sequence[Pod]:
        """This machine, once it has been used."""
        pod = self.get(LOCAL_POD)
        return [pod] if pod.state == "running" else []

    def stop(self, pod_id: str) -> None:
        """Nothing to stop but the run, which its runner does; this machine stays on."""

    def terminate(self, pod_id: str) -> None:
        """Nothing to give back; the volume stays."""

    def _pod(self, state: str, name: str = LOCAL_POD) -> Pod:
        root = PurePosixPath(state_dir())
        return Pod(
            provider=self.name,
            id=LOCAL_POD,
            name=name,
            state=state,
            usd_per_hour=0.0,
            volume_dir=root / "volume",
            disk_dir=root / "disk",
            python=local_python(),
        )


def local_python() -> str:
    """The Python that trains on this machine: `$PODCTL_PYTHON`, else the one that podctl runs on."""
    return os.environ.get("PODCTL_PYTHON") or sys.executable
