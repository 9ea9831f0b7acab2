"""The watchdog under the real boot guard: what keeps a pod, what ends it, and what must not hold that up."""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.fake_run import FakeRun
from support.guarded import KEY, GuardedPod, Provider
from support.pod import is_alive, wait_until
from support.pythons import installed

from remote.blackbox import tail
from remote.rundir import FAILED, SUCCEEDED


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as p:
        yield p


@pytest.fixture
def pod(tmp_path: Path, provider: Provider) -> Iterator[GuardedPod]:
    with GuardedPod(tmp_path, provider) as p:
        yield p


@pytest.fixture
def run(pod: GuardedPod) -> Iterator[FakeRun]:
    """A run that lives on a pod whose watchdog has seen it."""
    pod.boot()
    pod.arm()
    yield from begun(pod)


def begun(pod: GuardedPod) -> Iterator[FakeRun]:
    with FakeRun(pod.run, pod.root, pod.env) as r:
        wait_for_state(pod, "lives")
        yield r


def wait_for_state(pod: GuardedPod, state: str) -> None:
    def seen() -> bool:
        runs = (pod.read("watch.json") or {}).get("runs", {})
        return pod.run_id in runs and runs[pod.run_id][1][0] == state

    wait_until(seen, f"the watchdog's seeing that the run is {state}")


def box(pod: GuardedPod) -> Path:
    return next(iter(pod.run.blackbox.iterdir()))


# --- the verdict ---


@pytest.mark.parametrize(
    ("rights", "levels", "best"),
    [
        ({"v2": "none", "graphql": "all"}, {"v2": "none", "graphql": "allowed"}, "allowed"),
        ({"v2": "read", "graphql": "read"}, {"v2": "read", "graphql": "read"}, "read"),
        ({"v2": "gone", "graphql": "gone"}, {"v2": "none", "graphql": "none"}, "none"),
    ],
)
def test_the_verdict_says_what_each_route_may_and_changes_nothing(
    pod: GuardedPod, rights: dict[str, str], levels: dict[str, str], best: str
) -> None:
    pod.provider.rights = rights
    pod.boot()
    verdict = pod.arm()
    assert {r["name"]: r["level"] for r in verdict["routes"]} == levels | {"runpodctl": "none"}
    assert verdict["best"] == best
    assert verdict["living"]
    assert verdict["boot"] == pod.read("boot.json")["boot"]
    assert all(r["detail"] for r in verdict["routes"])
    assert not pod.provider.ends
    assert pod.provider.agents == {"podctl-guard"}


@pytest.mark.slow
def test_a_program_that_is_there_proves_nothing(pod: GuardedPod) -> None:
    pod.provider.rights = {"v2": "none", "graphql": "none"}
    pod.program(pod.bin / "runpodctl", "#!/bin/sh\necho runpodctl 1.14.15\n")
    pod.boot()
    verdict = pod.arm()
    assert verdict["best"] == "read"
    assert "not proved" in next(r["detail"] for r in verdict["routes"] if r["name"] == "runpodctl")


@pytest.mark.slow
def test_an_answer_that_is_not_clear_is_asked_for_again(pod: GuardedPod) -> None:
    pod.provider.n_bad = 2  # both routes' first
    pod.boot()
    (pod.dir / "armed").write_text(f"{sys.executable}\n{pod.tool / 'remote' / 'guard.py'}\n")
    first = wait_until(lambda: pod.read("verdict.json"), "a verdict")
    assert (first["best"], first["settled"]) == ("none", False)
    wait_until(lambda: passes(pod, 10) and pod.read("verdict.json")["best"] == "allowed", "another")


@pytest.mark.slow
def test_without_a_verdict_in_time_it_says_that_there_is_none(pod: GuardedPod) -> None:
    pod.boot()
    pod.provider.delay_s = 1.0
    verdict = pod.arm(wait_s=0.1)
    assert (verdict["best"], verdict["routes"]) == ("none", [])


# --- what podctl says ---


def test_where_no_boot_guard_has_started_nothing_is_armed(pod: GuardedPod) -> None:
    assert "no boot guard" in pod.arm()["error"]
    assert not (pod.dir / "claims").exists()


@pytest.mark.parametrize("order", ["", "[]", '{"claim": {"run_id": "../x"}}'])
def test_an_order_that_is_none_changes_nothing(pod: GuardedPod, order: str) -> None:
    pod.boot()
    assert pod.guard("arm", stdin=order)["error"]
    assert not (pod.dir / "armed").exists()
    assert not list((pod.dir / "claims").iterdir())


