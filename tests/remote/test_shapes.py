"""What all three packages build on: files, fence, clock, shapes."""

import ast
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.clock import FileClock, utc
from remote.fence import Fence, Superseded, newest_epoch, take_epoch
from remote.files import read_json, write_atomic, write_json
from remote.mistakes import did_you_mean
from remote.rundir import Job, RunDir, Stage, Status, Volume, is_lost, parse_status, read_status, state_after
from remote.rundir import write_dataclass as write_shape

ROOT = Path(__file__).parents[2]


def status(**more: object) -> Status:
    shape = {"run_id": "r", "attempt": 1, "boot_id": "b", "state": "running", "phase": "train", "pid": 7}
    return Status(**{**shape, "started_at": 100.0, "heartbeat_at": 200.0, **more})


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "it's a file\n.json"
    write_json(path, {"n": 0, "pad": "x" * 5000})
    done = threading.Event()

    def write() -> None:
        for n in range(200):
            write_json(path, {"n": n, "pad": "x" * (5000 + n)})
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not done.is_set():
        value = read_json(path)
        assert value is not None
        assert value["n"] >= seen
        seen = value["n"]
    thread.join()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_of_many_who_take_an_epoch_each_gets_its_own_and_one_may_write(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda _: take_epoch(tmp_path / "writer"), range(24)))
    assert sorted(epochs) == list(range(1, 25))
    Fence(tmp_path / "writer", 24).check()
    with pytest.raises(Superseded, match="attempt 24 took over from attempt 23"):
        Fence(tmp_path / "writer", 23).check()
    assert newest_epoch(tmp_path / "nowhere") == 0


@pytest.mark.parametrize(
    ("code", "asked", "state"),
    [
        (0, False, "succeeded"),
        (0, True, "succeeded"),
        (1, False, "failed"),
        (1, True, "stopped"),
        (75, False, "stopped"),
    ],
)
def test_what_an_exit_code_means(code: int, asked: bool, state: str) -> None:
    assert state_after(code, asked) == state


def test_lost_is_no_final_word_and_nobody_left_to_say_one() -> None:
    assert is_lost(status(), runner_alive=False, now=200)
    assert not is_lost(status(), runner_alive=True, now=1000), "its heartbeat lies on a volume that is full"
    assert is_lost(status(), runner_alive=None, now=1000)
    assert not is_lost(status(), runner_alive=None, now=205)
    assert not is_lost(status(state="failed"), runner_alive=False, now=1000)


def test_a_status_of_a_newer_version_is_read_and_of_a_torn_file_is_not(tmp_path: Path) -> None:
    path = RunDir(tmp_path).status
    assert read_status(path) is None
    write_shape(path, status())
    assert read_status(path) == status()
    newer = {**json.loads(path.read_text()), "mood": "good"}
    assert parse_status(newer) == status()
    assert parse_status({"state": "running"}) is None
    path.write_text(path.read_text()[:40])
    assert read_status(path) is None


@given(st.text(), st.lists(st.text(), max_size=3))
def test_a_job_goes_through_json_and_back(text: str, words: list[str]) -> None:
    from dataclasses import asdict

    job = Job("r", "p", text, "/tool", words, [Stage(text, words, words)], {text: text}, 2.5)
    assert Job.from_json(json.loads(json.dumps({**asdict(job), "later": 1}))) == job


def test_every_file_of_a_run_lies_in_it(tmp_path: Path) -> None:
    run = Volume(tmp_path).run("demo-1")
    names = [n for n in dir(RunDir) if isinstance(getattr(RunDir, n), property)]
    assert len(names) > 15
    assert all(run.root in getattr(run, n).parents for n in names)
    assert run.checkpoint(7).name == "step-00000007"


def test_a_clock_file_moves_a_process_a_day_in_a_blink(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    clock = FileClock(str(path))
    before = clock.now()
    waiter = threading.Thread(target=clock.sleep, args=(3600.0,), daemon=True)
    waiter.start()
    for day in range(1, 1000):  # again and again: it may not have looked at the clock before the first jump
        path.write_text(str(day * 86_400))
        waiter.join(0.01)
        if not waiter.is_alive():
            break
    assert not waiter.is_alive()
    assert clock.now() - before >= 86_400
    path.write_text("nonsense")
    assert clock.now() - before < 100
    assert utc(0) == "1970-01-01T00:00:00Z"


def test_near_words_are_offered_and_else_all() -> None:
    assert did_you_mean("stpes", ["steps", "lr"]) == ": did you mean steps?"
    assert did_you_mean("zzz", ["steps", "lr"]) == ": known are lr, steps"
    assert did_you_mean("zzz", []) == ""


def test_remote_is_python_38_and_the_packages_import_nothing() -> None:
    for path in (ROOT / "remote").glob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    script = "import sys; before = set(sys.modules); import podctl, remote, trainer; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ast.literal_eval(done.stdout) == {"podctl", "remote", "trainer"}
