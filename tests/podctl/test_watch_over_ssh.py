"""Following, mirroring and stopping over a real sshd whose sessions die."""

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.cut_host import FarRun
from support.pod import Pod
from support.sshd import Sshd, laptop

from podctl.errors import Untrusted
from podctl.ledger import Ledger
from podctl.pods import Run
from podctl.stop import stop_run
from podctl.ui import Ui
from podctl.watch import Watcher
from podctl.wire.host import SshHost
from podctl.wire.openssh import OpenSsh
from podctl.wire.paramiko import Paramiko
from remote.clock import SystemClock

SAVES = "trap 'sleep 1.5; echo saved; exit 75' TERM; echo begun; while :; do sleep 0.05; done"


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with laptop(tmp_path), Sshd(tmp_path / "sshd") as sshd:
        yield sshd


@pytest.fixture(params=["openssh", "paramiko"])
def host(request, sshd: Sshd) -> Iterator[SshHost]:
    host = SshHost((OpenSsh if request.param == "openssh" else Paramiko)(sshd.address, alive_s=1))
    yield host
    host.close()


def test_sessions_that_die_and_connections_that_freeze_cost_no_byte(sshd, host, tmp_path, capfdbinary):
    far = FarRun(tmp_path)
    far.status()

    def write() -> None:
        troubles = [sshd.kill_sessions, sshd.kill_sessions, sshd.freeze_sessions]  # the last: nobody is told
        until, n = time.monotonic() + 60, 0
        while (troubles or sshd.logins < 4) and time.monotonic() < until:
            n += 1
            far.say(f"line {n} {'x' * (n * 37 % 999)}\n")
            with far.dir.metrics.open("a") as f:
                f.write(f'{{"step": {n}}}\n')
            time.sleep(0.01)
            if troubles and sshd.logins == 4 - len(troubles) and n % 20 == 0:
                troubles.pop(0)()
        far.end("the end\n")

    writing = threading.Thread(target=write)
    writing.start()
    w = Watcher(far.run, host, Ui(), SystemClock())
    assert w.attend(Ledger(tmp_path / "ledger.jsonl")) == 0
    writing.join()
    out = capfdbinary.readouterr().out
    assert out == far.dir.log.read_bytes()
    assert (far.results / "log").read_bytes() == out
    assert (far.results / "metrics.jsonl").read_bytes() == far.dir.metrics.read_bytes()
    assert sshd.logins >= 4


def test_a_stop_that_is_cut_off_while_the_run_saves_is_asked_again(sshd, host, tmp_path, capfd):
    with Pod(tmp_path) as pod:
        pod.job("bash", "-c", SAVES)
        pod.start(stdout=subprocess.DEVNULL)
        pod.wait_for("begun")
        detail = {"run_dir": str(pod.run), "tool_dir": str(pod.tool), "socket": "-", "project_root": str(tmp_path)}
        run = Run(pod.run_id, "p", "demo", "ssh", "", time.time(), pod="x", launched_at=1.0, detail=detail)
        cutting = threading.Thread(target=lambda: (pod.wait_for_state("stopping"), sshd.kill_sessions()))
        cutting.start()
        ledger = Ledger(tmp_path / "ledger.jsonl")
        assert stop_run(Watcher(run, host, Ui(), SystemClock()), ledger, grace_s=20) == 0
        cutting.join()
        assert pod.status.state == "stopped"
        assert pod.log.count("saved") == 1
    assert next(e.event for e in ledger.events()) == "stop_asked"
    assert "stopped" in capfd.readouterr().err


def test_a_machine_whose_host_key_changed_is_left_at_once(sshd, host, tmp_path):
    far = FarRun(tmp_path)
    far.status()
    wrong = " ".join([sshd.host_key.split()[0], sshd.host_key.split()[1][:-8] + "AAAAAAAA"])
    other = SshHost(type(host.wire)(replace(sshd.address, host_key=wrong)))
    begun = time.monotonic()
    with pytest.raises(Untrusted):
        Watcher(far.run, other, Ui(), SystemClock()).follow()
    assert time.monotonic() - begun < 10
