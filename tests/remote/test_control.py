"""How a run is looked at and stopped from outside."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from support.pod import Pod, is_alive, wait_until

from remote import machine
from remote.rundir import RUNNING, STOPPED, SUCCEEDED, write_dataclass

SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("up", flush=True)
while True: time.sleep(0.05)
"""


@pytest.fixture
def pod(tmp_path):
    with Pod(tmp_path) as pod:
        yield pod


@pytest.fixture
def stranger():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_stop_waits_for_the_job_to_save_and_says_how_it_ended(pod):
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    answer = pod.control("stop", "--grace", "10")
    assert (answer["state"], answer["exit_code"], answer["reason"]) == (STOPPED, 75, "asked to stop (SIGTERM)")
    assert process.wait(20) == 75
    assert answer == asdict(pod.status)


def test_stop_of_a_run_that_ended_says_so_at_once(pod):
    pod.finish("true")
    assert pod.control("stop")["state"] == SUCCEEDED


def test_stop_before_the_first_status_finds_nobody(pod):
    assert pod.control("stop")["state"] == "lost"


def test_stop_of_a_run_whose_runner_is_gone_says_lost(pod):
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    process.kill()
    process.wait()
    answer = pod.control("stop")
    assert (answer["state"], answer["attempt"]) == ("lost", 1)
    assert str(process.pid) in answer["reason"]


def test_stop_in_vain_ends_in_time_and_shows_a_run_that_is_not_final(pod):
    pod.job("bash", "-c", "trap '' TERM; echo up; while :; do sleep 1; done", grace_s=1000)
    pod.start()
    pod.wait_for("up\n")
    argv = [sys.executable, str(pod.tool / "remote" / "control.py"), "stop", str(pod.run), "--grace", "-14.5"]
    done = subprocess.run(argv, env=pod.env, capture_output=True, timeout=20)
    assert done.returncode == 1
    assert json.loads(done.stdout)["state"] == "stopping"
    assert b"did not end in time" in done.stderr
    pod.move_clock(2000)


@pytest.mark.parametrize("which", ["a reused pid", "another boot", "another run's runner"])
def test_a_stranger_is_never_signalled(pod, stranger, which):
    pod.finish("true")
    status = replace(pod.status, state=RUNNING, ended_at=None, exit_code=None)
    if which == "a reused pid":
        write_dataclass(pod.run.status, replace(status, pid=stranger.pid))
        victim = stranger.pid
    else:
        other = Pod(pod.root, run_id="other")
        other.job(*other.script(SAVES))
        victim = other.start().pid
        pod.started.extend(other.started)
        other.wait_for("up")
        boot = machine.boot_id() if which == "another run's runner" else "other-boot"
        write_dataclass(pod.run.status, replace(status, pid=victim, boot_id=boot))
        if which == "another boot":
            write_dataclass(other.run.status, replace(other.status, boot_id=boot))
            pod = other
    assert pod.control("stop")["state"] == "lost"
    assert is_alive(victim)


def test_a_runner_is_known_by_its_command_line(pod, stranger):
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    assert machine.is_runner_of(process.pid, pod.run.root)
    assert not machine.is_runner_of(process.pid, pod.run.root.parent)
    assert not machine.is_runner_of(stranger.pid, pod.run.root)
    assert not machine.is_runner_of(os.getpid(), pod.run.root)


def test_one_look_tells_status_progress_and_log(pod):
    pod.job(*pod.script(SAVES))
    pod.start()
    pod.wait_for("up")
    pod.run.progress.write_text('{"step": 7}')
    answer = pod.control("status")
    assert set(answer) == {"status", "progress", "lost", "log_size", "boot_id", "now"}
    assert answer["status"] == asdict(pod.status)
    assert answer["progress"] == {"step": 7}
    assert answer["lost"] is False
    assert answer["log_size"] == pod.run.log.stat().st_size
    assert answer["boot_id"] == answer["status"]["boot_id"]
    assert answer["now"] >= answer["status"]["heartbeat_at"]


def test_a_look_before_anything_happened_finds_nothing_and_says_so(pod):
    answer = pod.control("status")
    assert (answer["status"], answer["progress"], answer["lost"], answer["log_size"]) == (None, None, False, 0)


def test_a_torn_progress_file_is_no_progress(pod):
    pod.finish("true")
    pod.run.progress.write_text('{"step": ')
    assert pod.control("status")["progress"] is None


def test_a_runner_on_another_machine_is_lost_only_when_its_heartbeat_is_old(pod):
    pod.finish("true")
    status = replace(pod.status, state=RUNNING, ended_at=None, exit_code=None, boot_id="elsewhere")
    write_dataclass(pod.run.status, status)
    assert pod.control("status")["lost"] is False
    pod.move_clock(61)
    assert pod.control("status")["lost"] is True


def test_a_runner_that_lives_is_not_lost_however_old_its_heartbeat(pod):
    """Its volume may be full: then nothing new can be written, while the job goes on."""
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    process.send_signal(signal.SIGSTOP)
    pod.move_clock(3000)
    assert pod.control("status")["lost"] is False
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: pod.status.heartbeat_at - pod.status.started_at > 2000, "the heartbeat goes on")


@pytest.mark.parametrize("words", [[], ["status"], ["kill", "x"], ["stop", "x", "--grace", "soon"], ["stop", "x", "y"]])
def test_a_wrong_call_says_how_to_call(pod, words):
    argv = [sys.executable, str(pod.tool / "remote" / "control.py"), *words]
    done = subprocess.run(argv, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: python control.py status RUN_DIR")
