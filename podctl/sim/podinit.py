"""The first process of an emulated pod: adopts what its processes leave behind, so that all can be found.

usage: python -I -S podinit.py ROOT HOME MARK PROGRAM [ARG …]     stdin: a pipe from the cloud

It starts the program and writes its number to HOME/main, its exit code, once it has ended, to HOME/ended. SIGTERM is
passed on; SIGUSR1 becomes the program's SIGKILL. When the cloud is no more (end of file on stdin), everything ends.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
from pathlib import Path

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def main(root: str, home: str, mark: str, *program: str) -> None:
    sys.path.insert(0, root)
    from podctl.sim.processes import end_all

    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    both = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, both)  # until somebody is there to pass them on to
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        _become(program)
    Path(home, "main").write_text(str(pid))
    signal.signal(signal.SIGTERM, lambda *_: _send(pid, signal.SIGTERM))
    signal.signal(signal.SIGUSR1, lambda *_: _send(pid, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    while True:
        _reap(pid, Path(home))
        gone, _, _ = select.select([0], [], [], 0.02)
        if gone and not os.read(0, 1):
            end_all([os.getpid()], mark)
            return


def _become(program: "tuple[str, ...]") -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.setsid()
    try:
        os.execvp(program[0], program)
    except OSError as e:  # as a container runtime: it says so
        os.write(2, f"exec: {program[0]}: {e.strerror}\n".encode())
    os._exit(127)


def _reap(main_pid: int, home: Path) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == main_pid:
                (home / "ended").write_text(str(os.waitstatus_to_exitcode(status)))


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    main(*sys.argv[1:])
