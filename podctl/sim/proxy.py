"""The provider's SSH proxy: a shell for a person with a terminal, and nothing else, as at ssh.runpod.io.

It knows the account's keys, and a pod by the user name that its answers tell. A command without a terminal, sftp and
forwarding are refused in the words of the real one.
"""

import contextlib
import fcntl
import os
import pty
import select
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paramiko

from podctl.sim.backend import Entrance

NO_PTY = b"Error: Your SSH client doesn't support PTY\r\n"
LOOK_S = 0.05


class ShellProxy:
    """Answers at `port` of loopback until it is closed. `enter` knows a pod by its user name, `keys` the account's."""

    def __init__(self, enter: Callable[[str], Entrance | None], keys: Callable[[], Sequence[str]]) -> None:
        self._enter, self._keys = enter, keys
        self._host_key = paramiko.ECDSAKey.generate()
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(LOOK_S)
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="sim-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.closing(paramiko.Transport(connection)) as transport:
            transport.add_server_key(self._host_key)
            visitor = _Visitor(self._enter, self._keys())
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=visitor)
                channel = transport.accept(60)
                if channel is None or not visitor.asked.wait(10):
                    return
                entrance = self._enter(transport.get_username() or "")
                if visitor.size is None or visitor.command or entrance is None:
                    channel.sendall(NO_PTY)
                    channel.send_exit_status(1)
                else:
                    channel.send_exit_status(self._shell(channel, entrance, visitor))
                channel.close()
                self._until_left(transport)

    def _until_left(self, transport: Any) -> None:
        """A connection that is closed with something unread takes what was said along with it."""
        until = time.monotonic() + 5
        while transport.is_active() and time.monotonic() < until and not self._closing.wait(LOOK_S):
            pass

    def _shell(self, channel: Any, entrance: Entrance, visitor: "_Visitor") -> int:
        """A terminal between the person and a shell, until either ends."""
        ours, theirs = pty.openpty()
        visitor.terminal = ours
        _resize(ours, visitor.size or (80, 24))
        with subprocess.Popen(
            entrance.argv, env=dict(entrance.env), cwd=entrance.cwd, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        ) as shell:  # fmt: skip
            os.close(theirs)
            try:
                while not self._closing.is_set() and not channel.closed:
                    ready, _, _ = select.select([ours, channel], [], [], LOOK_S)
                    if channel in ready:
                        typed = channel.recv(4096)
                        if not typed:
                            break
                        os.write(ours, typed)
                    if ours in ready:
                        channel.sendall(os.read(ours, 4096))  # OSError once the shell has gone
            except OSError:
                pass
            finally:
                os.close(ours)
                if shell.poll() is None and (channel.closed or self._closing.is_set()):
                    shell.kill()
        return shell.returncode


class _Visitor(paramiko.ServerInterface):  # type: ignore[misc]
    """What one connection may."""

    def __init__(self, enter: Callable[[str], Entrance | None], keys: Sequence[str]) -> None:
        self._enter, self._known = enter, {k.split()[1] for k in keys if len(k.split()) > 1}
        self.asked = threading.Event()  # for something to be run
        self.command = False
        self.size: tuple[int, int] | None = None
        self.terminal = -1

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        is_known = key.get_base64() in self._known and self._enter(username) is not None
        return int(paramiko.AUTH_SUCCESSFUL if is_known else paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        wrong = paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        return int(paramiko.OPEN_SUCCEEDED if kind == "session" else wrong)

    def check_channel_pty_request(
        self, channel: Any, term: bytes, width: int, height: int, pixelwidth: int, pixelheight: int, modes: bytes
    ) -> bool:
        self.size = (width, height)
        return True

    def check_channel_window_change_request(
        self, channel: Any, width: int, height: int, pixelwidth: int, pixelheight: int
    ) -> bool:
        if self.terminal >= 0:
            with contextlib.suppress(OSError):
                _resize(self.terminal, (width, height))
        return True

    def check_channel_shell_request(self, channel: Any) -> bool:
        self.asked.set()
        return True

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        self.command = self.size is None  # `ssh -tt … command` is taken for a shell, and the command is lost
        self.asked.set()
        return True

    def check_channel_subsystem_request(self, channel: Any, name: str) -> bool:
        return False


def _resize(terminal: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
