"""One process of the job with all it started: its output read, its group signalled, nothing of it left behind."""

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Callable, Mapping, Optional, Sequence

from remote import machine
from remote.files import StrPath
from remote.runlog import Redactor, RunLog

CHUNK = 1 << 16
LAST_BYTES = 1 << 20  # of what is in the pipe when a process is ended, at most this much is still taken
PR_SET_PDEATHSIG = 1


class Child:
    """A process in a session and group of its own. Raises OSError where it cannot be started.

    To be made in the main thread: on Linux the kernel sends it SIGTERM when the thread that made it is gone, so a
    job whose runner was killed saves and leaves.
    """

    def __init__(self, argv: Sequence[str], cwd: StrPath, env: Mapping[str, str], log: RunLog) -> None:
        output, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                list(argv),
                cwd=os.fspath(cwd),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
                preexec_fn=_leave_with_parent(),
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(write_end)
        self._pump = _Pump(output, log)

    @property
    def has_ended(self) -> bool:
        """Whether the process itself is dead; what it started may live on."""
        if hasattr(os, "waitid"):  # looks without reaping, so that nobody else can be given the group's number yet
            return self._process.returncode is not None or bool(
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            )
        return self._process.poll() is not None

    @property
    def has_heirs(self) -> bool:
        """Whether anybody of its group still runs."""
        return machine.group_lives(self._process.pid)

    @property
    def is_silent(self) -> bool:
        """Whether nobody holds its output open any more, and all of it was taken."""
        return not self._pump.is_alive

    def signal(self, number: int) -> None:
        """To everyone in the group; a stopped one is woken, or it would not hear it."""
        for n in (number, signal.SIGCONT):
            try:
                os.killpg(self._process.pid, n)
            except OSError:
                return  # nobody there

    def finish(self, timeout_s: float = 5.0) -> int:
        """Ends whatever is left of the group, takes its last output, and returns the exit code (-n for a signal n)."""
        self.signal(signal.SIGKILL)
        self._pump.stop(timeout_s)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL  # it hangs in the kernel: a GPU or a volume that does not answer


def _leave_with_parent() -> Optional[Callable[[], None]]:
    """What the child does between fork and exec."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: nothing may be loaded after it
    parent = os.getpid()

    def leave_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # died in between
            os._exit(128 + signal.SIGTERM)

    return leave_with_parent


class _Pump:
    """Reads a process's output into the log until everybody has closed it, or until told to stop."""

    def __init__(self, output: int, log: RunLog) -> None:
        self._output = output
        self._log = log
        self._wake_r, self._wake_w = os.pipe()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> None:
        os.close(self._wake_w)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        redactor = self._log.redactor()
        while self._wait(redactor):
            data = os.read(self._output, CHUNK)
            if not data:
                break
            self._log.feed(redactor.feed(data))
        else:
            self._take_last(redactor)
        self._log.feed(redactor.flush())
        os.close(self._output)
        os.close(self._wake_r)

    def _wait(self, redactor: Redactor) -> bool:
        """Returns when there is output (or its end), or False when told to stop."""
        while True:
            timeout_s = 0.2 if redactor.holds_back else None
            ready, _, _ = select.select([self._output, self._wake_r], [], [], timeout_s)
            if self._wake_r in ready:
                return False
            if ready:
                return True
            self._log.feed(redactor.flush())  # a prompt, not the beginning of a secret

    def _take_last(self, redactor: Redactor) -> None:
        taken = 0
        while taken < LAST_BYTES and select.select([self._output], [], [], 0)[0]:
            data = os.read(self._output, CHUNK)
            if not data:
                return
            taken += len(data)
            self._log.feed(redactor.feed(data))