@pytest.mark.slow
def test_of_a_run_without_a_claim_nobody_can_say_that_it_is_fetched(pod: GuardedPod) -> None:
    pod.boot()
    for run_id in ("other", "../../etc/passwd", ""):
        assert "error" in pod.guard("fetched", run_id)
        assert "error" in pod.guard("hold", run_id, "60")


@pytest.mark.slow
def test_status_tells_all_there_is(pod: GuardedPod, run: FakeRun) -> None:
    status = pod.guard("status")
    assert status["boot"]["boot"] == pod.read("boot.json")["boot"]
    assert status["armed"]
    assert status["beat_age_s"] < 5
    assert status["claims"][pod.run_id]["deadline_s"] == 36000
    assert status["verdict"]["best"] == "allowed"
    assert status["ending"] is None
    assert "lives" in status["log"]


@pytest.mark.slow
def test_a_pod_that_is_being_ended_takes_no_other_run(pod: GuardedPod, run: FakeRun) -> None:
    pod.provider.ignores = True
    pod.move_clock(36000)
    wait_until(lambda: pod.provider.ends, "the ending")
    assert "is being ended" in pod.arm()["error"]


# --- what ends a pod ---


def test_a_run_that_lives_keeps_the_pod_to_its_deadline_where_it_is_asked_to_save_first(
    pod: GuardedPod, run: FakeRun
) -> None:
    pod.move_clock(35000)
    wait_until(lambda: pod.guard("status")["elapsed_s"] > 35000, "time gone by")
    assert not run.was_asked
    pod.move_clock(36000 - 90)
    wait_until(lambda: run.was_asked, "the request to save")
    assert not pod.provider.ends
    pod.move_clock(36000)
    pod.wait_for_end()
    assert pod.provider.ends == [("v2", "stop")]
    ending = pod.read("ending.json")
    assert ending["by"] == "watchdog"
    assert "at its deadline, 10 h" in ending["why"]


@pytest.mark.slow
def test_a_run_that_succeeded_leaves_its_pod_the_fetch_grace(pod: GuardedPod, run: FakeRun) -> None:
    run.say(SUCCEEDED)
    wait_for_state(pod, SUCCEEDED)
    pod.move_clock(550)
    wait_until(lambda: pod.guard("status")["elapsed_s"] > 550, "time gone by")
    assert not pod.provider.ends
    pod.move_clock(660)
    pod.wait_for_end()
    assert pod.provider.ends == [("v2", "terminate")]


@pytest.mark.parametrize(
    ("state", "how"),
    [(SUCCEEDED, "terminate"), pytest.param(FAILED, "stop", marks=pytest.mark.slow)],
)
def test_fetched_results_end_the_pod_at_once(pod: GuardedPod, run: FakeRun, state: str, how: str) -> None:
    run.say(state, reason="it's over")
    needing = pod.guard("status")["needing"]
    assert [r for r in needing if r != pod.run_id] == []
    assert pod.guard("fetched", pod.run_id) == {"fetched": pod.run_id}
    pod.wait_for_end()
    assert pod.provider.ends == [("v2", how)]
    assert "fetched" in pod.read("ending.json")["why"]


@pytest.mark.slow
def test_a_run_whose_runner_died_is_lost_and_ends_its_pod(pod: GuardedPod, run: FakeRun) -> None:
    run.die()
    pod.guard("fetched", pod.run_id)
    wait_for_state(pod, "lost")
    assert not pod.provider.ends
    pod.move_clock(61)
    pod.wait_for_end()
    assert "lost" in pod.read("ending.json")["why"]


@pytest.mark.slow
def test_a_hold_keeps_a_failed_run_and_a_person_can_ask_for_more(pod: GuardedPod) -> None:
    pod.boot()
    pod.arm(on_failure={"hold_s": 1800})
    for run in begun(pod):
        run.say(FAILED)
        wait_for_state(pod, FAILED)
        pod.guard("fetched", pod.run_id)
        until_s = pod.guard("hold", pod.run_id, "3000")["until_s"]
        assert 3000 <= until_s < 3060
        pod.move_clock(2900)
        wait_until(lambda: pod.guard("status")["elapsed_s"] > 2900, "time gone by")
        assert not pod.provider.ends
        pod.move_clock(3100)
        pod.wait_for_end()


