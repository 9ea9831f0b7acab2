"""Several runs on one machine: who waits for whom, and what happens to a turn whose holder dies."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.pod import ROOT, Pod, is_alive, wait_until

from remote import turn
from remote.rundir import FAILED, RUNNING, STARTING, STOPPED, SUCCEEDED

SAVES = """
import os, signal, sys, time
def save(*_):
    open(os.environ["PODCTL_RUN_DIR"] + "/saved", "w").write("whole")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
os.write(1, b"pid %d up\\n" % os.getpid())  # in one piece
while not os.path.exists(os.environ["PODCTL_RUN_DIR"] + "/go"): time.sleep(0.02)
"""
HOLDS = """
import sys, time
from remote import turn
ticket = turn.take(sys.argv[1], sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def pod(tmp_path):
    with Pod(tmp_path, run_id="first") as pod:
        yield pod


@pytest.fixture
def hold(tmp_path):
    """Has a process of its own take a ticket."""
    started = []

    def hold(run_id, disk=tmp_path):
        argv = [sys.executable, "-c", HOLDS, str(disk), run_id]
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def kill(process):
    process.kill()
    process.wait()


def pid_in(log: str) -> int:
    return int(log.split("pid ")[1].split()[0])


def begin(pod: Pod, **changes: object) -> "subprocess.Popen[bytes]":
    """A run that goes on until `go` is in its directory."""
    pod.job(*pod.script(SAVES), **changes)
    return pod.start()


def wait_for_phase(pod: Pod, phase: str) -> None:
    wait_until(lambda: (s := pod.status) and s.phase == phase, f"phase {phase}, it is {pod.status}")


def let_go(pod: Pod) -> None:
    (pod.run.root / "go").touch()


# tickets


def test_who_took_a_ticket_earlier_is_ahead(tmp_path):
    with turn.take(tmp_path, "a") as a, turn.take(tmp_path, "b") as b, turn.take(tmp_path, "c") as c:
        assert [turn.ahead(tmp_path, t) for t in (a, b, c)] == [[], ["a"], ["a", "b"]]
        assert turn.others(tmp_path, but="b") == ["a", "c"]
        a.close()
        a.close()
        assert turn.ahead(tmp_path, c) == ["b"]
    assert turn.others(tmp_path, but="") == []


def test_a_machine_without_tickets_has_nobody_on_it(tmp_path):
    assert turn.others(tmp_path / "nowhere", but="a") == []
    (tmp_path / "turn").write_text("in the way")
    assert turn.others(tmp_path, but="a") == []


def test_of_many_who_take_a_ticket_at_once_each_gets_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        tickets = list(pool.map(lambda n: turn.take(tmp_path, str(n)), range(24)))
    assert sorted(t.number for t in tickets) == list(range(1, 25))
    assert all(len(turn.ahead(tmp_path, t)) == t.number - 1 for t in tickets)
    for t in tickets:
        t.close()


def test_of_many_who_take_turns_one_has_it_at_a_time_and_nobody_is_swept_while_he_lives(tmp_path):
    inside, wrong = [], []
    stop_looking = threading.Event()

    def look():
        while not stop_looking.is_set():
            turn.others(tmp_path, but="")

    def take_turns(name):
        for _ in range(8):
            with turn.take(tmp_path, name) as mine:
                while turn.ahead(tmp_path, mine):
                    if not mine.path.exists():
                        wrong.append(f"{name} was swept")
                inside.append(name)
                if len(inside) > 1 or not mine.path.exists():
                    wrong.append(list(inside))
                time.sleep(0.0005)
                inside.remove(name)

    looker = threading.Thread(target=look)
    looker.start()
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(take_turns, "abcde"))
    stop_looking.set()
    looker.join()
    assert wrong == []
    assert turn.others(tmp_path, but="") == []


