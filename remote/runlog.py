"""The run's log: everything that is said, on the volume and on the screen, and neither can hold up the run.

A network volume can refuse a write (full) or never answer one; a terminal can be gone, or stopped with Ctrl-S. So each
is written by a thread of its own, behind a queue with an end.
"""

import base64
import collections
import json
import os
import threading
import time
from typing import Deque, Iterable, List
from urllib.parse import quote_from_bytes

from remote.files import StrPath

QUEUE_BYTES = 4 << 20
HIDDEN = b"***"
MIN_SECRET_BYTES = 8  # a shorter value would take ordinary words out of the log


class RunLog:
    """Appends to the run's log and to a terminal. Raises OSError where the log cannot be opened, and never after."""

    def __init__(self, path: StrPath, screen_fd: int = 1) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(fd).st_size
        self._fd = fd
        self._size_before = size
        self._in_line = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        self._file = _Sink(fd, gives_up=False)
        self._screen = _Sink(screen_fd, gives_up=True)
        self._redactor = Redactor(())

    @property
    def size(self) -> int:
        """Bytes of the log that were handed to the file system: never more than a reader finds."""
        return self._size_before + self._file.written

    @property
    def lost(self) -> int:
        """Bytes that the volume refused."""
        return self._file.lost

    @property
    def trouble(self) -> str:
        """Why it refused them, in the system's words; empty when none were."""
        return self._file.trouble

    def hide(self, secrets: Iterable[str]) -> None:
        """From now on these values appear as `***`."""
        self._redactor = Redactor(secrets)

    def redactor(self) -> "Redactor":
        """A fresh one for a new stream of output."""
        return Redactor(self._redactor.secrets)

    def say(self, text: str) -> None:
        """A line of the runner's own; returns at once, whatever the volume does."""
        line = self._redactor.clean(text.encode("utf-8", "backslashreplace")) + b"\n"
        self._put((b"\n" if self._in_line else b"") + line, wait=False)

    def feed(self, data: bytes) -> None:
        """Output of the job as it came; waits while the volume is slower than the job."""
        if data:
            self._put(data, wait=True)

    def flush(self, timeout_s: float) -> bool:
        """Whether everything said so far was written, or refused, in time."""
        until = time.monotonic() + timeout_s
        self._screen.flush(min(timeout_s, 1.0))
        return self._file.flush(max(0.0, until - time.monotonic()))

    def sync(self) -> None:
        """Have the volume keep it. May take as long as the volume likes."""
        try:
            os.fsync(self._fd)
        except OSError:
            pass  # a device or file system that cannot: what was refused is counted in `lost`

    def close(self, timeout_s: float) -> bool:
        """`flush`, and nothing is written after it, so that `size` stays exact."""
        whole = self.flush(timeout_s)
        self._file.close()
        self._screen.close()
        return whole

    def silence(self) -> None:
        """Write no more to the volume: another attempt owns it. The screen still shows everything."""
        self._file.close()

    def _put(self, data: bytes, wait: bool) -> None:
        self._in_line = not data.endswith(b"\n")
        self._screen.put(data, wait=False, drop=True)
        self._file.put(data, wait=wait, drop=False)


class Redactor:
    """Takes secrets out of a stream, also where they come in pieces."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self.secrets: List[str] = sorted({s for s in secrets if len(_bytes(s)) >= MIN_SECRET_BYTES})
        forms = {form for s in self.secrets for form in forms_of(_bytes(s))}
        self._values = sorted(forms, key=len, reverse=True)  # the longest first: one may begin with another
        self._held = b""

    @property
    def holds_back(self) -> bool:
        return bool(self._held)

    def clean(self, data: bytes) -> bytes:
        """The data without the secrets that lie wholly in it."""
        for value in self._values:
            data = data.replace(value, HIDDEN)
        return data

    def feed(self, data: bytes) -> bytes:
        """What can be shown by now; an end that may be the beginning of a secret waits for what follows."""
        data = self.clean(self._held + data)
        keep = max((_overlap(data, value) for value in self._values), default=0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def flush(self) -> bytes:
        """What was held back, since nothing follows."""
        held, self._held = self._held, b""
        return held


def forms_of(secret: bytes) -> List[bytes]:
    """The secret as it is, and as programs like to print it: URL-encoded, in a JSON text, in base64.

    In base64 the same bytes have three looks, by how many stand before them; the characters that neighbours have a
    share in are left out of each.
    """
    text = secret.decode("utf-8", "backslashreplace")
    forms = [secret, quote_from_bytes(secret, safe="").encode(), quote_from_bytes(secret).encode()]
    forms += [json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8")]
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + secret)
        mine = whole[(0, 2, 3)[before] : len(whole) - (0, 3, 2)[(before + len(secret)) % 3]]
        forms += [mine, mine.replace(b"+", b"-").replace(b"/", b"_")]
    return forms


def _bytes(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogateescape")


def _overlap(data: bytes, value: bytes) -> int:
    """Length of the longest end of `data` that is a beginning of `value`."""
    for n in range(min(len(data), len(value) - 1), 0, -1):
        if data.endswith(value[:n]):
            return n
    return 0


class _Sink:
    """Writes to a file descriptor from a thread of its own."""

    def __init__(self, fd: int, gives_up: bool) -> None:
        self.written = 0
        self.lost = 0
        self.trouble = ""
        self._fd = fd
        self._gives_up = gives_up
        self._gap = 0  # bytes lost since the last that were written
        self._queue: Deque[bytes] = collections.deque()
        self._queued = 0
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, data: bytes, wait: bool, drop: bool) -> None:
        with self._changed:
            while wait and self._queued >= QUEUE_BYTES and not self._closed:
                self._changed.wait()
            if self._closed or (drop and self._queued >= QUEUE_BYTES):
                return
            self._queue.append(data)
            self._queued += len(data)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued, timeout_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._queued = 0
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closed)
                if self._closed:
                    return
                data = self._queue.popleft()
            self._write(data)
            with self._changed:
                self._queued = max(0, self._queued - len(data))
                self._changed.notify_all()

    def _write(self, data: bytes) -> None:
        if self._gap:
            note = "\n[{} bytes of output are missing here: {}]\n".format(self._gap, self.trouble)
            if self._write_all(note.encode("utf-8")):
                self._refused(len(data))
                return
            self._gap = 0
        left = self._write_all(data)
        if left:
            self._refused(left)

    def _write_all(self, data: bytes) -> int:
        """How many bytes the descriptor refused."""
        view = memoryview(data)
        while view and not self._closed:
            try:
                n = os.write(self._fd, view)
            except OSError as e:
                self.trouble = e.strerror or str(e)
                if self._gives_up and not isinstance(e, BlockingIOError):
                    self.close()
                return len(view)
            self.written += n
            view = view[n:]
        return 0

    def _refused(self, n: int) -> None:
        self._gap += n
        self.lost += n