@pytest.mark.slow
def test_a_run_that_never_begins_ends_its_pod_at_the_boot_grace(pod: GuardedPod) -> None:
    pod.boot()
    pod.arm()
    wait_for_state(pod, "absent")
    pod.move_clock(930)
    pod.wait_for_end()
    assert "has not begun" in pod.read("ending.json")["why"]


@pytest.mark.slow
def test_what_an_earlier_attempt_left_behind_ends_nothing(pod: GuardedPod) -> None:
    pod.boot()
    with FakeRun(pod.run, pod.root, pod.env) as run:
        run.say(FAILED)
        pod.arm()
        wait_for_state(pod, "absent")
        run.say("running", attempt=2)
        wait_for_state(pod, "lives")
        pod.arm(deadline_s=40000)  # once more, while it runs
        wait_for_state(pod, "lives")
        run.say(SUCCEEDED, attempt=2)
        wait_for_state(pod, SUCCEEDED)
        pod.guard("fetched", pod.run_id)
        pod.wait_for_end()


@pytest.mark.slow
def test_the_pod_lives_as_long_as_one_of_its_runs(pod: GuardedPod, run: FakeRun) -> None:
    pod.arm(run_id="other", run_dir=str(pod.volume / "runs" / "other"))
    run.say(SUCCEEDED)
    wait_for_state(pod, SUCCEEDED)
    pod.guard("fetched", pod.run_id)
    pod.move_clock(800)
    wait_until(lambda: pod.guard("status")["elapsed_s"] > 800, "time gone by")
    assert not pod.provider.ends
    pod.move_clock(960)  # the other never began
    pod.wait_for_end()


# --- what must not hold it up ---


def test_a_watchdog_that_is_killed_is_started_again_and_remembers(pod: GuardedPod, run: FakeRun) -> None:
    run.say(SUCCEEDED)
    wait_for_state(pod, SUCCEEDED)
    (old,) = pod.watchdogs()
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: [w for w in pod.watchdogs() if w != old], "another watchdog")
    wait_until(lambda: pod.guard_log.count("watches over") == 2, "its first word")
    pod.move_clock(660)  # the fetch grace counts from what the first one saw
    pod.wait_for_end()
    assert pod.read("ending.json")["by"] == "watchdog"


@pytest.mark.slow
def test_a_watchdog_that_hangs_is_replaced(pod: GuardedPod, run: FakeRun) -> None:
    (old,) = pod.watchdogs()
    os.kill(old, signal.SIGSTOP)
    wait_until(lambda: passes(pod, 130) and not is_alive(old), "the end of the one that hangs")
    wait_until(pod.watchdogs, "another watchdog")


def passes(pod: GuardedPod, seconds: float) -> bool:
    """Let more time go by; True."""
    pod.move_clock(float(pod.clock_file.read_text().split()[0]) + seconds)
    time.sleep(0.5)
    return True


@pytest.mark.slow
def test_a_pod_whose_watchdog_cannot_come_back_ends_after_the_grace(pod: GuardedPod) -> None:
    python = pod.root / "python"
    python.symlink_to(sys.executable)
    pod.python = str(python)
    pod.boot()
    pod.arm()
    with FakeRun(pod.run, pod.root, pod.env):
        wait_for_state(pod, "lives")
        python.unlink()
        os.kill(pod.watchdogs()[0], signal.SIGKILL)
        wait_until(lambda: "exit code 127" in pod.log, "a start that fails")
        pod.move_clock(850)
        assert not pod.provider.ends
        pod.move_clock(960)
        pod.wait_for_end()
    assert wait_until(lambda: pod.read("ending.json"), "the ending")["by"] == "boot guard"


@pytest.mark.slow
def test_an_order_that_starts_no_watchdog_does_not_stop_the_count(pod: GuardedPod) -> None:
    pod.boot()
    (pod.dir / "armed").write_text(f"{sys.executable}\n/nowhere/guard.py\n")
    wait_until(lambda: "the watchdog ended" in pod.log, "a start that fails")
    pod.move_clock(900)
    pod.wait_for_end()


