"""A rented pod in small, out of Linux namespaces: own network, processes, name and disk, and a volume that stays.

Needs root and iproute2; `why_not()` says what is missing. Everything is held by one process that dies with this one, so
that nothing is left of a pod whose test was killed. The network is a pair of links, 10.77.N.1 here and 10.77.N.2 there,
without a route to anywhere else.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from support.pod import is_alive, wait_until

from podctl.pods import SshAddress

HERE = Path(__file__).parent
PROGRAMS = ("ip", "nsenter", "unshare", "setpriv", "pivot_root", "ssh-keygen")
HIDDEN = ("/tmp", "/run", "/root", "/dev")  # folders that a pod has of its own
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOM = range(1, 255)
SSHD = "/usr/sbin/sshd"
SSHD_CONFIG = """\
Port 22
HostKey /etc/ssh/host_ed25519
PidFile none
UsePAM no
PasswordAuthentication no
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
MaxStartups 100
MaxSessions 100
"""

ours: set[str] = set()  # addresses of pods that live now: all that a test may connect to beside loopback


def why_not() -> str:
    """Why there can be no such pods here; "" where there can."""
    if sys.platform != "linux":
        return "namespaces are Linux"
    if os.geteuid() != 0:
        return "namespaces need root here"
    missing = [p for p in PROGRAMS if not shutil.which(p, path=PATH)]
    if not Path(SSHD).exists():
        missing.append("sshd")
    return f"missing: {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Process:
    """A process of a pod, by its number on this machine."""

    pid: int
    argv: tuple[str, ...]


class NetPod:
    """A pod with sshd as its first process, in a `with` block that boots it and leaves nothing behind.

    `files` are written over its root at each start (text by absolute path; what begins with `#!` can be run); `without`
    names programs that it has not; `entry` runs in sshd's place, with `env`, and must open port 22 itself.
    """

    def __init__(
        self,
        tmp: Path,
        name: str,
        volume: Path,
        *,
        without: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        entry: Sequence[str] = (SSHD, "-D", "-e", "-f", "/etc/ssh/netpod_config"),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.volume = name, volume
        self.home = tmp / f"netpod-{name}"
        self.without, self.files, self.entry, self.env = without, dict(files or {}), entry, dict(env or {})
        self.log = self.home / "log"  # what its first process said
        self.key = self.home / "client_ed25519"
        self.host_key_file = self.home / "host_ed25519"
        self._holder: subprocess.Popen[bytes] | None = None
        self._pod: subprocess.Popen[bytes] | None = None
        self._delayer: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._init = 0

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self.volume.mkdir(parents=True, exist_ok=True)
        (self.home / "disk").mkdir()
        for key in (self.key, self.host_key_file):
            if not key.exists():  # a test may have made one of its own
                make_key(key)
        try:
            self._open_network()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # its life

    def start(self, *, until_ssh: bool = True, new_host_key: bool = False) -> None:
        """Boot it with an empty container disk; return once its sshd answers."""
        assert self._pod is None or self._pod.poll() is not None, f"{self.name} runs already"
        if new_host_key:
            make_key(self.host_key_file)
        self._lay_out()
        argv = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._holder_pid}/ns/net"]
        argv += ["unshare", "--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child"]
        argv += ["bash", str(HERE / "netpod-init.sh"), str(self.home), self.name, str(self.volume), "--", *self.entry]
        with self.log.open("ab") as log:
            self._pod = subprocess.Popen(
                argv, env={"PATH": PATH, "HOME": "/root"} | self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(lambda: self._pod_has_begun() or self._has_ended(), f"{self.name} begins")
        if until_ssh:
            wait_until(lambda: self._answers() or self._has_ended(), f"sshd of {self.name}: {self.said}")
        assert not self._has_ended(), f"{self.name} ended while it booted:\n{self.said}"

    def stop(self) -> None:
        """Kill its first process, and with it everything in it: tmux, jobs, container disk. The volume stays."""
        if self._pod is None:
            return
        if self._pod.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init or self._pod.pid, signal.SIGKILL)
        try:
            self._pod.wait(10)
        except subprocess.TimeoutExpired:
            self._pod.kill()
            self._pod.wait()
        self._pod, self._init = None, 0

    def close(self) -> None:
        """Everything ends: processes, links, namespaces; what was mounted goes with them."""
        self.stop()
        self.delay(0)
        if self._number:
            ours.discard(self.host)
            ip("link", "del", self.link, check=False)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        self._number, self._holder = 0, None

    # its network

    @property
    def host(self) -> str:
        return f"10.77.{self._number}.2"

    @property
    def here(self) -> str:
        """This machine's end."""
        return f"10.77.{self._number}.1"

    @property
    def link(self) -> str:
        return f"netpod{self._number}"

    @property
    def address(self) -> SshAddress:
        """As a provider announces it: with the host key."""
        return SshAddress(self.host, 22, "root", str(self.key), self.host_key)

    @property
    def host_key(self) -> str:
        """`TYPE BASE64`."""
        return " ".join(self.host_key_file.with_suffix(".pub").read_text().split()[:2])

    def cut(self) -> None:
        """The link goes down at the pod's side: packets vanish without a word."""
        for link in self._links_there():
            self._ip_there("link", "set", link, "down")

    def mend(self) -> None:
        for link in self._links_there():
            self._ip_there("link", "set", link, "up")
        self._route_there()

    def delay(self, ms: float, loss: float = 0.0) -> None:
        """Each packet takes `ms` longer, each way, and a share of `loss` is lost; 0 and 0 end it."""
        if self._delayer is not None:
            self._delayer.kill()
            self._delayer.wait()
            self._delayer = None
            wait_until(lambda: not Path(f"/sys/class/net/{self.link}d").exists(), "the slow link is gone")
        if not ms and not loss:
            return
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-I", "-S", str(HERE / "netpod_delay.py")]
        argv += [f"{self.link}d", f"/proc/{self._holder_pid}/ns/net", str(ms / 1000), str(loss)]
        self._delayer = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._delayer.stdout is not None
        assert self._delayer.stdout.readline() == b"ready\n"
        ip("link", "set", f"{self.link}d", "up", "txqueuelen", "5000")
        ip("route", "replace", f"{self.host}/32", "dev", f"{self.link}d", "src", self.here)
        self._ip_there("link", "set", "slow0", "up", "txqueuelen", "5000")
        self._route_there()

    # a look inside

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the pod, without SSH: for assertions. Raises where it fails, unless told not to."""
        inside = ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "--", "env", "-i"]
        inside += [f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8", *argv]
        done = subprocess.run(inside, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def processes(self) -> list[Process]:
        """All that run in the pod now."""
        if not self._init:
            return []
        return [p for p in all_processes() if namespace_of(p.pid, "pid") == namespace_of(self._init, "pid")]

    @property
    def said(self) -> str:
        """What its first process printed, over all starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def namespace(self) -> str:
        """Its network, as `/proc/PID/ns/net` names it: the same over restarts."""
        return namespace_of(self._holder_pid, "net")

    def ssh(self, *words: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """The plain client: for tests of the pod itself."""
        known = self.home / "known_hosts"
        known.write_text(f"{self.host} {self.host_key}\n")
        argv = ["ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        argv += ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5"]
        argv += [*options, f"root@{self.host}", shlex.join(words)]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    # helpers

    @property
    def _holder_pid(self) -> int:
        assert self._holder is not None, f"{self.name} is not open"
        return self._holder.pid

    def _open_network(self) -> None:
        """A network that outlives each boot, and a number that nobody else on this machine has."""
        self._holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
        wait_until(lambda: self.namespace not in ("", namespace_of(os.getpid(), "net")), "a network")
        start = os.getpid() % len(ROOM)
        for number in [*ROOM[start:], *ROOM[:start]]:
            if f"10.77.{number}." in (ip("-o", "addr") or ""):
                continue
            # the kernel makes a name once: whoever is second takes another
            made = ip("link", "add", f"netpod{number}", "type", "veth", "peer", "name", "eth0", "netns",
                      str(self._holder_pid), check=False)  # fmt: skip
            if made is not None:
                self._number = number
                break
        assert self._number, "no number is free in 10.77.0.0/16"
        ours.add(self.host)
        ip("addr", "add", f"{self.here}/30", "dev", self.link)
        ip("link", "set", self.link, "up")
        self._ip_there("addr", "add", f"{self.host}/30", "dev", "eth0")
        self._ip_there("link", "set", "lo", "up")
        self._ip_there("link", "set", "eth0", "up")
        # known for good: without an answer to ARP a cut would be "no route to host", where the internet is silent
        ip("neigh", "replace", self.host, "lladdr", self._mac_there(), "dev", self.link, "nud", "permanent")

    def _lay_out(self) -> None:
        """What the first process reads: files, binds, hidden programs."""
        root = self.home / "files"
        shutil.rmtree(root, ignore_errors=True)
        standard = {
            "/etc/ssh/netpod_config": SSHD_CONFIG,
            "/etc/ssh/host_ed25519": self.host_key_file.read_text(),
            "/root/.ssh/authorized_keys": self.key.with_suffix(".pub").read_text(),
        }
        for path, text in (standard | self.files).items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            target.chmod(0o755 if text.startswith("#!") else 0o600)
        (root / "root" / ".ssh").chmod(0o700)
        (self.home / "hidden").write_text("".join(f"{p}\n" for p in self.without))
        (self.home / "binds").write_text("".join(f"{p}\n" for p in interpreters()))

    def _pod_has_begun(self) -> bool:
        assert self._pod is not None
        self._init = next(iter(_children(self._pod.pid)), 0)
        return bool(self._init)

    def _has_ended(self) -> bool:
        return self._pod is None or self._pod.poll() is not None

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, 22), timeout=0.5) as s:
                return s.recv(4) == b"SSH-"
        except OSError:
            return False

    def _ip_there(self, *args: str) -> str | None:
        return ip(*args, before=("nsenter", f"--net=/proc/{self._holder_pid}/ns/net"))

    def _mac_there(self) -> str:
        return (self._ip_there("-o", "link", "show", "eth0") or "").split("link/ether ")[1].split()[0]

    def _links_there(self) -> list[str]:
        return ["eth0", *(["slow0"] if self._delayer else [])]

    def _route_there(self) -> None:
        if self._delayer:
            self._ip_there("route", "replace", f"{self.here}/32", "dev", "slow0", "src", self.host)


def ip(*args: str, check: bool = True, before: Sequence[str] = ()) -> str | None:
    """What iproute2 said; None where it failed and may."""
    done = subprocess.run([*before, "ip", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(args)}: {done.stderr}"
    return done.stdout if done.returncode == 0 else None


def make_key(path: Path) -> None:
    """A fresh ed25519 pair, PATH and PATH.pub."""
    for old in (path, path.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)


def interpreters() -> list[str]:
    """Folders of this Python that a pod's own folders would hide."""
    known = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parents[1])}
    hidden = sorted(p for p in known if any(Path(p).is_relative_to(h) for h in HIDDEN))
    return [p for p in hidden if not any(p != q and Path(p).is_relative_to(q) for q in hidden)]


def all_processes() -> Iterator[Process]:
    """Every process of this machine that is no kernel thread."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            argv = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
            if argv and is_alive(int(folder.name)):
                yield Process(int(folder.name), tuple(a.decode(errors="replace") for a in argv))


def namespace_of(pid: int, kind: str) -> str:
    """`net:[4026532]`; "" where there is no such process."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return ""


def _children(pid: int) -> Iterable[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
