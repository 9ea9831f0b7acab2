"""What a job prints reaches the log whole, and nothing that goes wrong with log, screen or volume hurts the job."""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.parse

import pytest
from support.pod import Pod, is_alive, wait_until

from remote.rundir import FAILED, RUNNING, SUCCEEDED, parse_status
from remote.runlog import Redactor


@pytest.fixture
def pod(tmp_path):
    with Pod(tmp_path) as pod:
        yield pod


def test_bytes_that_are_no_text_and_a_line_without_end_reach_the_log_as_they_are(pod):
    program = "import os; os.write(1, bytes(range(256)) * 3 + b'\\xff\\xfe no end')"
    pod.finish(*pod.script(program))
    log = pod.run.log.read_bytes()
    assert bytes(range(256)) * 3 + b"\xff\xfe no end\n=== succeeded" in log
    assert log in pod.screen, "the screen shows the same"


def test_output_without_a_newline_is_in_the_log_while_the_job_runs(pod):
    pod.job(*pod.script("import time; print('asking: ', end='', flush=True); time.sleep(60)"))
    pod.start()
    pod.wait_for("asking: ")


def test_megabytes_a_second_come_through_whole_and_in_order(pod):
    program = """
import os, hashlib
whole = hashlib.sha256()
for i in range(400):
    data = (b"%08d" % i) * 8192
    whole.update(data)
    left = memoryview(data)
    while left:
        left = left[os.write(1, left):]
open("digest", "w").write(whole.hexdigest())
"""
    status = pod.finish(*pod.script(program))
    assert status.state == SUCCEEDED
    log = pod.run.log.read_bytes()
    body = log[log.index(b"\n") + 1 : log.rindex(b"\n=== succeeded")]
    assert hashlib.sha256(body).hexdigest() == (pod.source / "digest").read_text()


def test_both_streams_go_to_the_log(pod):
    pod.finish("bash", "-c", "echo to-stdout; echo to-stderr >&2")
    assert "to-stdout\nto-stderr\n" in pod.log


def test_a_job_reads_an_empty_standard_input_instead_of_waiting_for_one(pod):
    assert pod.finish("bash", "-c", "cat; echo read").state == SUCCEEDED


def test_a_process_that_outlives_the_job_and_holds_its_output_is_ended(pod):
    began = time.monotonic()
    status = pod.finish("bash", "-c", "sleep 300 & echo pid $!; exit 3")
    assert (status.state, status.exit_code) == (FAILED, 3)
    assert time.monotonic() - began < 10
    pid = int(pod.log.split("pid ")[1].split()[0])
    wait_until(lambda: not is_alive(pid), "the sleeper is gone")


def test_a_process_that_left_the_group_cannot_hold_up_the_end(pod):
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(8)\n"
    began = time.monotonic()
    assert pod.finish(*pod.script(program)).state == SUCCEEDED
    assert time.monotonic() - began < 7


def test_what_a_finished_job_left_behind_may_say_its_last_words(pod):
    pod.finish("bash", "-c", "(sleep 0.5; echo last words) & exit 0")
    assert "last words" in pod.log


def test_a_log_on_a_full_disk_costs_its_bytes_and_not_the_job(pod):
    pod.run.log.symlink_to("/dev/full")
    pod.job("bash", "-c", "echo hello; exit 0")
    process = pod.start()
    screen, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert pod.status.state == SUCCEEDED
    assert "No space left on device" in pod.status.reason
    assert b"hello" in screen


def test_a_log_that_grows_too_large_stops_growing_and_the_job_goes_on(pod):
    pod.script("import os\nfor _ in range(300): os.write(1, b'x' * 10000)\nprint('done')")
    pod.job("python", "job.py")
    limited = f"ulimit -f 1000; exec bash '{pod.tool}/remote/run.sh' '{pod.run}'"
    process = subprocess.Popen(["bash", "-c", limited], env=pod.env, stdout=subprocess.PIPE)
    pod.started.append(process)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert pod.status.state == SUCCEEDED
    assert "the log lacks" in pod.status.reason
    assert pod.status.log_bytes == pod.run.log.stat().st_size


def test_a_log_that_cannot_be_opened_fails_the_run_with_a_reason(pod):
    pod.run.log.mkdir()
    pod.job("true")
    assert pod.start().wait(20) == 1
    assert pod.status.state == FAILED
    assert "cannot write" in pod.status.reason


