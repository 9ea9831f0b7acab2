"""A machine that one has already, for tests: behind a private sshd on loopback, or a pod out of namespaces."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import netpod
from support.netpod import NetPod
from support.sshd import Sshd, masters

from podctl.sim.sim import Sim

JSON = {"Content-Type": "application/json", "User-Agent": "a test"}


@dataclass
class Machine:
    """What a test of the whole way needs to know of a machine, and may do to it. `volume` is its path here."""

    volume: Path
    pod_section: Mapping[str, object]  # pod.ssh and pod.volume
    env: Mapping[str, str]  # of the laptop that reaches it
    disks: Sequence[Path]  # what else of it can be looked through from here
    kill_sessions: Callable[[], None]
    cut: Callable[[], None]
    mend: Callable[[], None]
    restart: Callable[[], None]  # everything on it dies, the volume stays
    arguments: Callable[[], list[str]]  # the command lines of what runs there
    tmux_environments: Callable[[], list[bytes]]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_rented(self) -> bool:
        return "sim" in self.extra

    def cut_for(self, seconds: float) -> None:
        self.cut()
        time.sleep(seconds)
        self.mend()

    def has_process(self, words: str) -> bool:
        return any(words in line for line in self.arguments())


@contextlib.contextmanager
def sshd_machine(tmp: Path) -> Iterator[Machine]:
    """The same kernel and user, another HOME; a cut is sshd's processes being frozen."""
    volume, disk = tmp / "machine" / "volume", tmp / "machine" / "disk"
    volume.mkdir(parents=True)
    with laptop_env(tmp) as env, Sshd(tmp / "sshd") as server:
        section = {
            "ssh": {
                "host": "127.0.0.1", "port": server.port, "user": server.user, "key": str(server.key),
                "host_key": server.host_key, "disk": str(disk), "python": sys.executable,
            },
            "volume": str(volume),
        }  # fmt: skip

        def ours() -> list[int]:
            mark = str(tmp / "machine").encode()
            found = []
            for p in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if p.name.isdigit() and int(p.name) != os.getpid():
                        words, environ = (p / "cmdline").read_bytes(), (p / "environ").read_bytes()
                        if mark in words or b"PODCTL_VOLUME=" + str(volume).encode() in environ:
                            found.append(int(p.name))
            return found

        def end_all() -> None:
            for pid in sorted(ours(), key=lambda pid: b"runner.py" not in _argv(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        def tmux_environments() -> list[bytes]:
            return [environ for pid in ours() if b"tmux" in _argv(pid) for environ in [_environ(pid)]]

        try:
            yield Machine(
                volume, section, env, [disk], server.kill_sessions, server.freeze_sessions, server.thaw_sessions,
                end_all, lambda: [_argv(pid).replace(b"\0", b" ").decode("utf-8", "replace") for pid in ours()],
                tmux_environments, {"sshd": server},
            )  # fmt: skip
        finally:
            server.thaw_sessions()
            end_all()


@contextlib.contextmanager
def netpod_machine(tmp: Path, **options: object) -> Iterator[Machine]:
    """A kernel's namespaces: its own address, processes, disk; a cut is a link that goes down."""
    if netpod.why_not():
        pytest.skip(netpod.why_not())
    volume = tmp / "machine" / "volume"
    with laptop_env(tmp) as env, NetPod(tmp, f"pod{os.getpid()}", volume, **options) as pod:  # type: ignore[arg-type]
        address = pod.address
        section = {
            "ssh": {
                "host": address.host, "port": 22, "user": "root", "key": address.key, "host_key": address.host_key,
                "python": sys.executable,
            },
            "volume": "/workspace",
        }  # fmt: skip

        def kill_sessions() -> None:
            for p in pod.processes():
                if p.argv and p.argv[0].startswith(("sshd:", "sshd-session:")) and "[listener]" not in p.argv[0]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(p.pid, signal.SIGKILL)

        def restart() -> None:
            pod.stop()
            pod.start()

        yield Machine(
            volume, section, env, [], kill_sessions, pod.cut, pod.mend, restart,
            lambda: [" ".join(p.argv) for p in pod.processes()],
            lambda: [_environ(p.pid) for p in pod.processes() if p.argv and "tmux" in p.argv[0]],
            {"pod": pod},
        )  # fmt: skip


@contextlib.contextmanager
def runpod_machine(tmp: Path) -> Iterator[Machine]:
    """An emulated RunPod, whose one living pod is made by the run; a cut is its sshd's processes being frozen."""
    with laptop_env(tmp) as env, Sim(tmp / "machine") as sim:
        volume = sim.create_volume("data")
        section = {"provider": "runpod", "gpu": ["4090"], "volume": "data"}

        def processes() -> list[int]:
            return [p.pid for pod in sim.pods() for p in sim.backend.processes(pod.id)]  # type: ignore[attr-defined]

        def sessions() -> list[int]:
            return [pid for pid in processes() if _argv(pid).startswith((b"sshd:", b"sshd-session:"))
                    and b"[listener]" not in _argv(pid)]  # fmt: skip

        def tell(number: signal.Signals) -> None:
            for pid in sessions():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

        def restart() -> None:
            request = urllib.request.Request(
                f"{sim.url}/v2/pods/{sim.pod().id}/action", b'{"action": "restart"}',
                {**JSON, "Authorization": f"Bearer {sim.account_key}"},
            )  # fmt: skip
            with urllib.request.urlopen(request):
                pass

        yield Machine(
            sim.volume_dir(volume.id), section, {**env, **sim.env()}, [sim.root / "disks"],
            lambda: tell(signal.SIGKILL), lambda: tell(signal.SIGSTOP), lambda: tell(signal.SIGCONT), restart,
            lambda: [_argv(pid).replace(b"\0", b" ").decode("utf-8", "replace") for pid in processes()],
            lambda: [_environ(pid) for pid in processes() if b"tmux" in _argv(pid)], {"sim": sim},
        )  # fmt: skip


@contextlib.contextmanager
def laptop_env(tmp: Path) -> Iterator[dict[str, str]]:
    """The environment of a laptop that knows nobody: a HOME of its own, no agent. Its connections end with it."""
    home = tmp / "laptop"
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    sockets = tempfile.mkdtemp(prefix="pc", dir="/tmp")
    try:
        yield {"HOME": str(home), "TMPDIR": sockets, "SSH_AUTH_SOCK": "", "SSH_ASKPASS": "", "DISPLAY": ""}
    finally:
        for pid in masters(sockets):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(sockets, ignore_errors=True)


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
