"""What becomes of a run: exit codes, requests to stop, limits, attempts that overlap."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.pod import Pod, is_alive, wait_until

from remote.rundir import FAILED, RUNNING, STOPPED, STOPPING, SUCCEEDED, Stage

SAVES = """
import os, signal, sys, time
def save(*_):
    open(os.environ["PODCTL_RUN_DIR"] + "/saved", "w").write("whole")
    sys.exit({code})
signal.signal(signal.SIGTERM, save)
os.write(1, b"pid %d up\\n" % os.getpid())  # in one piece
while True: time.sleep(0.05)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"pid %d up\\n" % os.getpid())
while True: time.sleep(0.05)
"""


@pytest.fixture
def pod(tmp_path):
    with Pod(tmp_path) as pod:
        yield pod


def pid_in(log: str) -> int:
    return int(log.split("pid ")[1].split()[0])


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        (0, SUCCEEDED, ""),
        (1, FAILED, "the command ended with exit code 1: the end of the log says why"),
        (2, FAILED, "the command ended with exit code 2, bad input: the end of the log says why"),
        (75, STOPPED, "it saved and left by itself (exit code 75)"),
    ],
)
def test_the_exit_code_of_the_job_decides_the_state_and_is_passed_on(pod, code, state, reason):
    status = pod.finish("bash", "-c", f"exit {code}")
    assert (status.state, status.exit_code, status.signal, status.reason) == (state, code, None, reason)
    assert (status.phase, status.attempt, status.run_id) == ("train", 1, pod.run_id)
    assert status.ended_at is not None


def test_a_job_killed_by_a_signal_failed_and_says_by_which(pod):
    status = pod.finish("bash", "-c", "kill -SEGV $$")
    assert (status.state, status.exit_code, status.signal) == (FAILED, 128 + 11, 11)
    assert "killed by SIGSEGV" in status.reason


def test_a_running_job_says_so_in_its_status(pod):
    pod.job(*pod.script(SAVES.format(code=75)))
    process = pod.start()
    pod.wait_for("pid")
    status = pod.wait_for_state(RUNNING)
    assert status.pid == process.pid, "run.sh becomes the runner, so tmux, status and ps name the same process"
    assert (status.phase, status.ended_at, status.exit_code) == ("train", None, None)


def test_the_heartbeat_goes_on_while_the_job_says_nothing(pod):
    pod.job("sleep", "60")
    pod.start()
    first = pod.wait_for_state(RUNNING).heartbeat_at
    pod.move_clock(6)
    wait_until(lambda: pod.status.heartbeat_at >= first + 6, "a new heartbeat")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_the_job_saves_and_the_run_is_stopped(pod, number):
    pod.job(*pod.script(SAVES.format(code=75)))
    process = pod.start()
    pod.wait_for("pid")
    process.send_signal(number)
    assert process.wait(20) == 75
    assert (pod.status.state, pod.status.exit_code) == (STOPPED, 75)
    assert pod.status.reason == f"asked to stop ({number.name})"
    assert (pod.run.root / "saved").read_text() == "whole"


def test_a_job_that_finishes_while_being_stopped_has_succeeded(pod):
    pod.job(*pod.script(SAVES.format(code=0)))
    process = pod.start()
    pod.wait_for("pid")
    pod.move_clock(3700)
    assert process.wait(20) == 0
    assert (pod.status.state, pod.status.reason, pod.status.limit) == (SUCCEEDED, "", "")


def test_a_job_that_ignores_the_request_is_killed_after_the_grace_and_not_before(pod):
    pod.job(*pod.script(STUBBORN), grace_s=1000)
    process = pod.start()
    pod.wait_for("up")
    process.terminate()
    pod.wait_for_state(STOPPING)
    process.terminate()  # a second request neither shortens the grace nor ends the runner
    process.send_signal(signal.SIGINT)
    pod.move_clock(990)
    wait_until(lambda: pod.status.heartbeat_at - pod.status.started_at > 900, "a heartbeat after the clock moved")
    assert pod.status.state == STOPPING
    pod.move_clock(1100)
    assert process.wait(20) == 128 + 9
    assert (pod.status.state, pod.status.signal) == (STOPPED, 9)
    assert pod.status.reason == "asked to stop (SIGTERM); it did not save in time and was killed"


def test_a_trainer_below_a_shell_gets_its_grace_though_the_shell_dies_at_once(pod):
    pod.script(SAVES.format(code=75).replace("def save(*_):", "def save(*_):\n    time.sleep(2.5)"))
    pod.job("bash", "-c", "python job.py; true")
    process = pod.start()
    pod.wait_for("pid")
    process.terminate()
    process.wait(20)
    assert (pod.run.root / "saved").read_text() == "whole"
    assert pod.status.state == STOPPED


def test_max_hours_ends_the_attempt_as_a_request_to_stop_does(pod):
    pod.job(*pod.script(SAVES.format(code=75)), max_hours=0.5)
    process = pod.start()
    pod.wait_for("pid")
    pod.move_clock(1810)
    assert process.wait(20) == 75
    status = pod.status
    assert (status.state, status.limit, status.reason) == (STOPPED, "max_hours", "max_hours (0.5 h) reached")


@pytest.mark.parametrize("wall_s", [86_400, -86_400])
def test_a_clock_that_is_set_to_another_day_neither_ends_a_run_nor_makes_it_endless(pod, wall_s):
    pod.job(*pod.script(SAVES.format(code=75)), max_hours=0.5)
    process = pod.start()
    pod.wait_for("pid")
    before = pod.status.heartbeat_at
    pod.move_clock(0, wall_s)
    wait_until(lambda: abs(pod.status.heartbeat_at - before - wall_s) < 600, "a heartbeat by the new time")
    pod.move_clock(1700, wall_s)
    wait_until(lambda: pod.status.heartbeat_at - before - wall_s > 1600, "a heartbeat later")
    assert pod.status.state == RUNNING
    pod.move_clock(1810, wall_s)
    assert process.wait(20) == 75
    assert pod.status.limit == "max_hours"
    assert "=== stopped after 30 m" in pod.log


def test_a_grace_is_kept_though_the_clock_is_set_to_another_day(pod):
    pod.job(*pod.script(STUBBORN), grace_s=100)
    process = pod.start()
    pod.wait_for("up")
    process.terminate()
    pod.wait_for_state(STOPPING)
    pod.move_clock(0, -86_400)
    pod.move_clock(110, -86_400)
    assert process.wait(20) == 128 + 9


def test_a_killed_runner_leaves_a_job_that_saves_and_goes(pod):
    pod.job(*pod.script(SAVES.format(code=75)))
    process = pod.start()
    pod.wait_for("pid")
    process.kill()
    process.wait()
    wait_until((pod.run.root / "saved").exists, "the job saved")
    wait_until(lambda: not is_alive(pid_in(pod.log)), "the job left")
    assert pod.control("status")["lost"] is True


def test_what_a_killed_runner_left_running_is_ended_before_the_next_attempt_begins(pod):
    """The kernel tells a job's own process, not what a shell has started: that would hold the GPU's memory."""
    pod.script(SAVES.format(code=75))
    pod.job("bash", "-c", "python job.py; true")
    process = pod.start()
    pod.wait_for("pid")
    orphan = pid_in(pod.log)
    process.kill()
    process.wait()
    assert is_alive(orphan)
    pod.finish("bash", "-c", f"grep -qs . /proc/{orphan}/cmdline && echo still there; true")
    assert "still there" not in pod.log
    assert (pod.run.root / "saved").exists(), "asked first"
    # the shell was told to end, and may be seen once more on its way out
    assert re.search(r"\d process(es)? of an earlier attempt still runs? here: ended", pod.log), pod.log


def test_an_orphan_that_does_not_listen_is_killed_after_the_grace_and_other_runs_are_let_be(pod):
    other = Pod(pod.root, run_id="other")
    other.job(*other.script(SAVES.format(code=75), "other.py"))
    pod.started.append(other.start())
    other.wait_for("pid")
    pod.script(STUBBORN)
    pod.job("bash", "-c", "python job.py; true")
    process = pod.start()
    pod.wait_for("up")
    orphan = pid_in(pod.log)
    process.kill()
    process.wait()
    assert pod.finish("true", grace_s=0.3).state == SUCCEEDED
    assert "of an earlier attempt, killed" in pod.log
    wait_until(lambda: not is_alive(orphan), "the orphan is gone")
    assert is_alive(pid_in(other.log))


def test_attempts_count_up_and_the_log_has_a_header_for_each(pod):
    assert pod.finish("echo", "one").attempt == 1
    assert pod.finish("echo", "two").attempt == 2
    assert pod.log.index("=== attempt 1 ·") < pod.log.index("one") < pod.log.index("=== attempt 2 ·")
    assert json.loads(pod.run.env.read_text())["attempt"] == 2


def test_a_superseded_runner_stops_its_job_and_leaves_the_newer_status_alone(pod):
    pod.job(*pod.script(SAVES.format(code=75)))
    older = pod.start()
    pod.wait_for("pid")
    older_job = pid_in(pod.log)
    newer = pod.start()
    wait_until(lambda: pod.status.attempt == 2 and pod.status.state == RUNNING, "the second attempt runs")
    wait_until(lambda: pod.log.count("pid") == 2, "its job runs")
    size = pod.run.log.stat().st_size
    pod.move_clock(10)  # the older one's next heartbeat
    assert older.wait(20) == 75
    assert not is_alive(older_job)
    assert (pod.status.attempt, pod.status.state, pod.status.pid) == (2, RUNNING, newer.pid)
    assert pod.run.log.stat().st_size == size, "a superseded runner writes nothing"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"command": []}, "command must be a list of words"),
        ({"command": ["no-such-program"]}, "there is no program no-such-program"),
        ({"command": ["./data"]}, "cannot start ./data"),
        ({"command": ["./odd"]}, "#! line that names a program which is not on this machine"),
        ({"source_dir": "/no/such/place"}, "source_dir is '/no/such/place', which is not a folder"),
        ({"max_hours": "soon"}, "max_hours must be a number"),
        ({"env": {"A": 1}}, "env must map names to texts"),
        ({"queue": "yes"}, "queue must be true or false"),
        ({"schema": 99}, "job.json has schema 99, this runner reads 1"),
        ({"prep": [{"run": "true", "inputs": [], "outputs": None}]}, "prep 1 must have run, inputs and outputs"),
    ],
)
def test_a_job_that_cannot_run_fails_with_one_sentence_in_status_and_log(pod, change, reason):
    (pod.source / "data").write_text("no program")
    (pod.source / "odd").write_text("#!/no/such/interpreter\n")
    (pod.source / "odd").chmod(0o755)
    pod.job("true", **change)
    status = pod.finish()
    assert status.state == FAILED
    assert reason in status.reason
    assert "\n" not in status.reason
    assert status.reason in pod.log
    assert "Traceback" not in pod.log


def test_several_mistakes_in_a_job_are_told_at_once(pod):
    pod.job("true", source_dir="/no/such", max_hours=-1)
    reason = pod.finish().reason
    assert "source_dir" in reason
    assert "max_hours" in reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": "x"}', None])
def test_a_torn_or_missing_job_fails_clearly(pod, text):
    if text is not None:
        pod.run.job.write_text(text)
    status = pod.finish()
    assert (status.state, status.exit_code) == (FAILED, 2)
    assert "job.json" in status.reason


def test_a_machine_without_python_leaves_a_final_status_and_a_log(pod, tmp_path):
    pod.job("true")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "mkdir", "date", "cat", "wc", "mv", "uname"):
        (tools / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}")
    script = (pod.tool / "remote" / "run.sh").read_text().replace("/usr/bin/python3", "/no/python3")
    (pod.tool / "remote" / "run.sh").write_text(script)
    process = pod.start(env={**pod.env, "PATH": str(tools), "PODCTL_PYTHON": "/no/such/python"})
    assert process.wait(20) == 1
    assert (pod.status.state, pod.status.attempt, pod.status.run_id) == (FAILED, 1, pod.run_id)
    assert "no Python 3.8 or newer" in pod.status.reason
    assert pod.status.reason in pod.log
    assert pod.status.log_bytes == pod.run.log.stat().st_size


@pytest.mark.parametrize("name", ["PODCTL_VOLUME", "PODCTL_DISK"])
def test_without_a_place_to_work_the_run_fails_and_names_the_variable(pod, name):
    pod.job("true")
    env = pod.env
    del env[name]
    assert pod.start(env=env).wait(20) == 1
    assert pod.status.state == FAILED
    assert name in pod.status.reason


@pytest.mark.parametrize("name", ["a'; echo foo", 'two words "quoted"', "line\nbreak", "kön\\igin ☕", "$HOME `id` *"])
def test_paths_with_unkind_names_work(tmp_path, name):
    with Pod(tmp_path, name=name, run_id=name) as pod:
        pod.job(
            "bash", "-c", 'pwd -P; ls "$PODCTL_RUN_DIR" >"$PODCTL_VOLUME/data/made"', prep=[Stage("touch x", [], [])]
        )
        status = pod.finish()
        assert (status.state, status.run_id) == (SUCCEEDED, name)
        assert str(pod.source.resolve()) in pod.log
        assert "job.json" in (pod.volume.data / "made").read_text()
        assert pod.volume.current_log.read_bytes() == pod.run.log.read_bytes()
        assert pod.control("status")["status"]["state"] == SUCCEEDED


def test_an_unkind_name_is_json_too_when_the_shell_writes_the_status(tmp_path):
    with Pod(tmp_path, run_id='a"b\\c\nd') as pod:
        env = pod.env
        del env["PODCTL_DISK"]
        assert pod.start(env=env).wait(20) == 1
        assert pod.status.run_id == 'a"b\\c\nd'


def test_the_job_finds_the_runs_places_and_programs(pod):
    pod.job(
        *pod.script("import json, os; print('@@' + json.dumps(dict(os.environ)))"),
        env={"MY": "own", "PYTHONPATH": "src", "PODCTL_VOLUME": "/wrong", "HF_HOME": "/chosen"},
    )
    pod.finish()
    env = json.loads(pod.log.split("@@")[1].splitlines()[0])
    assert env["MY"] == "own"
    assert env["PODCTL_VOLUME"] == str(pod.volume.root)
    assert env["PODCTL_RUN_DIR"] == str(pod.run)
    assert env["PODCTL_EPOCH"] == "1"
    assert env["PODCTL_PYTHON"] == sys.executable
    assert env["PYTHONPATH"] == f"{pod.tool}:src"
    assert env["PATH"].split(":")[:2] == [str(pod.tool / "remote" / "bin"), str(Path(sys.executable).parent)]
    assert env["HF_HOME"] == "/chosen"
    assert env["HF_DATASETS_CACHE"] == str(pod.disk / "hf" / "datasets")
    assert env["TOKENIZERS_PARALLELISM"] == "false"
    assert env["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "HF_HUB_ENABLE_HF_TRANSFER" not in env


def test_the_machine_and_the_environment_are_on_record(pod):
    pod.finish("true")
    facts = json.loads(pod.run.env.read_text())
    assert facts["python"]["executable"] == sys.executable
    assert facts["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["cpus"] >= 1
    assert facts["memory_gb"] > 0
    assert facts["gpus"] == [] or isinstance(facts["gpus"][0], str)


def test_current_log_is_a_relative_link_to_the_newest_run(pod):
    pod.finish("true")
    assert pod.volume.current_log.readlink() == Path("..", "runs", pod.run_id, "log")
    second = Pod(pod.root, run_id="second")
    second.finish("echo", "me")
    assert b"me" in pod.volume.current_log.read_bytes()


def test_a_volume_without_links_is_let_be_and_the_log_says_so(pod):
    pod.volume.current_log.mkdir(parents=True)
    assert pod.finish("true").state == SUCCEEDED
    assert "no link" in pod.log


def test_runs_inside_tmux_and_a_killed_session_is_a_request_to_stop(pod, tmp_path):
    pod.job(*pod.script(SAVES.format(code=75)))
    tmux = ["tmux", "-S", str(tmp_path / "t"), "-f", "/dev/null"]
    launch = ["new-session", "-d", "-s", "job", "bash", str(pod.tool / "remote" / "run.sh"), str(pod.run)]
    subprocess.run([*tmux, *launch], env=pod.env, check=True, timeout=20)
    pod.wait_for("pid")
    assert pod.status is not None
    screen = subprocess.run([*tmux, "capture-pane", "-p", "-t", "job"], stdout=subprocess.PIPE, check=True).stdout
    wait_until(lambda: b"attempt 1" in screen, "the log on the screen")
    subprocess.run([*tmux, "kill-session", "-t", "job"], check=True, timeout=20)
    assert pod.wait_for_state(STOPPED).reason == "asked to stop (SIGHUP)"
    assert (pod.run.root / "saved").exists()
