"""The wire of fabric and paramiko, for machines without an OpenSSH that can share connections."""

import contextlib
import getpass
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from podctl.errors import Unreachable
from podctl.host import IDLE_S, Stream
from podctl.pods import Result, SshAddress
from podctl.shell import STDERR_KEPT, TIMED_OUT
from podctl.wire import known
from podctl.wire.command import command_of, line_of
from podctl.wire.faults import busy_port, explain, explain_route, full, is_encrypted, port_in_use
from podctl.wire.known import ALIVE_COUNT, ALIVE_S, CONNECT_S, Target
from podctl.wire.tunnel import tunnel

CHUNK = 1 << 16
SESSIONS = 8  # as in openssh.py
REFUSED_S = 20.0


class Paramiko:
    """One connection to an address, shared by all threads of this process. It ends with the process."""

    def __init__(self, address: SshAddress, *, alive_s: float = ALIVE_S) -> None:
        self.address = address
        self._alive_s = alive_s
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(SESSIONS)
        self._connection: Any = None

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60) -> Result:
        until = time.monotonic() + timeout_s
        out = bytearray()
        too_late = f"no answer within {timeout_s:g} s"
        try:
            with self._talking(argv, [stdin] if stdin else None, timeout_s=min(CONNECT_S, timeout_s)) as talking:
                for piece in talking.pieces(lambda: until - time.monotonic()):
                    out += piece
                if talking.exit_code is None:
                    return Result(TIMED_OUT, _text(out), talking.stderr + too_late)
                return Result(talking.exit_code, _text(out), talking.stderr)
        except TimeoutError:
            return Result(TIMED_OUT, "", too_late)

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> Iterator[Stream]:
        with contextlib.ExitStack() as talks:
            try:
                talking = talks.enter_context(self._talking(argv, stdin))
            except TimeoutError as e:
                raise self._broken() from e
            yield talking

    @contextlib.contextmanager
    def forward(self, remote_port: int, local_port: int) -> Iterator[None]:
        connection = self._connected()
        if port_in_use(local_port):
            raise busy_port(local_port)

        def open_channel() -> Any:
            there = ("127.0.0.1", remote_port)
            return connection.transport.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=CONNECT_S)

        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(tunnel(open_channel, local_port))
            except OSError as e:
                raise busy_port(local_port) from e
            yield

    def terminal(self, argv: Sequence[str] = ()) -> int:
        from invoke.exceptions import ThreadException

        connection = self._connected()
        is_tty = os.isatty(0)
        try:
            if argv or not is_tty:
                line = line_of(argv) if argv else line_of(["sh", "-c", 'exec "${SHELL:-sh}" -l'])
                said = connection.run(line, pty=is_tty, warn=True, hide=False)
            else:
                said = connection.shell()
        except (ThreadException, OSError, EOFError) as e:
            raise self._broken() from e
        if said.exited < 0 and not connection.transport.is_active():
            raise self._broken()
        return int(said.exited) % 256

    def rsync_shell(self) -> None:
        """rsync starts a program of its own, which can't travel over a connection inside this process."""
        return

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                _close(connection)

    @contextlib.contextmanager
    def _talking(
        self, argv: Sequence[str], stdin: Iterable[bytes] | None, *, timeout_s: float = CONNECT_S
    ) -> Iterator["_Talking"]:
        """Raises TimeoutError where no channel opens in time."""
        command = command_of(argv, watched=stdin is None)
        if not self._slots.acquire(timeout=REFUSED_S):
            raise full(self.address)
        try:
            talking = _Talking(self, self._session(command.line, timeout_s), command.mark, stdin)
            try:
                yield talking
            finally:
                talking.end()
        finally:
            self._slots.release()

    def _session(self, line: str, timeout_s: float) -> Any:
        """A channel on which the line runs. Raises Unreachable, and TimeoutError where none opens in time."""
        from paramiko import SSHException

        until = time.monotonic() + REFUSED_S
        while True:
            connection = self._connected()
            began = time.monotonic()
            try:
                channel = connection.transport.open_session(timeout=timeout_s)
                channel.exec_command(line)
                return channel
            except (SSHException, EOFError, OSError) as e:
                is_active = connection.transport.is_active()
                if is_active and time.monotonic() - began >= timeout_s:
                    raise TimeoutError from e
                if time.monotonic() > until:
                    raise (full(self.address) if is_active else self._broken()) from e
                if is_active:  # MaxSessions: others have theirs. Of threads refused at once one alone hears why
                    time.sleep(0.1)

    def _connected(self) -> Any:
        """A fabric connection that is open. Raises Unreachable."""
        with self._lock:
            if self._connection is not None:
                if self._connection.is_connected and self._connection.transport.is_active():
                    return self._connection
                _close(self._connection)
            self._connection = self._connect()
            return self._connection

    def _connect(self) -> Any:
        from paramiko import RejectPolicy, SSHException
        from paramiko.hostkeys import HostKeyEntry

        logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it has its say by exceptions
        host_keys = known.announced_key(self.address)
        connection, target = self._fabric(host_keys)
        name = target.host if target.port == 22 else f"[{target.host}]:{target.port}"
        for line in host_keys.splitlines():
            entry = HostKeyEntry.from_line(f"{name} {line}")
            if entry is not None and entry.key is not None:
                connection.client.get_host_keys().add(name, entry.key.get_name(), entry.key)
        connection.client.set_missing_host_key_policy(RejectPolicy())
        began = time.monotonic()
        try:
            if not connection.gateway:
                connection.connect_kwargs["sock"] = _socket(target)
            connection.open()
        except Exception as e:  # paramiko's own, the system's, and what a broken key file makes its parsers raise
            at_gateway = target.route and not getattr(connection.gateway, "is_connected", False)
            _close(connection)
            if at_gateway:
                raise explain_route(self.address, target, _words(e)) from e
            # paramiko goes on without a server that says nothing, and then misses it
            waited = type(e) in (SSHException, EOFError) and time.monotonic() - began > CONNECT_S * 0.9
            raise explain(self.address, target, "timed out" if waited else _words(e)) from e
        gateway = connection.gateway
        while gateway and not isinstance(gateway, str):
            if isinstance(gateway.transport.sock, socket.socket):
                gateway.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            gateway = gateway.gateway
        watching = threading.Thread(target=_watch, args=(connection.transport, self._alive_s), daemon=True)
        watching.start()
        return connection

    def _fabric(self, host_keys: str) -> tuple[Any, Target]:
        """The connection, not yet open, and where it leads. No file of fabric's own is read."""
        from fabric import Config, Connection
        from paramiko import RejectPolicy, SSHConfig, Transport

        ssh = Path.home() / ".ssh"
        options = SSHConfig()
        if self.address.user_config and (ssh / "config").is_file():
            options = SSHConfig.from_path(str(ssh / "config"))
        key = self.address.key
        algorithms = {a for line in host_keys.splitlines() for a in known.ALGORITHMS[line.split()[0]]}
        has_passphrase = bool(key) and Path(key).is_file() and _needs_agent(Path(key))
        connection = Connection(
            f"[{self.address.host}]" if ":" in self.address.host and self.address.port else self.address.host,
            user=self.address.user or None,
            port=self.address.port,
            config=Config(ssh_config=options, lazy=True),
            connect_timeout=CONNECT_S,
            connect_kwargs={
                "key_filename": [key] if key else [],
                "allow_agent": not key or has_passphrase,
                "look_for_keys": not key,
                "banner_timeout": CONNECT_S,
                "auth_timeout": CONNECT_S * 2,
                "channel_timeout": CONNECT_S,
                # a server with several keys then shows one that was announced
                "disabled_algorithms": {"keys": [a for a in Transport._preferred_keys if a not in algorithms]},
            },
        )
        connection.host = connection.host.strip("[]")
        named = connection.connect_kwargs.get("key_filename", [])
        connection.connect_kwargs["key_filename"] = [k for k in named if k == key or Path(k).expanduser().is_file()]
        gateway = connection.gateway
        while gateway and not isinstance(gateway, str):  # a jump host is whom the user's own known_hosts say it is
            gateway.client.set_missing_host_key_policy(RejectPolicy())
            files = known.paths_in(gateway.ssh_config.get("userknownhostsfile", "")) or [ssh / "known_hosts"]
            for file in files:
                with contextlib.suppress(OSError):
                    gateway.client.load_system_host_keys(str(file))
            gateway = gateway.gateway
        route = (
            "its ProxyCommand" if isinstance(connection.gateway, str) else connection.ssh_config.get("proxyjump", "")
        )
        usual = [str(ssh / f"id_{kind}") for kind in ("rsa", "ecdsa", "ed25519")]
        target = Target(
            host=connection.host,
            port=int(connection.port),
            user=connection.user or getpass.getuser(),
            names=(),
            known_hosts=(),
            keys=(key,) if key else tuple(connection.connect_kwargs["key_filename"] or usual),
            route=route if connection.gateway else "",
        )
        return connection, target

    def _broken(self) -> Unreachable:
        return Unreachable(f"the connection to {self.address.host} broke", "try again: it is made anew")