def test_a_status_that_cannot_be_written_does_not_end_the_job(pod):
    (pod.run.status / "in the way").mkdir(parents=True)
    pod.job("bash", "-c", "echo worked; exit 7")
    process = pod.start()
    screen, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "worked" in pod.log
    assert b"did not take the final status" in screen


def test_a_disk_without_room_for_a_second_file_still_takes_the_final_status(pod):
    pod.job(*pod.script("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"))
    process = pod.start()
    pod.wait_for_state(RUNNING)
    in_the_way = pod.run.root / f".status.json.{process.pid}.tmp"  # where the next one would be written first
    while not in_the_way.is_dir():
        with contextlib.suppress(FileExistsError):  # one is just being written
            in_the_way.mkdir()
    (pod.source / "go").touch()
    assert process.wait(30) == 0
    assert pod.status.state == SUCCEEDED
    assert pod.status.log_bytes == pod.run.log.stat().st_size


def test_a_gap_in_the_log_is_marked_once_when_there_is_room_again(pod, tmp_path):
    program = """
import resource, sys
from remote.runlog import RunLog
log = RunLog(sys.argv[1])
for limit, text in (-1, "before"), (10, "x" * 50), (10, "y" * 50), (-1, "after"), (-1, "end"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    log.say(text)
    assert log.flush(5)
log.close(5)
"""
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=pod.tool, check=True, stdout=subprocess.DEVNULL)
    lines = path.read_text().splitlines()
    assert lines == ["before", "xxx", "[99 bytes of output are missing here: File too large]", "after", "end"]


def test_a_screen_that_is_gone_hurts_nobody(pod):
    read_end, write_end = os.pipe()
    os.close(read_end)
    pod.job("bash", "-c", "for i in $(seq 1000); do echo line $i; done")
    process = pod.start(stdout=write_end, stderr=write_end)
    os.close(write_end)
    assert process.wait(20) == 0
    assert "line 1000\n" in pod.log


def test_a_screen_that_takes_nothing_holds_nobody_up(pod):
    read_end, write_end = os.pipe()  # never read, as a terminal after Ctrl-S
    pod.job(*pod.script("import os\nfor _ in range(200): os.write(1, b'x' * 50000)"))
    process = pod.start(stdout=write_end, stderr=write_end)
    os.close(write_end)
    assert process.wait(30) == 0
    assert pod.status.state == SUCCEEDED
    assert pod.run.log.stat().st_size > 10_000_000
    os.close(read_end)


def test_closed_standard_streams_do_not_turn_the_log_into_the_screen(pod):
    pod.job("echo", "once")
    closed = f"exec bash '{pod.tool}/remote/run.sh' '{pod.run}' <&- >&- 2>&-"
    process = subprocess.Popen(["bash", "-c", closed], env=pod.env)
    pod.started.append(process)
    assert process.wait(20) == 0
    assert pod.log.count("once") == 1


def test_a_reader_finds_whole_json_at_every_moment_and_never_more_log_than_there_is(pod):
    pod.job(*pod.script("import time\nfor i in range(300): print('x' * 999, flush=True); time.sleep(0.002)"))
    process = pod.start()
    seen = set()
    while process.poll() is None:
        try:
            text = pod.run.status.read_bytes()
        except FileNotFoundError:
            assert not seen, "once there, it stays"
            continue
        status = parse_status(json.loads(text))
        assert status.log_bytes <= pod.run.log.stat().st_size
        seen.add(status.state)
        pod.move_clock(6 * (time.monotonic() % 100))  # every look of the runner finds a heartbeat due
    assert RUNNING in seen
    assert pod.status.state == SUCCEEDED
    assert pod.status.log_bytes == pod.run.log.stat().st_size


def test_a_second_attempt_begins_on_a_line_of_its_own_after_a_torn_log(pod):
    pod.run.log.write_bytes(b"torn in the mid")
    pod.finish("true")
    assert "torn in the mid\n=== attempt" in pod.log


# secrets


@pytest.fixture
def secrets(pod, tmp_path):
    path = tmp_path / "tmpfs" / "secrets.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"HF_TOKEN": "hf_verysecretvalue", "SHORT": "x"}))
    path.chmod(0o600)
    pod.environ["PODCTL_SECRETS"] = str(path)
    return path


