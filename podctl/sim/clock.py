"""The cloud's time, which everybody in it shares: real time plus what was added, in one file (`remote/clock.py`)."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from remote.clock import FileClock
from remote.files import write_atomic

LOOK_S = 0.02


class VirtualClock:
    """`now()` never goes back. `advance` moves it; a `rate` above 1 lets it run faster than the wall's.

    The file is what pods and podctl read, so that they and the bill agree on what time it is.
    """

    def __init__(self, path: Path, rate: float = 1.0) -> None:
        self.path, self.rate = path, rate
        self._added = 0.0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._write()
        self._file = FileClock(str(path))
        self._zero = time.time() - self._file.elapsed()

    def now(self) -> float:
        """Unix time. The clock on the wall, once set to another day by a test, has no say in it."""
        return self._zero + self._file.elapsed()

    def advance(self, seconds: float) -> None:
        """Let so much time go by for everybody, at once."""
        with self._lock:
            self._added += seconds
            self._write()

    def __enter__(self) -> Self:
        if self.rate != 1.0:
            self._thread = threading.Thread(target=self._run, name="sim-time", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.wait(LOOK_S):
            gone_by = time.monotonic() - last
            last += gone_by
            self.advance(gone_by * (self.rate - 1.0))

    def _write(self) -> None:
        write_atomic(self.path, f"{self._added:.6f}".encode(), durable=False)
