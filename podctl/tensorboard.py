"""TensorBoard on demand, on the run's machine, loopback only, for as long as one looks; under one local address
however often the link breaks."""

import contextlib
import importlib.util
import json
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from podctl.errors import MissingHere, MissingThere, PodctlError, Unreachable
from podctl.host import Host, Stream
from podctl.link import ASLEEP_S, Link
from podctl.localhost import LocalHost
from podctl.pods import Run
from podctl.runs import host_for, results_dir, run_dir
from podctl.ui import Ui
from remote.clock import Clock, duration

USUAL_PORT = 6006
START_S = 60.0  # until it answers: a cold start over a network volume is slow
LOOK_S = 5.0  # between two looks at whether the tunnel still listens
AGAIN = "it is opened anew under the same address"
SERVING = re.compile(r"TensorBoard \S+ at https?://\S*?:(\d+)/")


@dataclass(frozen=True)
class Curves:
    """What is served: event files, the machine they lie on, the Python there that has TensorBoard."""

    host: Host
    logdir: str
    python: str


@dataclass(frozen=True)
class Served:
    """A TensorBoard that answers here."""

    url: str
    stream: Stream
    pieces: Iterator[bytes]


def find_curves(run: Run, ui: Ui) -> Curves:
    """The run's own, or, where its machine is gone or silent, those that were mirrored; then it says so.

    Raises MissingThere, MissingHere, Unreachable, PodctlError.
    """
    if "tool_dir" not in run.detail:
        raise PodctlError(f"{run.id} never began", "podctl train starts it")
    try:
        host = host_for(run)
    except PodctlError as e:
        return _mirrored(run, ui, e)
    try:
        return curves_there(run, host)
    except Unreachable as e:
        return _mirrored(run, ui, e)


def curves_there(run: Run, host: Host) -> Curves:
    """The run's own, on its machine. Raises Unreachable, MissingThere, PodctlError."""
    where = run_dir(run)
    python = _recorded_python(host.read(PurePosixPath(where.env))) or str(run.detail.get("python") or "")
    if not python:
        raise PodctlError(f"{run.id} has no Python environment yet", f"podctl attach {run.id} shows how far it is")
    ask = "import importlib.util as u, sys; sys.exit(3 * (u.find_spec('tensorboard') is None))"
    if not host.run([python, "-P", "-c", ask]).ok:
        if isinstance(host, LocalHost):
            raise MissingHere(f"tensorboard is not installed beside {python}", "pip install 'podctl[train]'")
        hint = f"there: {python} -m pip install tensorboard; or podctl pull {run.id} brings the event files"
        raise MissingThere(f"tensorboard is not installed on {host.name} beside {python}", hint)
    return Curves(host, str(where.tensorboard), python)


def curves_here(run: Run) -> Curves | None:
    """What was mirrored of them, where there is any and this machine can show it."""
    tb = results_dir(run) / "tb"
    if not _events(tb) or importlib.util.find_spec("tensorboard") is None:
        return None
    return Curves(LocalHost(), str(tb), sys.executable)


def serve(curves: Curves, port: int, link: Link, clock: Clock, show: Callable[[str], None]) -> None:
    """Until Ctrl-C. `show` hears the address once, when it answers; after a break it is the same.

    Raises Unreachable where the link stays down, PodctlError where TensorBoard itself ends.
    """
    is_shown = False
    while True:
        try:
            with serving(curves, port, clock) as served:
                link.answered()
                if not is_shown:
                    show(served.url)
                is_shown = True
                _stay(served, port, clock)
        except Unreachable as e:
            link.lost(e)


@contextlib.contextmanager
def serving(curves: Curves, port: int, clock: Clock) -> Iterator[Served]:
    """The curves at a port of this machine, for as long as the block lasts.

    Raises Unreachable, PodctlError where it does not start.
    """
    here = isinstance(curves.host, LocalHost)
    argv = [curves.python, "-P", "-m", "tensorboard.main", "--logdir", curves.logdir, "--host", "127.0.0.1"]
    if not is_free(port):  # after a break: whatever held the old tunnel needs a moment to let go
        raise Unreachable(f"port {port} is taken on this machine", "end what listens there, or --port with another")
    with curves.host.stream([*argv, "--port", str(port if here else 0)]) as stream:
        pieces = iter(stream)
        remote_port = port if here else _its_port(stream, pieces, clock)
        with curves.host.forward(remote_port, port):
            url = f"http://127.0.0.1:{port}/"
            _wait(stream, pieces, clock, lambda: _answers(url))
            yield Served(url, stream, pieces)


def choose_port(wanted: int | None) -> int:
    """The one that is asked for, or the usual one, or a free one. Raises MissingHere."""
    if wanted is not None:
        if not is_free(wanted):
            raise MissingHere(f"port {wanted} is taken on this machine", "--port with another, or leave it out")
        return wanted
    if is_free(USUAL_PORT):
        return USUAL_PORT
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def is_free(port: int) -> bool:
    """Does nobody listen there on loopback? One that closed a moment ago is free."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _mirrored(run: Run, ui: Ui, error: PodctlError) -> Curves:
    curves = curves_here(run)
    if curves is None:
        raise error
    age_s = time.time() - max(f.stat().st_mtime for f in _events(Path(curves.logdir)))
    ui.warn(f"{error.message}: these are its curves as they were {duration(age_s)} ago, mirrored here")
    return curves


def _events(tb: Path) -> list[Path]:
    return list(tb.rglob("*tfevents*")) if tb.is_dir() else []


def _stay(served: Served, port: int, clock: Clock) -> None:
    """Until something ends it. Raises Unreachable for the link, PodctlError for TensorBoard."""
    ticked_at = looked_at = clock.elapsed()
    for _ in served.pieces:
        now = clock.elapsed()
        if now - ticked_at > ASLEEP_S:
            raise Unreachable(f"this machine slept for {duration(now - ticked_at)}", AGAIN)
        if now - looked_at > LOOK_S:
            looked_at = now
            if is_free(port):
                raise Unreachable("the tunnel is closed", AGAIN)
        ticked_at = now
    raise PodctlError(f"TensorBoard ended by itself, and said: {_last_word(served.stream)}")


def _its_port(stream: Stream, pieces: Iterator[bytes], clock: Clock) -> int:
    """The port that it chose, by its own word."""
    _wait(stream, pieces, clock, lambda: SERVING.search(stream.stderr))
    found = SERVING.search(stream.stderr)
    return int(found[1]) if found else 0


def _wait(stream: Stream, pieces: Iterator[bytes], clock: Clock, claim: Callable[[], object]) -> None:
    """Until it holds, bounded. Raises PodctlError with what TensorBoard said."""
    until = clock.elapsed() + START_S
    for _ in pieces:
        if claim():
            return
        if clock.elapsed() > until:
            break
    raise PodctlError(f"TensorBoard did not start, and said: {_last_word(stream)}")


def _last_word(stream: Stream) -> str:
    return (stream.stderr.strip().splitlines() or ["nothing"])[-1]


def _recorded_python(env: bytes | None) -> str:
    """The environment's own, by what its runner wrote down; "" before it did."""
    try:
        return str(json.loads(env or b"{}")["python"]["executable"])
    except (ValueError, KeyError, TypeError):
        return ""


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
    try:
        with direct.open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