def everything_in(folder):
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_secrets_reach_the_job_and_nothing_on_the_volume_and_no_argv(pod, secrets):
    program = """
import os, sys
assert os.environ["HF_TOKEN"] == "hf_verysecretvalue" and os.environ["SHORT"] == "x"
assert "PODCTL_SECRETS" not in os.environ
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: assert b"hf_verysecret" not in open("/proc/%s/cmdline" % pid, "rb").read()
    except (FileNotFoundError, ProcessLookupError): pass
print(dict(os.environ))
os.write(1, b"in pieces: hf_very"); import time; time.sleep(0.05); os.write(1, b"secretvalue.")
"""
    assert pod.finish(*pod.script(program)).state == SUCCEEDED, pod.log
    assert "in pieces: ***." in pod.log
    assert b"hf_verysecretvalue" not in everything_in(pod.volume.root)
    assert b"hf_verysecretvalue" not in pod.screen


def test_secrets_that_are_gone_fail_the_run_and_say_what_to_do(pod, secrets):
    secrets.unlink()
    status = pod.finish("true")
    assert (status.state, status.exit_code) == (FAILED, 2)
    assert "podctl train sends it again" in status.reason


@pytest.mark.parametrize("text", ["hf_verysecretvalue", '["hf_verysecretvalue"]', '{"A": ["hf_verysecretvalue"]}'])
def test_a_malformed_secrets_file_fails_the_run_without_showing_it(pod, secrets, text):
    secrets.write_text(text)
    assert pod.finish("true").state == FAILED
    assert "is not a JSON object of names and texts" in pod.log
    assert b"verysecret" not in everything_in(pod.volume.root)


def test_secrets_that_others_can_read_are_remarked_on(pod, secrets):
    secrets.chmod(0o644)
    pod.finish("true")
    assert "chmod 600" in pod.log


def test_a_pip_that_fails_fails_the_run_and_was_shown_no_secret(pod, secrets):
    pod.python = None
    (pod.tool / "requirements.txt").write_text("./spy\n")
    (pod.tool / "spy").mkdir()
    (pod.tool / "spy" / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "spy"\nbackend-path = ["."]\n'
        '[project]\nname = "spy"\nversion = "1"\n'
    )
    spy = "import os\nopen(os.environ['SPY'], 'w').write(repr(dict(os.environ)))\nraise SystemExit(1)\n"
    (pod.tool / "spy" / "spy.py").write_text(spy)
    pod.environ["SPY"] = str(pod.home / "seen")
    status = pod.finish("true")
    assert (status.state, status.phase) == (FAILED, "environment")
    assert "pip failed with exit code" in status.reason
    seen = (pod.home / "seen").read_text()
    assert "HF_TOKEN" not in seen
    assert "PODCTL_SECRETS" not in seen


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_secret_is_hidden_wherever_the_stream_is_cut(cut):
    stream = b"a secret-one b secret-one-longer c"
    redactor = Redactor(["secret-one", "secret-one-longer", "tiny"])
    shown = b"".join(redactor.feed(stream[i : i + cut]) for i in range(0, len(stream), cut)) + redactor.flush()
    assert b"secret-one" not in shown
    assert shown.startswith(b"a ***")
    assert shown.endswith(b" c")


def test_a_stream_without_secrets_is_not_changed():
    redactor = Redactor(["secret-one"])
    assert redactor.feed(b"sec") + redactor.feed(b"ond thoughts, tiny") + redactor.flush() == b"second thoughts, tiny"


@pytest.mark.parametrize("secret", ["hf_verysecretvalue", "ends in 1", "canary/+ä:?", 'quo"ted\\backslash'])
def test_a_secret_is_hidden_in_every_form_that_programs_print(secret):
    value, clean = secret.encode(), Redactor([secret]).clean
    for before in (b"", b"u:", b"u", b"user:xy"):
        for after in (b"", b"1", b"\xff\xff"):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                shown = clean(encode(before + value + after))
                assert b"***" in shown
                assert len(shown) <= len(encode(before + after)) + 8, "nothing is left but what its neighbours share"
    assert clean(urllib.parse.quote(secret, safe="").encode()) == b"***"
    assert b"***" in clean(json.dumps({"token": secret}).encode())
    assert clean(b"nothing of it") == b"nothing of it"