def test_the_ticket_of_a_killed_holder_is_dead_at_once_and_whoever_looks_sweeps_it_away(tmp_path, hold):
    first, second = hold("a"), hold("b")
    mine = turn.take(tmp_path, "c")
    assert turn.ahead(tmp_path, mine) == ["a", "b"]
    kill(first)
    assert turn.ahead(tmp_path, mine) == ["b"]
    assert sorted(p.name for p in (tmp_path / "turn").iterdir()) == ["2", "3", "lock"]
    second.send_signal(signal.SIGSTOP)
    assert turn.ahead(tmp_path, mine) == ["b"], "one that stands still is not dead"
    mine.close()


def test_a_ticket_dies_with_its_holder_though_a_process_that_he_started_lives(tmp_path):
    program = (
        "import subprocess, sys, time\nfrom remote import turn\nt = turn.take(sys.argv[1], 'a')\n"
        "print(subprocess.Popen(['sleep', '60'], close_fds=False).pid, flush=True)\ntime.sleep(60)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        child = int(holder.stdout.readline())
        assert turn.others(tmp_path, but="") == ["a"]
        holder.kill()
        holder.wait()
        assert is_alive(child)
        assert turn.others(tmp_path, but="") == []
        os.kill(child, signal.SIGKILL)


def test_a_look_waits_for_nobody_and_sweeps_nothing_while_a_ticket_is_being_made(tmp_path, hold):
    kill(hold("a"))
    lock = (
        "import fcntl, sys\nf = open(sys.argv[1])\nfcntl.flock(f, fcntl.LOCK_EX)\nprint(flush=True)\nsys.stdin.read()"
    )
    argv = [sys.executable, "-c", lock, str(tmp_path / "turn" / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        maker.stdout.readline()
        (tmp_path / "turn" / "2").touch()  # made, and not locked yet
        assert turn.others(tmp_path, but="") == []
        assert {"1", "2"} <= {p.name for p in (tmp_path / "turn").iterdir()}
        maker.communicate()
    assert turn.others(tmp_path, but="") == []
    assert [p.name for p in (tmp_path / "turn").iterdir()] == ["lock"]


def test_two_who_look_at_a_dead_ticket_do_not_take_each_other_for_its_holder(tmp_path, hold):
    kill(hold("a"))
    with open(tmp_path / "turn" / "1") as f:
        fcntl.flock(f, fcntl.LOCK_SH)  # as a look does
        assert turn.others(tmp_path, but="") == []


def test_a_holder_removes_his_own_ticket_and_not_that_of_another_in_a_folder_made_anew(tmp_path):
    first = turn.take(tmp_path, "a")
    shutil.rmtree(tmp_path / "turn")
    with turn.take(tmp_path, "b") as second:
        assert second.number == first.number
        first.close()
        assert turn.others(tmp_path, but="") == ["b"]


def test_a_request_for_a_grace_reaches_the_run_it_is_for_and_not_who_has_the_number_after_it(tmp_path):
    with turn.take(tmp_path, "a") as a, turn.take(tmp_path, "b") as b:
        assert b.asked_grace_s() is None
        turn.ask_grace(tmp_path, "b", 2.5)
        assert (a.asked_grace_s(), b.asked_grace_s()) == (None, 2.5)
    (tmp_path / "turn" / "1.grace").write_text("3")  # who asked was slower than the run
    with turn.take(tmp_path, "c") as c:
        assert (c.number, c.asked_grace_s()) == (1, None)


def test_names_and_paths_of_any_length_and_kind_do(tmp_path):
    disk = tmp_path / ("d" * 200) / "a'; echo foo\n☕" / ("e" * 200)
    run_id = 'x"\n' + "y" * 300
    with turn.take(disk, run_id), turn.take(disk, "b") as b:
        assert turn.ahead(disk, b) == [run_id]


# runs


def test_a_queued_run_waits_until_the_runs_before_it_are_gone(pod):
    begin(pod)
    pod.wait_for("up")
    second = pod.another("second")
    process = begin(second, queue=True)
    wait_for_phase(second, "queue")
    second.wait_for("waiting for first on this machine")
    third = pod.another("third")
    begin(third, queue=True)
    third.wait_for("waiting for first and 1 more on this machine")
    assert (second.status.state, third.status.state) == (STARTING, STARTING)
    assert third.control("status")["others"] == ["first", "second"]
    assert pod.volume.current_log.resolve() == pod.run.log, "the log of the run that runs"
    before = second.status.heartbeat_at
    pod.move_clock(6)
    wait_until(lambda: second.status.heartbeat_at >= before + 6, "a heartbeat while it waits")

    let_go(pod)
    second.wait_for("up")
    assert "✓ its turn after" in second.log
    wait_for_phase(second, "train")  # the status is written beside the job, not before its first word
    assert second.status.state == RUNNING
    assert pod.volume.current_log.resolve() == second.run.log
    third.wait_for("waiting for second on this machine")
    let_go(second)
    assert process.wait(20) == 0
    third.wait_for("up")
    assert third.log.count("waiting for") == 2, "told once, and at each change"


def test_a_queued_run_alone_on_its_machine_starts_at_once(pod):
    assert pod.finish("true", queue=True).state == SUCCEEDED
    assert "turn" not in pod.log
    assert [p.name for p in (pod.disk / "turn").iterdir()] == ["lock"], "it leaves no ticket behind"


def test_a_run_that_is_not_queued_starts_beside_the_others_and_says_so(pod):
    begin(pod)
    pod.wait_for("up")
    second = pod.another("second")
    assert second.finish("true").state == SUCCEEDED
    assert "beside first on this machine" in second.log
    assert "on this machine" not in pod.log


def test_a_queued_run_starts_soon_after_the_runner_before_it_was_killed(pod):
    first = begin(pod)
    pod.wait_for("up")
    second = pod.another("second")
    begin(second, queue=True)
    second.wait_for("waiting for first")
    kill(first)
    began = time.monotonic()
    second.wait_for("up")
    assert time.monotonic() - began < 5, "it looks every half second"


def test_a_queued_run_first_ends_what_a_dead_runner_left_running(pod):
    """The kernel tells the job's own process alone; what a shell has started would hold the GPU's memory."""
    pod.script(SAVES)
    pod.job("bash", "-c", "python job.py; true")
    first = pod.start()
    pod.wait_for("up")
    orphan = pid_in(pod.log)
    second = pod.another("second")
    second.job("bash", "-c", f"grep -qs . /proc/{orphan}/cmdline && echo still there; true", queue=True)
    process = second.start()
    second.wait_for("waiting for first")
    kill(first)
    assert is_alive(orphan)
    assert process.wait(20) == 0
    # the shell was told to end, and may be seen once more on its way out
    assert re.search(r"\d process(es)? of a run that was lost still runs? here: ended", second.log), second.log
    assert "still there" not in second.log
    assert (pod.run.root / "saved").exists(), "asked first"


def test_a_run_that_is_not_queued_touches_nothing_of_a_dead_runners_run(pod):
    pod.script(SAVES)
    pod.job("bash", "-c", "python job.py; true")
    first = pod.start()
    pod.wait_for("up")
    orphan = pid_in(pod.log)
    kill(first)
    assert pod.another("second").finish("true").state == SUCCEEDED
    assert is_alive(orphan)
    pod.finish("true")  # its own next attempt does
    assert not is_alive(orphan)


def test_a_queued_run_lets_be_what_an_ended_run_left_on_purpose_and_what_belongs_to_another_disk(pod):
    leaves = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.write(1, b'pid %d up' % os.getpid())\n    "
    pod.finish(*pod.script(leaves + "os.close(1); os.close(2); time.sleep(60)"))
    left = pid_in(pod.log)
    elsewhere = pod.another("elsewhere", name="elsewhere")
    elsewhere.script(SAVES)
    elsewhere.job("bash", "-c", "python job.py; true")
    kill_it = elsewhere.start()
    elsewhere.wait_for("up")
    orphan = pid_in(elsewhere.log)
    kill(kill_it)
    try:
        assert pod.another("second").finish("true", queue=True).state == SUCCEEDED
        assert is_alive(left)
        assert is_alive(orphan)
    finally:
        os.kill(left, signal.SIGKILL)
        os.kill(orphan, signal.SIGKILL)


def test_hours_count_from_a_runs_turn_and_not_while_it_waits(pod):
    begin(pod, max_hours=100)
    pod.wait_for("up")
    second = pod.another("second")
    process = begin(second, queue=True, max_hours=0.5)
    second.wait_for("waiting for first")
    pod.move_clock(36_000)
    wait_until(lambda: second.status.heartbeat_at - second.status.started_at > 30_000, "a heartbeat hours later")
    let_go(pod)
    second.wait_for("up")
    assert "✓ its turn after 10 h" in second.log
    pod.move_clock(36_000 + 1700)
    wait_until(lambda: 1600 < second.status.heartbeat_at - second.status.started_at < 1800, "its time is from its turn")
    assert second.status.state == RUNNING
    pod.move_clock(36_000 + 1830)
    assert process.wait(20) == 75
    assert second.status.limit == "max_hours"


def test_asked_to_stop_while_it_waits_a_run_is_stopped_and_the_others_do_not_notice(pod):
    begin(pod)
    pod.wait_for("up")
    second, third = pod.another("second"), pod.another("third")
    process = begin(second, queue=True)
    second.wait_for("waiting for first")
    begin(third, queue=True)
    third.wait_for("waiting for first and 1 more")
    assert second.control("stop")["state"] == STOPPED
    assert process.wait(20) == 75
    assert (second.status.phase, second.status.reason) == ("queue", "asked to stop (SIGTERM)")
    third.wait_for("waiting for first on this machine")
    assert pod.status.state == RUNNING


def test_secrets_are_read_and_their_file_is_gone_before_a_run_waits(pod, tmp_path):
    begin(pod)
    pod.wait_for("up")
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"HF_TOKEN": "hf_verysecretvalue"}))
    path.chmod(0o600)
    second = pod.another("second", environ={"PODCTL_SECRETS": str(path)})
    second.job("bash", "-c", '[ "$HF_TOKEN" = hf_verysecretvalue ] && echo has it', queue=True)
    process = second.start()
    second.wait_for("waiting for first")
    assert not path.exists()
    let_go(pod)
    assert process.wait(20) == 0
    assert "has it" in second.log
    assert not any("verysecret" in p.read_text() for p in (pod.disk / "turn").iterdir())