def test_a_volume_that_stalls_does_not_hold_up_the_deadline(pod: GuardedPod, run: FakeRun) -> None:
    pod.run.status.unlink()
    for path in (pod.run.status, pod.run.log, pod.run.progress):
        os.mkfifo(path)  # whoever opens it waits for ever
    wait_until(lambda: "does not answer" in pod.guard_log, "the watchdog's seeing that")
    pod.move_clock(900 + 36000 - 2000)
    wait_until(lambda: pod.guard("status")["elapsed_s"] > 34900, "time gone by")
    assert not pod.provider.ends
    pod.move_clock(36000)
    pod.wait_for_end()
    wait_until(lambda: len(pod.watchdogs()) == 1, "one watchdog")  # a child of it looks like it for a moment


@pytest.mark.slow
def test_nobody_asking_or_a_clock_set_anew_ends_nothing(pod: GuardedPod, run: FakeRun) -> None:
    for wall_s in (10 * 86400, -10 * 86400):
        pod.move_clock(60, wall_s)
        wait_for_a_beat(pod)
    assert not pod.provider.ends


@pytest.mark.slow
def test_an_ending_that_is_ignored_is_asked_for_again_and_then_over_every_route(pod: GuardedPod, run: FakeRun) -> None:
    pod.provider.ignores = True
    run.say(SUCCEEDED)
    pod.guard("fetched", pod.run_id)
    first = [("v2", "terminate")]
    both = [*first, ("graphql", "terminate")]
    rounds = [first, both, both, [*both, ("v2", "stop"), ("graphql", "stop")]]
    expected = [ask for asked in rounds for ask in asked]
    for guard in pod.guards():
        os.kill(guard, signal.SIGSTOP)  # or it would help
    while len(pod.provider.ends) < len(expected):
        pod.move_clock(float(pod.clock_file.read_text().split()[0]) + 20)
        wait_for_a_beat(pod)
        wait_for_a_beat(pod)
    assert pod.provider.ends[: len(expected)] == expected
    times = [t for t, way, what in pod.provider.asked if (way, what) == first[0]]
    assert all(later - earlier >= 59 for earlier, later in pairwise(times))


def wait_for_a_beat(pod: GuardedPod) -> None:
    before = (pod.dir / "alive").read_text()
    wait_until(lambda: (pod.dir / "alive").read_text() not in (before, ""), "a beat")


@pytest.mark.slow
def test_a_watchdog_that_cannot_end_the_pod_gets_help_from_the_boot_guard(pod: GuardedPod, run: FakeRun) -> None:
    pod.provider.rights = {"v2": "none", "graphql": "none"}
    run.say(SUCCEEDED)
    pod.guard("fetched", pod.run_id)
    wait_until(lambda: "the watchdog ends this pod" in pod.log, "the boot guard's seeing that")
    pod.move_clock(301)
    wait_until(lambda: "has not managed" in pod.log, "its help")
    pod.provider.rights = {"v2": "all", "graphql": "all"}
    pod.move_clock(400)
    pod.wait_for_end()
    assert pod.provider.state == "TERMINATED"


@pytest.mark.slow
def test_a_route_whose_rights_were_taken_away_is_followed_by_the_next(pod: GuardedPod, run: FakeRun) -> None:
    pod.provider.rights["v2"] = "none"
    run.say(SUCCEEDED)
    pod.guard("fetched", pod.run_id)
    pod.wait_for_end()
    assert pod.provider.ends == [("graphql", "terminate")]


@pytest.mark.slow
def test_a_memory_disk_that_somebody_empties_ends_no_run_and_loses_no_claim(pod: GuardedPod, run: FakeRun) -> None:
    shutil.rmtree(pod.dir)
    wait_until(lambda: pod.read(f"claims/{pod.run_id}.json") and pod.read("boot.json"), "all that counts, once more")
    pod.move_clock(2000)
    wait_until(lambda: pod.guard("status")["elapsed_s"] > 2000, "time gone by")
    wait_for_a_beat(pod)
    again = pod.arm()
    assert (again["living"], again["best"]) == (True, "allowed")
    assert not pod.provider.ends
    run.say(SUCCEEDED, attempt=2)
    wait_for_state(pod, SUCCEEDED)
    pod.guard("fetched", pod.run_id)
    pod.wait_for_end()


@pytest.mark.slow
def test_a_memory_disk_that_is_full_stops_neither_heart_nor_ending(pod: GuardedPod, run: FakeRun) -> None:
    beat = (pod.dir / "alive").stat().st_ino
    for name in ("watch.json", "verdict.json"):
        (pod.dir / name).unlink()
        (pod.dir / name).mkdir()  # nothing can be written there
    wait_for_a_beat(pod)
    assert (pod.dir / "alive").stat().st_ino == beat  # in place: that needs no room
    run.say(SUCCEEDED)
    pod.guard("fetched", pod.run_id)
    pod.wait_for_end()


