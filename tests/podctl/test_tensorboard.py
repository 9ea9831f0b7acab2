"""A run's curves through a tunnel: real TensorBoard behind a real sshd, under one address however often it breaks."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cut_host import CutHost, FarRun, wait_for
from support.sshd import Sshd, free_port, laptop

from podctl.errors import MissingHere, MissingThere, PodctlError, Unreachable
from podctl.host import Host
from podctl.link import Link
from podctl.localhost import LocalHost
from podctl.pods import Machine
from podctl.providers.ssh import id_of
from podctl.tensorboard import choose_port, curves_there, find_curves, serve
from podctl.ui import Ui
from podctl.wire.host import SshHost
from podctl.wire.openssh import OpenSsh
from podctl.wire.paramiko import Paramiko
from remote.clock import SystemClock

EVENTS = """
import sys
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
w = EventFileWriter(sys.argv[1])
for step in range(3):
    value = Summary.Value(tag="loss/ce", simple_value=4.5 - step)
    w.add_event(Event(step=step, wall_time=1.0 + step, summary=Summary(value=[value])))
w.close()
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    subprocess.run([sys.executable, "-c", EVENTS, str(folder)], check=True, timeout=120, stderr=subprocess.DEVNULL)
    return next(folder.glob("*tfevents*"))


@pytest.fixture
def far(tmp_path: Path, events: Path) -> FarRun:
    far = FarRun(tmp_path)
    far.status()
    far.dir.tensorboard.mkdir()
    (far.dir.tensorboard / events.name).write_bytes(events.read_bytes())
    far.dir.env.write_text(json.dumps({"python": {"executable": sys.executable}}))
    return far


@pytest.fixture(params=["openssh", "paramiko"])
def reached(request, tmp_path: Path) -> Iterator[tuple[Sshd, Host]]:
    with laptop(tmp_path), Sshd(tmp_path / "sshd") as sshd:
        wire = (OpenSsh if request.param == "openssh" else Paramiko)(sshd.address)
        yield sshd, SshHost(wire)
        wire.close()


def points(url: str) -> list[list[float]] | None:
    """The first curve's [time, step, value]s; None while nobody answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}data/plugin/scalars/tags", timeout=5) as reply:
            tags = json.load(reply)
        query = urllib.parse.urlencode({"run": next(iter(tags)), "tag": "loss/ce"})
        with direct.open(f"{url}data/plugin/scalars/scalars?{query}", timeout=5) as reply:
            return list(json.load(reply))
    except (OSError, ValueError, StopIteration):
        return None


def boards(far: FarRun) -> list[str]:
    """Every TensorBoard that serves this run's folder, without the shells around it."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
            if words[:1] == [sys.executable.encode()] and str(far.dir.tensorboard).encode() in words:
                found.append(process.name)
    return found


class Left(Exception):
    pass


class Leaving:
    """A clock that ends what goes by it, as Ctrl-C would."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self._real = SystemClock()

    def now(self) -> float:
        return self.elapsed()

    def elapsed(self) -> float:
        if self.is_over.is_set():
            raise Left
        return self._real.elapsed()

    def sleep(self, seconds: float) -> None:
        self._real.sleep(seconds)


@contextlib.contextmanager
def watched(far: FarRun, host: Host, port: int, capture: list[str]) -> Iterator[None]:
    """Somebody looks at the curves, and leaves in the end."""
    clock, ended = Leaving(), []

    def look() -> None:
        try:
            link = Link(Ui(), clock, hint="", goes_on="")
            serve(curves_there(far.run, host), port, link, clock, capture.append)
        except Left:
            ended.append("left")
        except PodctlError as e:
            ended.append(e.message)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        clock.is_over.set()
        thread.join(30)
    assert ended == ["left"]


def test_a_scalar_comes_through_the_tunnel_and_again_on_the_same_port_once_the_sessions_died(far, reached):
    sshd, host = reached
    port, shown = free_port(), []
    url = f"http://127.0.0.1:{port}/"
    with watched(far, host, port, shown):
        wait_for(lambda: shown, 60)
        first = points(url)
        assert [p[1:] for p in first] == [[0, 4.5], [1, 3.5], [2, 2.5]]
        assert len(boards(far)) == 1
        sshd.kill_sessions()
        wait_for(lambda: points(url) is None, 30)
        wait_for(lambda: points(url) == first, 60)
        wait_for(lambda: len(boards(far)) == 1)  # the old one ended with its link
    assert shown == [url]
    wait_for(lambda: not boards(far))
    assert choose_port(port) == port  # and nothing listens here


def test_where_tensorboard_is_not_installed_over_there_that_is_said_with_what_to_type(far, tmp_path):
    bare = tmp_path / "bare" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare.parent.parent)], check=True)
    far.dir.env.write_text(json.dumps({"python": {"executable": str(bare)}}))
    with pytest.raises(MissingThere) as raised:
        curves_there(far.run, CutHost())
    assert raised.value.exit_code == 9
    assert f"{bare} -m pip install tensorboard" in raised.value.hint
    with pytest.raises(MissingHere, match="not installed"):
        curves_there(far.run, LocalHost())


def test_a_board_that_does_not_start_says_why(far):
    class Misled(LocalHost):
        def stream(self, argv, *, stdin=None):
            return super().stream([*argv, "--no_such_flag"], stdin=stdin)

    clock = SystemClock()
    curves = curves_there(far.run, Misled())
    with pytest.raises(PodctlError, match=r"did not start, and said: .*unrecognized arguments: --no_such_flag"):
        serve(curves, choose_port(None), Link(Ui(), clock, hint=""), clock, print)


def test_the_usual_port_or_a_free_one_is_chosen_and_a_taken_one_refused():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = s.getsockname()[1]
        with pytest.raises(MissingHere, match="is taken"):
            choose_port(taken)
    assert choose_port(taken) == taken
    assert choose_port(None) > 0


def unreachable(far: FarRun, tmp_path: Path) -> None:
    """Point the run at a machine where nobody listens."""
    with Sshd(tmp_path / "gone") as sshd:
        address = sshd.address
    machine = Machine(address, volume_dir="/v")
    object.__setattr__(far.run, "pod", id_of(machine))


def test_curves_that_were_mirrored_are_shown_when_the_machine_does_not_answer(far, tmp_path, events, capfd):
    with laptop(tmp_path):
        unreachable(far, tmp_path)
        with pytest.raises(Unreachable):
            find_curves(far.run, Ui())
        tb = far.results / "tb"
        tb.mkdir(parents=True)
        (tb / events.name).write_bytes(events.read_bytes())
        os.utime(tb / events.name, (time.time() - 7200,) * 2)
        curves = find_curves(far.run, Ui())
    assert curves.logdir == str(tb)
    assert isinstance(curves.host, LocalHost)
    assert "its curves as they were 2 h ago, mirrored here" in capfd.readouterr().err


def test_the_command_prints_the_address_serves_and_leaves_nothing(cli, events):
    script = f"mkdir $PODCTL_RUN_DIR/tb; cp {events} $PODCTL_RUN_DIR/tb"
    assert cli("train", "-c", cli.experiment(script), "--local").code == 0
    port = free_port()
    process = cli.start("tensorboard", "--port", port, "--json")
    told = json.loads(process.stdout.readline())
    assert told["url"] == f"http://127.0.0.1:{port}/"
    assert [p[2] for p in points(told["url"])] == [4.5, 3.5, 2.5]
    refused = cli("tensorboard", "--port", port)
    assert refused.code == 9, refused
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert points(told["url"]) is None