def test_the_environment_is_ready_before_a_run_waits_and_prep_comes_after(pod):
    begin(pod)
    pod.wait_for("up")
    (pod.tool / "requirements.txt").write_text("# nothing\n")
    second = pod.another("second", python=None)
    second.job("true", queue=True, prep=[{"run": "echo preparing", "inputs": [], "outputs": []}])
    process = second.start()
    second.wait_for("waiting for first")
    assert second.log.index("✓ environment") < second.log.index("waiting for")
    assert "preparing" not in second.log
    let_go(pod)
    assert process.wait(20) == 0
    assert second.log.index("its turn") < second.log.index("preparing")


def test_an_attempt_that_takes_over_ends_the_one_that_waits_and_does_not_wait_for_it(pod):
    begin(pod)
    pod.wait_for("up")
    second = pod.another("second")
    older = begin(second, queue=True)
    second.wait_for("waiting for first")
    older.send_signal(signal.SIGSTOP)  # it does not even answer
    newer = begin(second, queue=True)
    wait_until(lambda: second.status.attempt == 2 and second.status.phase == "queue", "the second attempt waits")
    let_go(pod)
    second.wait_for("up")
    pod.move_clock(10)  # the older one's next heartbeat
    older.send_signal(signal.SIGCONT)
    assert older.wait(20) == 75
    newest = (2, newer.pid, RUNNING)  # the older one may have been stopped on its way from the fence to its rename
    wait_until(lambda: (second.status.attempt, second.status.pid, second.status.state) == newest, "a heartbeat later")
    assert second.log.count(" up\n") == 1


