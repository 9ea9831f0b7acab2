"""A local port that answers as a remote one does, over a paramiko transport.

fabric has one too; its listener ends with the first connection that nobody over there takes, and a server that is
still starting takes none.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

CHUNK = 1 << 16
LOOK_S = 0.2
GONE = (OSError, EOFError)  # what a channel raises once its link is gone


@contextlib.contextmanager
def tunnel(open_channel: Callable[[], Any], local_port: int) -> Iterator[None]:
    """While open, each connection to that port of loopback gets a channel of its own; where there is none to be had it
    is closed, and the next may fare better. Raises OSError where the port can't be had."""
    closed = threading.Event()
    with socket.create_server(("127.0.0.1", local_port), backlog=64) as server:
        server.settimeout(LOOK_S)
        accepting = threading.Thread(target=_accept, args=(server, open_channel, closed), daemon=True)
        accepting.start()
        try:
            yield
        finally:
            closed.set()
            accepting.join()


def _accept(server: socket.socket, open_channel: Callable[[], Any], closed: threading.Event) -> None:
    while not closed.is_set():
        with contextlib.suppress(OSError):
            client, _ = server.accept()
            threading.Thread(target=_carry, args=(client, open_channel, closed), daemon=True).start()


def _carry(client: socket.socket, open_channel: Callable[[], Any], closed: threading.Event) -> None:
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            channel = open_channel()
        except Exception:  # refused over there, or the link is gone: the client sees a closed connection
            return
        with contextlib.suppress(*GONE), contextlib.closing(channel):
            # a thread a direction: were one to wait for the other, two full buffers would stop both
            back = threading.Thread(target=_pump_back, args=(channel, client), daemon=True)
            back.start()
            while back.is_alive() and not closed.is_set():
                if select.select([client], [], [], LOOK_S)[0]:
                    data = client.recv(CHUNK)
                    if not data:
                        channel.shutdown_write()
                        while back.is_alive() and not closed.is_set():
                            back.join(LOOK_S)
                        return
                    channel.sendall(data)


def _pump_back(channel: Any, client: socket.socket) -> None:
    with contextlib.suppress(*GONE):
        while data := channel.recv(CHUNK):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)
