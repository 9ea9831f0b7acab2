"""Containers that are trees of processes of this user: no root needed, and none of a real container's walls.

A pod's main program is its `args`, really run at every start, with the environment that RunPod gives; without `args`,
`start.sh` of this folder in place of the image's. Its container disk is a folder that is emptied at each start but the
one after a crash. What is left out: a root, a network and a /tmp of its own. So `mounts` tell where a volume really is,
ssh's user is this one, and `/tmp/` in `args` is the pod's own folder.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from podctl.sim import effects as do
from podctl.sim.backend import Entrance, News
from podctl.sim.processes import MARK, Process, end_all, tree
from podctl.sim.records import Pod
from podctl.sim.shapes import Outlook
from podctl.sim.sshd import current_user, free_port, need_sshd
from podctl.sim.stranger import StrangerSshd
from podctl.sim.stubs import write_nvidia_smi

HERE = Path(__file__).parent
ROOT, START, INIT = HERE.parents[1], HERE / "start.sh", HERE / "podinit.py"


@dataclass
class Container:
    """One start of a pod's container."""

    boot: int
    first: "subprocess.Popen[bytes]"  # podinit.py
    kill_at: float | None = None
    told: bool = False  # that it has ended


class ProcessBackend:
    """All containers of one emulated cloud. `given` says what a pod gets from RunPod."""

    walls: Sequence[str] = ()

    def __init__(self, root: Path, given: Callable[[Pod], Mapping[str, str]]) -> None:
        self.sshd, self._given = need_sshd(), given
        self.root = root
        self.pods = Path(tempfile.mkdtemp(prefix="pcsim-", dir="/tmp"))  # short, for sockets; needs no quotes in `args`
        self.outlook = Outlook(user=current_user(), mount_dir=self.real_mount, env={"PODCTL_PYTHON": sys.executable})
        self.strangers: list[StrangerSshd] = []
        self.prepare()
        self._containers: dict[str, Container] = {}
        self._read: dict[str, tuple[int, bytes]] = {}  # how far its log was read, and a line that is not whole yet

    def prepare(self) -> None:
        """What another kind of pod needs beside."""

    def do(self, effect: do.Effect, pod: Pod, now: float) -> None:
        match effect:
            case do.Launch(_, wipe):
                self._launch(pod, wipe=wipe)
            case do.OpenSsh():
                (self.home(pod.id) / "signs" / "gate").touch()
            case do.Term():
                self._signal_first(pod.id, signal.SIGTERM)
            case do.Halt(_, grace_s):
                self._halt(pod.id, now, grace_s)
            case do.KillMain():
                self._signal_first(pod.id, signal.SIGUSR1)
            case do.Remove():
                self._kill(pod.id)
                shutil.rmtree(self.home(pod.id), ignore_errors=True)
                shutil.rmtree(self._own_disk(pod.id), ignore_errors=True)
            case do.Stranger(_, port):
                with contextlib.suppress(OSError):
                    self.strangers.append(StrangerSshd(self.root / f"stranger-{port}", port, self.mark("stranger")))

    def look(self, now: float) -> Sequence[News]:
        news = []
        for id, container in list(self._containers.items()):
            ended = container.first.poll() is not None or (self.home(id) / "ended").exists()
            news += [News(id, container.boot, line) for line in self._new_lines(id)]
            if container.kill_at is not None and (ended or now >= container.kill_at):
                self._kill(id)
            elif ended and not container.told:
                container.told = True
                news.append(News(id, container.boot, None))
        return news

    def next_port(self) -> int | None:
        return free_port()

    def volume_dir(self, volume: str) -> Path:
        folder = self.root / "volumes" / volume
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def disk_dir(self, pod_id: str) -> Path:
        """A pod's container disk."""
        return self.home(pod_id) / "disk"

    def guard_dir(self, pod_id: str) -> Path:
        """Its memory disk's folder of the boot guard: empty after every start."""
        return self.home(pod_id) / "guard"

    def processes(self, pod_id: str) -> set[Process]:
        """All that run in a pod now."""
        container = self._containers.get(pod_id)
        return tree([container.first.pid] if container else [], self.mark(pod_id))

    def main_pid(self, pod_id: str) -> int | None:
        """Its main program's."""
        with contextlib.suppress(OSError, ValueError):
            return None if (self.home(pod_id) / "ended").exists() else int((self.home(pod_id) / "main").read_text())
        return None

    def entrance(self, pod: Pod) -> Entrance:
        """How a shell in it is started, with its first process's environment."""
        env = {**pod.wish.env, **self._given(pod), **self.environment(pod), "TERM": "xterm"}
        return Entrance(["/bin/sh", "-i"], env, str(self.disk_dir(pod.id) / "root"))

    def close(self) -> None:
        for id in list(self._containers):
            self._kill(id)
        for stranger in self.strangers:
            stranger.close()
        shutil.rmtree(self.pods, ignore_errors=True)

    # helpers

    def _launch(self, pod: Pod, *, wipe: bool) -> None:
        self._kill(pod.id)
        home, disk = self.home(pod.id), self.disk_dir(pod.id)
        if wipe:
            self._wipe(pod.id)
        for folder in ("guard", "signs"):
            shutil.rmtree(home / folder, ignore_errors=True)
        (home / "signs").mkdir(parents=True)
        for name in ("main", "ended"):
            (home / name).unlink(missing_ok=True)
        if pod.has_own_disk:
            self._own_disk(pod.id).mkdir(parents=True, exist_ok=True)
        self.lay_out(pod)
        argv = [sys.executable, "-I", "-S", str(INIT), *self.walls, str(ROOT), str(home), self.mark(pod.id)]
        env = {**pod.wish.env, **self._given(pod), **self.environment(pod)}
        with (home / "log").open("ab") as log:
            first = subprocess.Popen(
                [*argv, *self.program(pod)], env=env, cwd=disk / "root", stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._containers[pod.id] = Container(pod.boot, first)

    def lay_out(self, pod: Pod) -> None:
        """What an image has, on the container disk."""
        disk = self.disk_dir(pod.id)
        for folder in ("root", "tmp", "etc", "bin"):
            (disk / folder).mkdir(parents=True, exist_ok=True)
        write_nvidia_smi(disk / "bin" / "nvidia-smi", pod.wish.gpu, 0 if pod.zero_gpu else pod.wish.count)

    def program(self, pod: Pod) -> list[str]:
        """What is run."""
        args = re.sub(r"(?<![\w.])/tmp/", f"{self.disk_dir(pod.id)}/tmp/", pod.wish.args)
        return self.words(args) or ["/bin/sh", str(START)]

    def words(self, args: str) -> list[str]:
        """`args` as a container runtime reads them."""
        try:
            return shlex.split(args)
        except ValueError:
            return ["/bin/sh", "-c", f"echo args: {shlex.quote(args)}: no closing quotation; exit 127"]

    def environment(self, pod: Pod) -> dict[str, str]:
        """What is so in every pod of this kind."""
        home, disk = self.home(pod.id), self.disk_dir(pod.id)
        return {
            "HOME": str(disk / "root"),
            "PATH": f"{disk}/bin:{os.environ.get('PATH', os.defpath)}",
            "TMPDIR": str(disk / "tmp"),
            "LANG": "C.UTF-8",
            MARK: self.mark(pod.id),
            "PODCTL_SIM_DISK": str(disk),
            "PODCTL_SIM_SSHD": self.sshd,
            "PODCTL_SIM_SSH_PORT": str(pod.port),
            "PODCTL_SIM_SSH_GATE": str(home / "signs" / "gate"),
            "PODCTL_START": str(START),
            "PODCTL_GUARD_DIR": str(home / "guard"),
            "PODCTL_HOST_KEY": str(disk / "etc" / "host_ed25519"),
            "PODCTL_PYTHON": sys.executable,
        }

    def _wipe(self, id: str) -> None:
        """All that its container wrote: its disk, and what a program puts beside its guard's folder."""
        for path in list(self.home(id).glob("*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "log":
                path.unlink()

    def _halt(self, id: str, now: float, grace_s: float) -> None:
        container = self._containers.get(id)
        if container is None:
            return
        if grace_s <= 0:
            self._kill(id)
            return
        container.kill_at = now + grace_s
        self._signal_first(id, signal.SIGTERM)

    def _kill(self, id: str) -> None:
        container = self._containers.pop(id, None)
        if container is None:
            return
        end_all([container.first.pid], self.mark(id))
        container.first.wait()
        if container.first.stdin:
            container.first.stdin.close()

    def _signal_first(self, id: str, number: int) -> None:
        """It passes it on to the main program."""
        container = self._containers.get(id)
        if container is not None and container.first.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(container.first.pid, number)

    def _new_lines(self, id: str) -> list[str]:
        offset, rest = self._read.get(id, (0, b""))
        try:
            with (self.home(id) / "log").open("rb") as f:
                f.seek(offset)
                data = f.read()
        except FileNotFoundError:
            return []
        *lines, rest = (rest + data).split(b"\n")
        self._read[id] = (offset + len(data), rest)
        return [line.decode("utf-8", "replace") for line in lines]

    def real_mount(self, pod: Pod) -> str:
        if pod.wish.volume:
            return str(self.volume_dir(pod.wish.volume))
        return str(self._own_disk(pod.id))

    def home(self, id: str) -> Path:
        return self.pods / id

    def _own_disk(self, id: str) -> Path:
        return self.root / "disks" / id

    def mark(self, id: str) -> str:
        return f"{self.root}:{id}"
