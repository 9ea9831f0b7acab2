"""Runs a command with its three streams apart over one channel, and ends it when nobody listens any more.

Sent as text: `python -c TEXT COMMAND…`. What comes in and goes out are frames: a letter, four bytes of length, so many
bytes. In: `i` input, `e` its end, `c` Ctrl-C. Out: `o` stdout, `e` stderr. Its exit code is the command's.
"""

import os
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any, Dict, List, Tuple

Child = Any  # subprocess.Popen[bytes]: no subscript on Python 3.8

HEAD = 5
ROOM = 1 << 23  # input kept for a command that does not read; beyond it the channel waits
CHUNK = 1 << 16
GRACE_S = 2.0
GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


def frame(kind: bytes, data: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(data)) + data


def frames(buffer: bytearray) -> List[Tuple[bytes, bytes]]:
    """The whole frames at the beginning of a bytearray, taken out of it."""
    found = []
    while len(buffer) >= HEAD:
        size = struct.unpack(">I", bytes(buffer[1:HEAD]))[0]
        if len(buffer) < HEAD + size:
            break
        found.append((bytes(buffer[:1]), bytes(buffer[HEAD : HEAD + size])))
        del buffer[: HEAD + size]
    return found


def say(kind: bytes, data: bytes) -> None:
    left = frame(kind, data)
    while left:
        left = left[os.write(1, left) :]


def signal_all(child: Child, number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except OSError:
        pass


def end(child: Child) -> None:
    """The command and what it started in its session."""
    signal_all(child, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    signal_all(child, signal.SIGKILL)
    child.wait()


class Relay:
    """Between the channel and a command, one frame after the other; nothing blocks but a channel that is full."""

    def __init__(self, child: Child) -> None:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        self.child = child
        self.outputs = {child.stdout.fileno(): b"o", child.stderr.fileno(): b"e"}
        self.input = child.stdin
        self.stdin = child.stdin.fileno()
        os.set_blocking(self.stdin, False)
        self.coming, self.pending = bytearray(), bytearray()
        self.no_more, self.closed = False, False

    def run(self) -> bool:
        """True once the command is over, False where nobody listens any more."""
        while True:
            over = self.child.poll() is not None
            events = self._wait(0 if over else 200)
            for fd in [fd for fd in self.outputs if events.get(fd)]:
                data = os.read(fd, CHUNK)
                if data:
                    say(self.outputs[fd], data)
                else:
                    del self.outputs[fd]
            if over and not any(events.get(fd) for fd in list(self.outputs)):
                return True
            if not over and not self._take(events.get(0, 0)):
                return False
            self._give(events.get(self.stdin, 0) if not self.closed else 0)

    def _wait(self, timeout_ms: int) -> Dict[int, int]:
        poll = select.poll()
        poll.register(0, (select.POLLIN if len(self.pending) < ROOM else 0) | getattr(select, "POLLRDHUP", 0))
        for fd in self.outputs:
            poll.register(fd, select.POLLIN)
        if not self.closed and self.pending:
            poll.register(self.stdin, select.POLLOUT)
        return dict(poll.poll(timeout_ms))

    def _take(self, event: int) -> bool:
        """What came in; False where the other side is gone."""
        if event & select.POLLIN and len(self.pending) < ROOM:
            data = os.read(0, CHUNK)
            if not data:
                return False
            self.coming += data
            for kind, content in frames(self.coming):
                if kind == b"i":
                    self.pending += content
                elif kind == b"e":
                    self.no_more = True
                elif kind == b"c":
                    signal_all(self.child, signal.SIGINT)
            return True
        return not event & GONE

    def _give(self, event: int) -> None:
        if self.closed:
            return
        if event & (select.POLLOUT | GONE) and self.pending:
            try:
                del self.pending[: os.write(self.stdin, self.pending[:CHUNK])]
            except BlockingIOError:
                pass
            except OSError:  # it wants no more
                self.pending, self.no_more = bytearray(), True
        if self.no_more and not self.pending:
            self.input.close()
            self.closed = True


def _leave(child: Child) -> None:
    end(child)
    os._exit(143)


def main(argv: List[str]) -> int:
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as e:
        say(b"e", "{}: {}\n".format(argv[0], e.strerror).encode("utf-8", "surrogateescape"))
        return 127
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: _leave(child))
    try:
        heard = Relay(child).run()
    except OSError:  # the channel is gone
        heard = False
    if not heard:
        end(child)
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