@pytest.mark.parametrize("queue", [True, False])
def test_where_no_tickets_can_be_kept_a_run_says_so_and_starts(pod, queue):
    (pod.disk / "turn").write_text("in the way")
    assert pod.finish("true", queue=queue).state == SUCCEEDED
    said = "there is no queue on this machine: " if queue else "others on this machine do not see this run: "
    assert f"{said}{pod.disk}/turn: File exists" in pod.log


def test_a_queue_that_is_taken_away_while_a_run_waits_does_not_hold_it_for_ever(pod):
    begin(pod)
    pod.wait_for("up")
    second = pod.another("second")
    process = begin(second, queue=True)
    second.wait_for("waiting for first")
    shutil.rmtree(pod.disk / "turn")
    (pod.disk / "turn").write_text("in the way")
    second.wait_for("it starts without waiting")
    second.wait_for("up")
    let_go(second)
    assert process.wait(20) == 0


# disks that are full, or cannot be written: mounted for the runner alone


def has_namespaces():
    done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], stderr=subprocess.DEVNULL)
    return done.returncode == 0


@pytest.fixture
def mounted(pod):
    """Starts the run with something mounted: a shell's words, with $1 the place."""
    if not shutil.which("unshare") or not has_namespaces():
        pytest.skip("no mount namespaces here")

    def run(words, place, pod=pod):
        script = f"{words} && exec bash {pod.tool}/remote/run.sh {pod.run}"
        process = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, "sh", str(place)],
            env=pod.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        pod.started.append(process)
        screen, _ = process.communicate(timeout=30)
        return process.returncode, screen.decode()

    return run


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


