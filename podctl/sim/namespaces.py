"""Containers with walls, out of Linux namespaces: a root, processes, a name, a /tmp and a `/workspace` of their own.

Needs root. The network is this machine's, so that sshd answers at a port of loopback as in a pod without walls. The
container disk lies over this machine's root, which the pod sees and cannot change.
"""

import os
import shutil
import sys
from pathlib import Path

from podctl.errors import MissingHere
from podctl.sim.backend import Entrance
from podctl.sim.container import HERE, ProcessBackend
from podctl.sim.processes import MARK
from podctl.sim.records import Pod
from podctl.sim.shapes import Outlook
from podctl.sim.stubs import write_nvidia_smi

HIDDEN = ("/tmp", "/run", "/root", "/dev")  # folders that a pod has of its own
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGNS = "/run/podctl-sim"


def why_not() -> str:
    """Why there can be no such pods here; "" where there can."""
    if sys.platform != "linux":
        return "namespaces are Linux"
    if os.geteuid() != 0:
        return "namespaces need root here"
    return "" if shutil.which("pivot_root", path=PATH) else "missing: pivot_root"


class NamespaceBackend(ProcessBackend):
    """Pods as they see themselves on RunPod: nothing of where they really are shows."""

    walls = ("--walls",)

    def prepare(self) -> None:
        """Raises MissingHere."""
        reason = why_not()
        if reason:
            raise MissingHere(f"pods with walls can't be made here: {reason}", "leave the backend at process")
        self.outlook = Outlook(env={"PODCTL_PYTHON": sys.executable})

    def entrance(self, pod: Pod) -> Entrance:
        inside = super().entrance(pod)
        argv = ["nsenter", "-t", str(self.main_pid(pod.id)), "-m", "-u", "-i", "-p", "--", "/bin/sh", "-i"]
        return Entrance(argv, inside.env, "/")

    def lay_out(self, pod: Pod) -> None:
        home, disk = self.home(pod.id), self.disk_dir(pod.id)
        for folder in ("upper/usr/local/bin", "work", "root"):
            (disk / folder).mkdir(parents=True, exist_ok=True)
        (disk / "upper").chmod(0o755)
        write_nvidia_smi(
            disk / "upper/usr/local/bin/nvidia-smi", pod.wish.gpu, 0 if pod.zero_gpu else pod.wish.count
        )  # fmt: skip
        shutil.copy2(HERE / "start.sh", disk / "upper/start.sh")
        (home / "binds").write_text("".join(f"{p}\n" for p in _interpreters()))

    def program(self, pod: Pod) -> list[str]:
        volume = self.real_mount(pod) if pod.wish.mount else ""
        builder = ["bash", str(HERE / "pod-root.sh"), str(self.home(pod.id)), str(self.root / "time"), volume]
        return [*builder, pod.wish.mount, "--", *(self.words(pod.wish.args) or ["/start.sh"])]

    def environment(self, pod: Pod) -> dict[str, str]:
        return {
            "HOME": "/root",
            "PATH": PATH,
            "LANG": "C.UTF-8",
            MARK: self.mark(pod.id),
            "PODCTL_SIM_SSHD": self.sshd,
            "PODCTL_SIM_SSH_PORT": str(pod.port),
            "PODCTL_SIM_SSH_GATE": f"{SIGNS}/signs/gate",
            "PODCTL_CLOCK_FILE": f"{SIGNS}/time/clock",
            "PODCTL_PYTHON": sys.executable,
        }


def _interpreters() -> list[str]:
    """Folders of this Python that a pod's own folders would hide."""
    known = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parents[1])}
    hidden = sorted(p for p in known if any(Path(p).is_relative_to(h) for h in HIDDEN))
    return [p for p in hidden if not any(p != q and Path(p).is_relative_to(q) for q in hidden)]
