"""The wire of OpenSSH: one connection in the background that everything shares; a command over it costs 8 ms."""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from podctl import shell
from podctl.errors import PodctlError
from podctl.host import Stream
from podctl.pods import Result, SshAddress
from podctl.wire import known
from podctl.wire.command import LINK_CODE, Command, command_of, line_of
from podctl.wire.faults import broken, busy_port, explain, explain_route, full, port_in_use
from podctl.wire.known import Trust

HUNG_S = 5.0  # a master that does not say that it lives within this time does not
KILL_S = 0.5  # a master that hangs does not hear SIGTERM
START_S = 60.0  # name, route, jump hosts, keys, all in all
SESSIONS = 8  # at once over one connection: sshd's MaxSessions is 10 where nobody raised it
REFUSED_S = 20.0  # how long other processes may have taken all sessions before that is an error
_REFUSED = "Session open refused by peer"

_HELLO, _ALIVE_CHECK, _IS_ALIVE = 0x00000001, 0x10000004, 0x80000005  # OpenSSH's PROTOCOL.mux


class OpenSsh:
    """One connection to an address, shared by all threads and all podctl processes of this user.

    It lives in a session of its own, so the terminal's Ctrl-C never reaches it, and ends a minute after its last
    user did.
    """

    def __init__(self, address: SshAddress, *, alive_s: int = known.ALIVE_S) -> None:
        self.address = address
        self._alive_s = alive_s
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(SESSIONS)
        self._trust: Trust | None = None
        self._held: _Held | None = None

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60) -> Result:
        command = command_of(argv, watched=not stdin)
        with self._slot():
            for pause_s in _pauses(REFUSED_S):
                said = shell.run(self._session(command), stdin=stdin or None, timeout_s=timeout_s, own_session=True)
                code, stderr = command.code_and_stderr(said.exit_code, said.stderr)
                if code is not None:
                    return Result(code, said.stdout, stderr)
                if not never_began(stderr):
                    raise self.broken(stderr)
                time.sleep(pause_s)
        raise full(self.address)

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> Iterator[Stream]:
        command = command_of(argv, watched=stdin is None)
        with self._slot(), contextlib.ExitStack() as sessions:

            def begin() -> shell.Streaming:
                return sessions.enter_context(shell.stream(self._session(command), stdin=stdin))

            yield _OverLink(self, begin, command, can_begin_again=stdin is None)

    @contextlib.contextmanager
    def forward(self, remote_port: int, local_port: int) -> Iterator[None]:
        trust = self._connected()
        if port_in_use(local_port):
            raise busy_port(local_port)
        what = ["-L", f"127.0.0.1:{local_port}:127.0.0.1:{remote_port}"]
        done = shell.run([*self._shared(trust), "-O", "forward", *what, "--", "pod"], timeout_s=HUNG_S * 2)
        if not done.ok:
            raise busy_port(local_port) if port_in_use(local_port) else self.broken(done.stderr)
        try:
            yield
        finally:
            if self._is_alive():
                shell.run([*self._shared(trust), "-O", "cancel", *what, "--", "pod"], timeout_s=HUNG_S * 2)

    def terminal(self, argv: Sequence[str] = ()) -> int:
        trust = self._connected()
        tty = ["-tt"] if os.isatty(0) else ["-T"]
        code = shell.hand_over([*self._shared(trust), *tty, "--", "pod", *([line_of(argv)] if argv else [])])
        if code == LINK_CODE and not self._is_alive():
            raise self.broken("")
        return code

    def rsync_shell(self) -> str:
        """Any host's name will do: the configuration knows one connection. Raises Unreachable."""
        return " ".join(_rsync_quoted(word) for word in self._shared(self._connected()))

    def close(self) -> None:
        with self._lock:
            held, self._held = self._held, None
            if held is not None:
                held.close()
            if self._trust is not None and self._trust.socket.parent.is_dir():
                with _alone(self._trust.socket):
                    _end_master(self._trust.socket)

    def _session(self, command: Command) -> list[str]:
        return [*self._shared(self._connected()), "-T", "--", "pod", command.line]

    def _shared(self, trust: Trust) -> list[str]:
        return ["ssh", "-F", str(trust.shared)]

    def _is_alive(self) -> bool:
        return self._held is not None and self._held.is_alive()

    def _connected(self) -> Trust:
        """The connection is there. Raises Unreachable."""
        with self._lock:
            hung = None
            if self._trust is not None and self._held is not None:
                if self._held.is_alive():
                    return self._trust
                hung = self._held.pid
                self._held.close()
                self._held = None
            self._trust = trust = known.make_trust(self.address, alive_s=self._alive_s)
            with _alone(trust.socket):  # of two that find no connection one makes it
                if hung is not None:
                    _kill_master(hung, trust.socket)
                self._held = _hold(trust.socket)
                if self._held is None:
                    _end_master(trust.socket)
                    self._held = self._start(trust)
            return trust

    def _start(self, trust: Trust) -> "_Held":
        log = trust.socket.with_suffix(".log")
        log.unlink(missing_ok=True)
        argv = ["ssh", "-F", str(trust.config), "-E", str(log), "-M", "-N", "-T", "-f", "--", self.address.host]
        done = shell.run(argv, timeout_s=START_S, own_session=True)
        said = _read(log) + done.stderr
        held = _hold(trust.socket) if done.ok else None
        if held is None:
            if trust.target.route and "UNKNOWN port" in said:
                raise explain_route(self.address, trust.target, self._asked_on_the_way(trust))
            raise explain(self.address, trust.target, said)
        _pid_file(trust.socket).write_text(str(held.pid))
        return held

    def _asked_on_the_way(self, trust: Trust) -> str:
        """What a jump host's ssh says. A connection that persists keeps its words from us."""
        argv = ["ssh", "-F", str(trust.config), "-S", "none", "-T", "--", self.address.host, "exit"]
        return shell.run(argv, timeout_s=START_S, own_session=True).stderr

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=REFUSED_S):
            raise full(self.address)
        try:
            yield
        finally:
            self._slots.release()

    def broken(self, stderr: str) -> PodctlError:
        """Why it broke, as far as ssh knows."""
        if _REFUSED in stderr:
            return full(self.address)
        if self._trust is None:
            return broken(self.address)
        said = _read(self._trust.socket.with_suffix(".log")) + stderr
        return explain(self.address, self._trust.target, said, was_connected=True)