@pytest.mark.parametrize("queue", [True, False])
def test_a_local_disk_that_is_read_only_costs_the_turn_and_not_the_run(pod, mounted, queue):
    pod.job("echo", "worked", queue=queue)
    code, screen = mounted(READ_ONLY, pod.disk)
    assert code == 0, screen
    assert pod.status.state == SUCCEEDED
    assert "Read-only file system" in pod.log
    assert "worked" in pod.log


def test_a_local_disk_that_is_full_costs_the_turn_and_not_the_run(pod, mounted):
    pod.job("echo", "worked", queue=True)
    fill = 'mount -t tmpfs -o size=64k none "$1" && { head -c 1m /dev/zero >"$1/fill" 2>&-; true; }'
    code, screen = mounted(fill, pod.disk)
    assert code == 0, screen
    assert "No space left on device" in pod.log
    assert "worked" in pod.log


def test_a_volume_that_is_read_only_ends_the_runner_with_a_sentence_and_frees_its_turn(pod, mounted):
    pod.job("echo", "worked")
    code, screen = mounted(READ_ONLY, pod.volume.root)
    assert code == 1
    assert screen == (f"cannot write to {pod.run}: Read-only file system: is the volume mounted, and not full?\n")
    assert turn.others(pod.disk, but="") == []


@pytest.mark.slow  # the last word is tried five times
def test_a_volume_that_is_full_from_the_start_is_told_on_the_screen_and_the_job_goes_on(pod, mounted):
    pod.job("echo", "worked", queue=True)
    fill = (
        'mkdir "$1/.here" && mount -t tmpfs -o size=64k none "$1/.here" && cp -r "$1/runs" "$1/.here"'
        ' && { head -c 1m /dev/zero >"$1/.here/fill" 2>&-; true; } && mount --move "$1/.here" "$1"'
    )
    code, screen = mounted(fill, pod.volume.root)
    assert code == 0
    assert "status.json: No space left on device; the job goes on" in screen
    assert "worked" in screen
    assert "the volume did not take the final status: succeeded" in screen
    assert turn.others(pod.disk, but="") == []


def test_a_long_path_is_no_hindrance_to_a_queued_run(tmp_path):
    with Pod(tmp_path, name="p" * 200, run_id="r" * 200) as pod:
        begin(pod)
        pod.wait_for("up")
        second = pod.another("s" * 200)
        process = begin(second, queue=True)
        second.wait_for(f"waiting for {pod.run_id} on this machine")
        assert second.control("status")["others"] == [pod.run_id]
        let_go(pod)
        let_go(second)
        assert process.wait(20) == 0
        assert FAILED not in (pod.status.state, second.status.state)
