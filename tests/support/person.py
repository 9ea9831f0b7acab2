"""Somebody at a terminal: sees what is shown, types when asked."""

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE_S = 20


def converse(
    argv: Sequence[str], answers: Sequence[tuple[str, str]], *, env: dict[str, str], cwd: Path
) -> tuple[int, str]:
    """Run a command on a terminal of its own; each answer is typed once its question is shown.

    Its exit code, and all that the terminal showed.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=cwd)
    os.close(theirs)
    seen, at, todo, until = "", 0, list(answers), time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < until:
            ready, _, _ = select.select([ours], [], [], 0.05)
            data = b""
            if ready:
                with contextlib.suppress(OSError):  # its end: the other side is closed
                    data = os.read(ours, 65536)
            seen += data.decode("utf-8", "replace")
            if todo and todo[0][0] in seen[at:]:
                at = seen.index(todo[0][0], at) + len(todo[0][0])
                for letter in todo.pop(0)[1]:
                    os.write(ours, letter.encode())
                    time.sleep(0.003)  # tmux takes what comes quicker for a paste
            if not data and process.poll() is not None:
                break
        assert process.poll() is not None, f"it still runs:\n{seen}"
        assert not todo, f"never asked {todo[0][0]!r}:\n{seen}"
        return process.returncode, seen
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