def never_began(stderr: str) -> bool:
    """Nothing was sent: the connection was gone, or had no room for one more."""
    return _REFUSED in stderr or known.UNSHARED in stderr


class _OverLink:
    """A stream that knows whether the command ended or the link broke."""

    def __init__(
        self, wire: OpenSsh, begin: Callable[[], shell.Streaming], command: Command, *, can_begin_again: bool
    ) -> None:
        self._wire, self._begin, self._command = wire, begin, command
        self._can_begin_again = can_begin_again
        self._streaming = begin()

    def __iter__(self) -> Iterator[bytes]:
        for pause_s in _pauses(REFUSED_S):
            yield from self._streaming
            if self.exit_code is not None:
                return
            if not (self._can_begin_again and never_began(self._streaming.stderr)):
                break
            time.sleep(pause_s)
            self._streaming = self._begin()
        raise self._wire.broken(self._streaming.stderr)

    @property
    def exit_code(self) -> int | None:
        code = self._streaming.exit_code
        return None if code is None else self._command.code_and_stderr(code, self._streaming.stderr)[0]

    @property
    def stderr(self) -> str:
        return self._command.code_and_stderr(LINK_CODE, self._streaming.stderr)[1]


class _Held:
    """A line to the master of a shared connection. While one is open the master stays; it tells its pid."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self._line, self.pid = line, pid
        self._asking = threading.Lock()
        self._asked = 1

    def is_alive(self) -> bool:
        with self._asking:
            self._asked += 1
            try:
                return _ask(self._line, self._asked) == self.pid
            except OSError:
                return False

    def close(self) -> None:
        self._line.close()


def _hold(path: Path) -> _Held | None:
    """None where no master answers at a socket."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(HUNG_S)
        line.connect(str(path))
        line.sendall(struct.pack(">III", 8, _HELLO, 4))
        _packet(line)
        return _Held(line, _ask(line, 1))
    except OSError:
        line.close()
        return None


def _ask(line: socket.socket, number: int) -> int:
    """The master's pid. Raises OSError where it does not say."""
    line.sendall(struct.pack(">III", 8, _ALIVE_CHECK, number))
    answer = _packet(line)
    kind, asked, pid = struct.unpack(">III", answer[:12]) if len(answer) >= 12 else (0, 0, 0)
    if kind != _IS_ALIVE or asked != number:
        raise OSError("no master of ssh answers")
    return int(pid)


def _packet(line: socket.socket) -> bytes:
    size = int.from_bytes(_exactly(line, 4), "big")
    return _exactly(line, min(size, 1 << 16))


def _exactly(line: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = line.recv(n - len(data))
        if not more:
            raise OSError("the master of ssh hung up")
        data += more
    return data


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes or ends a connection. The system lets go of the lock when the process ends."""
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _end_master(path: Path) -> None:
    """End the master that made a socket, also where it hangs; remove what it left."""
    with contextlib.suppress(OSError, ValueError):
        _kill_master(int(_pid_file(path).read_text()), path)
    for left in (path, _pid_file(path)):
        left.unlink(missing_ok=True)


def _kill_master(pid: int, path: Path) -> None:
    """By its own pid alone; it is asked first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _is_master(pid, path):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
        until = time.monotonic() + KILL_S
        while time.monotonic() < until and _is_master(pid, path):
            time.sleep(0.01)


def _is_master(pid: int, path: Path) -> bool:
    """Is that process a master of this socket? A pid may have come to mean another process."""
    said = shell.run(["ps", "-o", "stat=,command=", "-p", str(pid)], timeout_s=5).stdout
    return str(path) in said and not said.startswith("Z")


def _pid_file(path: Path) -> Path:
    return path.with_suffix(".pid")


def _read(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace")
    except OSError:
        return ""


def _pauses(total_s: float) -> Iterator[float]:
    """0.05, 0.1, 0.2 … s, until so much has passed."""
    until = time.monotonic() + total_s
    pause_s = 0.05
    while time.monotonic() < until:
        yield pause_s
        pause_s = min(1.0, pause_s * 2)


def _rsync_quoted(word: str) -> str:
    """rsync cuts its -e at blanks; it knows quotes, and a doubled one within them."""
    return "'" + word.replace("'", "''") + "'" if set(word) & set(" '\"\t") else word
