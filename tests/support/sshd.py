"""A private sshd on loopback, and a laptop's surroundings in which only it exists."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from support.pod import wait_until

from podctl.pods import SshAddress

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class Sshd:
    """An sshd of this user's, its files below `root`: one host key, one key that may log in, a HOME without rc files.

    `accept_any`: a stranger's, which lets every key in and writes down what it is told to run and is sent, instead of
    doing it.
    """

    root: Path
    accept_any: bool = False
    max_sessions: int = 10
    host_key_types: tuple[str, ...] = ("ed25519",)
    options: tuple[str, ...] = ()
    port: int = field(default=0)

    def __post_init__(self) -> None:
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.home = self.root / "home"
        self.home.mkdir(parents=True)
        self.key = make_key(self.root / "key")
        self.host_keys = [make_key(self.root / f"host_{t}", type=t) for t in self.host_key_types]
        self.authorized = self.root / "authorized_keys"
        self.authorized.write_text(public(self.key) + "\n")
        self.record = self.root / "record"
        self.log = self.root / "sshd.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.thaw_sessions()
        self.stop()

    @property
    def host_key(self) -> str:
        """What a provider would announce."""
        return "\n".join(public(k) for k in self.host_keys)

    @property
    def address(self) -> SshAddress:
        return SshAddress("127.0.0.1", self.port, self.user, str(self.key), self.host_key)

    def start(self) -> None:
        """Listen; after a stop, on the same port again."""
        assert self.process is None
        assert SSHD is not None, "sshd is not installed"
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd does not start without
        self.port = self.port or free_port()
        config = self.root / "sshd_config"
        config.write_text("\n".join(self._config()) + "\n")
        self.process = subprocess.Popen(
            [SSHD, "-D", "-f", str(config), "-E", str(self.log)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(self._answers, "sshd listens")

    def stop(self) -> None:
        """Listen no more, and end all connections."""
        self.kill_sessions()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(5)
            self.process = None

    def kill_sessions(self) -> None:
        """As a cut that both sides notice: every connection's sshd is gone at once, what it started is not."""
        for pid in self.session_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze_sessions(self) -> None:
        """As a cut that nobody notices: connections stay, and nothing comes."""
        self.frozen_at = time.monotonic()
        self._frozen = self.session_pids()
        for pid in self._frozen:
            os.kill(pid, signal.SIGSTOP)

    def thaw_sessions(self) -> None:
        for pid in getattr(self, "_frozen", []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen: list[int] = []

    def session_pids(self) -> list[int]:
        """The processes of sshd that serve a connection each, or two a connection."""
        if self.process is None:
            return []
        found, parents = [], {self.process.pid}
        tree = _processes()
        while parents:
            parents = {pid for pid, (parent, name) in tree.items() if parent in parents and name.startswith("sshd")}
            found += sorted(parents)
        return found

    @property
    def logins(self) -> int:
        """How many connections were let in."""
        return self.log.read_text().count("Accepted publickey") if self.log.exists() else 0

    @property
    def received(self) -> bytes:
        """What a stranger was told and sent."""
        return self.record.read_bytes() if self.record.exists() else b""

    def _config(self) -> Iterator[str]:
        yield from self.options  # sshd takes the first value it meets
        yield f"Port {self.port}"
        yield "ListenAddress 127.0.0.1"
        yield from (f'HostKey "{k}"' for k in self.host_keys)
        yield f'PidFile "{self.root}/pid"'
        yield "UsePAM no\nStrictModes no\nUseDNS no\nPasswordAuthentication no\nKbdInteractiveAuthentication no"
        yield "MaxStartups 100\nLogLevel VERBOSE\nSubsystem sftp internal-sftp\nPrintMotd no"
        yield f"MaxSessions {self.max_sessions}"
        if self.accept_any:
            script = self.root / "record.sh"
            script.write_text(f"printf '%s\\n' \"$SSH_ORIGINAL_COMMAND\" >>'{self.record}'; cat >>'{self.record}'\n")
            yield "AuthorizedKeysFile none"
            yield "AuthorizedKeysCommand /bin/echo %t %k"
            yield f"AuthorizedKeysCommandUser {self.user}"
            yield f"ForceCommand sh '{script}'"
        else:
            yield f'AuthorizedKeysFile "{self.authorized}"'
        yield f'SetEnv "HOME={self.home}"'

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@contextlib.contextmanager
def laptop(root: Path) -> Iterator[Path]:
    """A HOME of its own, no agent, podctl's state and sockets apart; the HOME. Masters that are left end with it."""
    home = root / "laptop home"  # a blank in it is unkind enough to be always there
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    sockets = tempfile.mkdtemp(prefix="pc", dir="/tmp")
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("HOME", str(home))
        environ.setenv("PODCTL_HOME", str(home / "state"))
        environ.setenv("TMPDIR", sockets)
        for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY", "PODCTL_SSH"):
            environ.delenv(name, raising=False)
        try:
            yield home
        finally:
            for pid in masters(sockets):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(sockets, ignore_errors=True)


def masters(sockets: str | None = None) -> list[int]:
    """The shared connections of this laptop: pids of their ssh."""
    mark = sockets or os.environ["TMPDIR"]
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.startswith(b"ssh") and mark.encode() in words and (b"-M\0" in words or b"[mux]" in words):
                found.append(pid)
    return found


@contextlib.contextmanager
def ssh_agent(at: Path) -> Iterator[None]:
    """An agent that answers at a socket (104 bytes at most) and holds no key yet."""

    def answers() -> bool:  # its socket is there before anybody listens at it
        env = {**os.environ, "SSH_AUTH_SOCK": str(at)}
        return subprocess.run(["ssh-add", "-l"], env=env, capture_output=True, check=False).returncode < 2

    with subprocess.Popen(["ssh-agent", "-D", "-a", str(at)], stdout=subprocess.DEVNULL) as agent:
        try:
            wait_until(answers, "an agent")
            yield
        finally:
            agent.terminate()


def make_key(path: Path, *, type: str = "ed25519", passphrase: str = "") -> Path:
    """A private key, its .pub beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = ["-b", "2048"] if type == "rsa" else []
    subprocess.run(["ssh-keygen", "-q", "-t", type, *bits, "-N", passphrase, "-C", "test", "-f", str(path)], check=True)
    return path


def public(key: Path) -> str:
    """`TYPE BASE64`."""
    return " ".join(key.with_name(key.name + ".pub").read_text().split()[:2])


def nap(s: int) -> str:
    """So many seconds for sleep(1), and a fraction by which this test run knows its sleepers from another's."""
    return f"{s}.{os.getpid()}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _processes() -> dict[int, tuple[int, str]]:
    """pid → parent and name, of all that live."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                head, _, tail = (path / "stat").read_text().rpartition(")")
                if tail.split()[0] not in "ZX":
                    found[int(path.name)] = (int(tail.split()[1]), head.partition("(")[2])
    return found
