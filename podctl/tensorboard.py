"""TensorBoard on demand, on the run's machine, loopback only, for as long as one looks."""

import contextlib
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from podctl import shell
from podctl.errors import MissingHere, PodctlError
from podctl.host import Host
from podctl.pods import Run
from podctl.runs import run_dir

if TYPE_CHECKING:
    import subprocess

PATIENCE_S = 60


@contextlib.contextmanager
def serving(run: Run, host: Host) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of the run's curves and the process that serves them, while the block lasts.

    Raises MissingHere, PodctlError.
    """
    if "python" not in run.detail:
        raise PodctlError(f"{run.id} never began", "podctl train starts it")
    python = str(run.detail["python"])
    if not shell.run(
        [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('tensorboard') is None)"]
    ).ok:
        raise MissingHere(f"tensorboard is not installed beside {python}", "pip install 'podctl[train]'")
    port = free_port()
    argv = [python, "-P", "-m", "tensorboard.main", "--logdir", str(run_dir(run).tensorboard)]
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp, host.forward(port, port):
        log = Path(tmp, "log")
        with shell.child([*argv, "--host", "127.0.0.1", "--port", str(port)], log=log) as process:
            url = f"http://127.0.0.1:{port}/"
            until = time.monotonic() + PATIENCE_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    said = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
                    raise PodctlError(f"TensorBoard did not start, and said: {said[0]}")
                time.sleep(0.1)
            yield url, process


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
    try:
        with direct.open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