# --- evidence and secrets ---


@pytest.mark.slow
def test_the_black_box_holds_the_last_words_of_run_machine_and_guard(pod: GuardedPod, run: FakeRun) -> None:
    pod.run.log.write_bytes(b"x" * 1_000_000 + b"the last line\n")
    pod.program(pod.bin / "nvidia-smi", "#!/bin/sh\nexec sleep 1000\n")  # a sick GPU
    run.say(FAILED, reason="out of memory")
    pod.guard("fetched", pod.run_id)
    pod.wait_for_end()
    boxed = {p.name for p in box(pod).iterdir()}
    assert {"log", "status.json", "guard.log", "verdict.json", "processes.txt", "disk.txt", "meminfo.txt"} <= boxed
    assert (box(pod) / "log").read_bytes().endswith(b"the last line\n")
    assert (box(pod) / "log").stat().st_size < 300_000
    assert b"no answer" in (box(pod) / "gpu.txt").read_bytes()
    guards = pod.run.guard / pod.read("boot.json")["boot"]
    assert json.loads((guards / "ending.json").read_text())["why"].endswith("results are fetched")
    assert json.loads((guards / "verdict.json").read_text())["best"] == "allowed"


@pytest.mark.parametrize("echoes", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_pods_key_is_in_no_file_no_argv_and_no_log(pod: GuardedPod, echoes: bool) -> None:
    pod.provider.echoes = echoes
    pod.provider.ignores = True
    if echoes:
        pod.provider.rights = {"v2": "none", "graphql": "none"}
    pod.program(pod.bin / "runpodctl", '#!/bin/sh\necho "error with ${RUNPOD_API_KEY}"\nexit 1\n')
    argvs: set[bytes] = set()
    endings: set[bytes] = set()  # both write that file: whose word stands in the end is a matter of moments
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    argvs.add(Path(f"/proc/{name}/cmdline").read_bytes())
                except OSError:
                    continue
            with contextlib.suppress(OSError):
                endings.add((pod.dir / "ending.json").read_bytes())
            done.wait(0.005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        pod.boot()
        pod.arm(wait_s=0.1)
        with FakeRun(pod.run, pod.root, pod.env) as run:
            run.say(SUCCEEDED)
            pod.guard("fetched", pod.run_id)
            wait_until(lambda: "terminate by" in pod.guard_log, "the watchdog's asking")
            wait_until(lambda: "the watchdog ends this pod" in pod.log, "the boot guard's seeing that")
            pod.move_clock(302)
            wait_until(lambda: "boot guard: terminate by v2" in pod.log, "the boot guard's asking")
            for pid in pod.watchdogs():
                os.kill(pid, signal.SIGSTOP)  # it would write its own word over the boot guard's
            wait_until(lambda: any(b'"boot guard"' in e for e in list(endings)), "its round")
    finally:
        done.set()
        sampler.join()
    assert any(b"watch" in a for a in argvs)
    assert not [a for a in argvs | endings if KEY.encode() in a]
    files = [p for p in pod.root.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert not [p for p in files if KEY.encode() in (tail(p) or b"")]


@pytest.mark.slow
def test_it_all_goes_under_python_3_8(pod: GuardedPod) -> None:
    pod.python = installed("3.8")
    if not pod.python:
        pytest.skip("no Python 3.8 here")
    pod.boot()
    assert pod.arm()["best"] == "allowed"
    with FakeRun(pod.run, pod.root, pod.env) as run:
        run.say(SUCCEEDED)
        pod.guard("fetched", pod.run_id)
        pod.wait_for_end()


@pytest.mark.slow
def test_a_real_run_is_watched_to_its_end(pod: GuardedPod) -> None:
    """The runner itself, not one that plays it."""
    from support.pod import Pod

    with Pod(pod.root, name="machine") as machine:
        pod.run_id, pod.run = machine.run_id, machine.run
        pod.boot()
        pod.arm(disk=str(machine.disk), run_dir=str(machine.run))
        status = machine.finish("python", "-c", "print('trained')")
        assert status.state == SUCCEEDED
        pod.guard("fetched", pod.run_id)
        pod.wait_for_end()
    ending: Any = pod.read("ending.json")
    assert "succeeded" in ending["why"]
    assert "trained" in (box(pod) / "log").read_text()
