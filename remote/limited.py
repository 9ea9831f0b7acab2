"""Child processes with a time limit, for whatever may never return: a volume that stalls, a sick GPU, a mirror."""

import os
import signal
import subprocess
import tempfile
import time
from typing import IO, Dict, Mapping, Optional, Sequence

OUTPUT_LIMIT = 1_000_000


class Limited:
    """A child with a limit of real seconds, looked at and never waited for; its output goes to memory or a local disk.

    A process that hangs in the kernel cannot even be killed: `is_over` stays False, and it is for the caller to start
    no other in its place.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], limit_s: float, cwd: str = "/") -> None:
        self._until = time.monotonic() + limit_s
        self._killed = False
        self._output = _buffer()  # not a pipe: nobody needs to read it while the child runs
        try:
            self._process: "Optional[subprocess.Popen[bytes]]" = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError):
            self._process = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended; past its limit it is killed with all it started."""
        if self._process is None:
            return True
        if self._process.poll() is None and not self._killed and time.monotonic() > self._until:
            self.kill()
        return self._process.poll() is not None

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self._until

    @property
    def succeeded(self) -> bool:
        return self._process is not None and not self._killed and self._process.poll() == 0

    def kill(self) -> None:
        self._killed = True
        if self._process is not None and self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except OSError:
                pass

    def output(self) -> bytes:
        """What it printed so far, its end."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), OUTPUT_LIMIT, max(0, size - OUTPUT_LIMIT))

    def close(self) -> None:
        self.kill()
        self._output.close()


def run(argv: Sequence[str], env: Mapping[str, str], limit_s: float) -> Optional[bytes]:
    """Its output once it has ended well; None where it did not in time, or failed."""
    child = Limited(argv, env, limit_s)
    try:
        while not child.is_over and time.monotonic() < child._until + 1.0:
            time.sleep(0.01)
        return child.output() if child.succeeded else None
    finally:
        child.close()


def _buffer() -> IO[bytes]:
    """In memory where the kernel can: the local disk may be full."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("output"), "w+b")
    return tempfile.TemporaryFile()


def without_secrets(environ: Mapping[str, str]) -> Dict[str, str]:
    """For children that need no key."""
    hidden = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")
    return {k: v for k, v in environ.items() if not k.upper().endswith(hidden)}
