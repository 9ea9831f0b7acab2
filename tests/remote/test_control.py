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
from remote.control import runner_lives
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
    pod.job(*pod.script(SAVES))
    runner = pod.start()
    pod.wait_for("up")
    runner.send_signal(signal.SIGSTOP)  # as a runner that hangs in the kernel
    argv = [sys.executable, str(pod.tool / "remote" / "control.py"), "stop", str(pod.run), "--grace", "50"]
    asking = subprocess.Popen(argv, env=pod.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: list(pod.disk.glob("turn/*.grace")), "the request")
    for n in range(1, 200):  # again and again: it may not have looked at the clock before the first jump
        pod.move_clock(100 * n)
        try:
            out, err = asking.communicate(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    assert asking.returncode == 1
    assert json.loads(out)["state"] == "running"
    assert b"did not end in time" in err
    runner.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(("own_s", "asked_s", "code"), [(0.1, "1000", 75), (1000, "0.2", 137)])
def test_whoever_stops_a_run_may_give_it_more_or_less_time_than_the_job_says(pod, own_s, asked_s, code):
    ends = "time.sleep(1.5); sys.exit(75)" if code == 75 else "print('no', flush=True)"
    pod.script(
        "import signal, sys, time\n"
        f"def save(*_): {ends}\n"
        "signal.signal(signal.SIGTERM, save)\nprint('up', flush=True)\nwhile True: time.sleep(0.05)\n"
    )
    pod.job("python", "job.py", grace_s=own_s)
    process = pod.start()
    pod.wait_for("up\n")
    answer = pod.control("stop", "--grace", asked_s)
    assert (answer["state"], answer["exit_code"]) == (STOPPED, code)
    assert f"{float(asked_s):g} s to go" in pod.log
    assert process.wait(20) == code
    assert not list(pod.disk.glob("turn/*.grace")), "the next attempt has its own"


def test_a_run_that_is_being_stopped_can_be_given_less_time(pod):
    pod.job("bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done", grace_s=1000)
    process = pod.start()
    pod.wait_for("up\n")
    process.terminate()
    pod.wait_for("saving, 1000 s to go")
    answer = pod.control("stop", "--grace", "0.1")
    assert (answer["state"], answer["signal"]) == (STOPPED, 9)
    assert answer["reason"] == "asked to stop (SIGTERM); it did not save in time and was killed"


def test_where_no_tickets_are_kept_a_run_is_stopped_with_its_own_grace(pod):
    (pod.disk / "turn").touch()
    pod.job(*pod.script(SAVES))
    pod.start()
    pod.wait_for("up")
    assert pod.control("stop", "--grace", "5")["state"] == STOPPED


def test_a_look_tells_who_else_lives_on_the_machine(pod):
    pod.job(*pod.script(SAVES))
    pod.start()
    pod.wait_for("up")
    assert pod.control("status")["others"] == []
    other = pod.another("other")
    other.job(*pod.script(SAVES))
    process = other.start()
    other.wait_for("up")
    env = {k: v for k, v in pod.env.items() if k != "PODCTL_DISK"}  # as over SSH
    argv = [sys.executable, str(pod.tool / "remote" / "control.py"), "status", str(pod.run)]
    look = json.loads(subprocess.run(argv, env=env, stdout=subprocess.PIPE, timeout=20, check=True).stdout)
    assert look["others"] == ["other"]
    assert look["status"]["disk"] == str(pod.disk)
    process.kill()
    process.wait()
    assert pod.control("status")["others"] == []


def test_a_runner_lives_from_its_first_moment_to_its_last_word(pod):
    assert not runner_lives(pod.run, pod.disk)
    (pod.run.status / "in the way").mkdir(parents=True)  # so that it writes no status
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    assert pod.status is None
    assert runner_lives(pod.run, pod.disk)
    assert pod.control("lives") == {"lives": True}
    assert not runner_lives(pod.volume.run("other"), pod.disk)
    process.kill()
    process.wait()
    assert pod.control("lives") == {"lives": False}


def test_a_runner_lives_where_the_machine_keeps_no_tickets(pod):
    (pod.disk / "turn").touch()
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    assert runner_lives(pod.run, pod.disk)
    process.terminate()
    process.wait(20)
    assert not runner_lives(pod.run, pod.disk)


@pytest.mark.parametrize("off_s", [86_400, -86_400])
def test_a_clock_a_day_off_makes_no_run_of_this_machine_lost_and_hides_none(pod, off_s):
    pod.move_clock(0, wall_s=off_s)
    pod.job(*pod.script(SAVES))
    process = pod.start()
    pod.wait_for("up")
    pod.move_clock(0, wall_s=0)  # somebody puts it right
    look = pod.control("status")
    assert (look["lost"], look["status"]["state"]) == (False, RUNNING)
    process.kill()
    process.wait()
    assert pod.control("status")["lost"] is True


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
    assert set(answer) == {"status", "progress", "lost", "others", "log_size", "boot_id", "now"}
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


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["status"],
        ["kill", "x"],
        ["stop", "x", "--grace", "soon"],
        ["stop", "x", "--grace", "-1"],
        ["stop", "x", "--grace", "nan"],
        ["stop", "x", "y"],
        ["lives"],
    ],
)
def test_a_wrong_call_says_how_to_call(pod, words):
    argv = [sys.executable, str(pod.tool / "remote" / "control.py"), *words]
    done = subprocess.run(argv, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: python control.py status RUN_DIR")
