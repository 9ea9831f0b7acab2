"""A page as a real browser shows it, without a network: what it says in the end, and what it complained of."""

import contextlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr"]
needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")


@dataclass(frozen=True)
class Shown:
    dom: str
    complaints: list[str]  # everything that the page or the browser said in its console


def show(address: str, *flags: str, budget_ms: int = 4000) -> Shown:
    """The document after its scripts ran."""
    with tempfile.TemporaryDirectory() as profile:
        argv = ["chromium", *FLAGS, *flags, f"--user-data-dir={profile}", f"--virtual-time-budget={budget_ms}"]
        done = subprocess.run([*argv, "--dump-dom", address], capture_output=True, timeout=60, check=False)
    said = done.stderr.decode("utf-8", "replace").splitlines()
    return Shown(done.stdout.decode("utf-8", "replace"), [line for line in said if "CONSOLE" in line])


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on loopback: pages of one origin may look into each other."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