class _Talking:
    """A command over there, heard while it speaks."""

    def __init__(self, wire: Paramiko, channel: Any, mark: str, stdin: Iterable[bytes] | None) -> None:
        self._wire, self._channel, self._mark = wire, channel, mark
        self._left = threading.Event()
        self._fault: BaseException | None = None
        self._stderr = bytearray()
        self._channel.settimeout(IDLE_S)
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        if stdin is not None:
            threading.Thread(target=self._feed, args=(stdin,), daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces(lambda: 1.0)

    def pieces(self, left_s: Callable[[], float]) -> Iterator[bytes]:
        """Its stdout, for as long as `left_s()` is positive. Raises Unreachable."""
        while left_s() > 0:
            self._channel.settimeout(max(0.01, min(IDLE_S, left_s())))
            try:
                piece = self._channel.recv(CHUNK)
            except TimeoutError:
                yield b""
                continue
            except _broken_link() as e:  # what it had to say is in part still over there
                raise self._wire._broken() from e
            if not piece:
                break
            yield piece
        while left_s() > 0 and not self._channel.status_event.wait(max(0.01, min(IDLE_S, left_s()))):
            yield b""
        if self._fault is not None:
            raise self._fault
        if self._channel.status_event.is_set():
            self._hearing.join(IDLE_S * 2)
            if self._channel.exit_status < 0:
                raise self._wire._broken()

    @property
    def exit_code(self) -> int | None:
        code = int(self._channel.exit_status)
        return code if self._channel.status_event.is_set() and code >= 0 else None

    @property
    def stderr(self) -> str:
        return _text(self._stderr).replace(self._mark + "\n", "")

    def end(self) -> None:
        self._left.set()
        with contextlib.suppress(*_broken_link()):
            self._channel.close()

    def _hear(self) -> None:
        while not self._left.is_set():
            try:
                piece = self._channel.recv_stderr(CHUNK)
            except TimeoutError:
                continue
            except _broken_link():
                return
            if not piece:
                return
            self._stderr += piece
            del self._stderr[:-STDERR_KEPT]

    def _feed(self, pieces: Iterable[bytes]) -> None:
        try:
            for piece in pieces:
                left = memoryview(piece)
                while left and not self._left.is_set():
                    with contextlib.suppress(TimeoutError):
                        left = left[self._channel.send(left[:CHUNK]) :]
                if self._left.is_set():
                    return
            self._channel.shutdown_write()
        except _broken_link():  # it wants no more, or the link is gone: its exit code says which
            pass
        except BaseException as e:  # raised where the stream is read
            self._fault = e
            with contextlib.suppress(*_broken_link()):
                self._channel.close()


def _broken_link() -> tuple[type[Exception], ...]:
    """What a channel raises once its link is gone, whatever it was asked to do."""
    from paramiko import SSHException

    return (OSError, EOFError, SSHException)


def _watch(transport: Any, alive_s: float) -> None:
    """Close a transport over which nothing comes back: as ServerAlive, which paramiko has not."""
    while transport.is_active():
        answered = threading.Event()

        def ask(answered: threading.Event = answered) -> None:
            with contextlib.suppress(Exception):
                transport.global_request("keepalive@openssh.com", wait=True)
            answered.set()

        threading.Thread(target=ask, daemon=True).start()
        if not answered.wait(alive_s * ALIVE_COUNT):
            transport.close()
            return
        transport.join(alive_s)


def _socket(target: Target) -> socket.socket:
    """paramiko never sets TCP_NODELAY, which costs 40 ms a command."""
    s = socket.create_connection((target.host, target.port), CONNECT_S)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return s


def _close(connection: Any) -> None:
    sock = connection.connect_kwargs.get("sock")
    with contextlib.suppress(Exception):
        connection.close()
    with contextlib.suppress(Exception):
        connection.client.close()
    if sock is not None:
        sock.close()


def _words(e: BaseException) -> str:
    """paramiko's reason in the words of ssh, which `explain` knows."""
    from paramiko import ssh_exception as px

    inner = next(iter(e.errors.values()), e) if isinstance(e, px.NoValidConnectionsError) else e
    if isinstance(inner, px.BadHostKeyException | px.IncompatiblePeer) or "not found in known_hosts" in str(inner):
        return "Host key verification failed."
    if isinstance(
        inner, px.AuthenticationException | px.PasswordRequiredException | PermissionError | FileNotFoundError
    ):
        return "Permission denied (publickey)."
    if isinstance(inner, socket.gaierror):
        return "Could not resolve hostname"
    if isinstance(inner, ConnectionRefusedError):
        return "Connection refused"
    if isinstance(inner, TimeoutError):
        return "timed out"
    if isinstance(inner, EOFError | ConnectionResetError) or "protocol banner" in str(inner):
        return "Connection closed"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    if "No authentication methods available" in str(inner) or "private key" in str(inner):
        return "Permission denied (publickey)."
    return str(inner) or type(inner).__name__


def _needs_agent(key: Path) -> bool:
    try:
        return is_encrypted(key.read_bytes())
    except OSError:
        return False


def _text(data: bytes | bytearray) -> str:
    return bytes(data).decode("utf-8", "surrogateescape")
