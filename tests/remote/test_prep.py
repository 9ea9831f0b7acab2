"""Prep stages run when they must, and only then."""

import os
import signal

import pytest
from support.pod import Pod

from remote.clock import duration
from remote.rundir import FAILED, STOPPED, SUCCEEDED, Stage

COUNT = 'echo ran >>"$PODCTL_VOLUME/count"; '


@pytest.fixture
def pod(tmp_path):
    with Pod(tmp_path) as pod:
        yield pod


def runs(pod):
    path = pod.volume.root / "count"
    return len(path.read_text().splitlines()) if path.exists() else 0


def stage(run, inputs=(), outputs=()):
    return Stage(COUNT + run, list(inputs), list(outputs))


def data(pod, name, text):
    path = pod.volume.data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def finish(pod, *stages, command=("true",)):
    pod.job(*command, prep=list(stages))
    return pod.finish()


MAKE = 'cp "$PODCTL_VOLUME/data/in" "$PODCTL_VOLUME/data/out"'


def test_a_stage_runs_once_and_is_unchanged_after_that(pod):
    data(pod, "in", "1")
    make = stage(MAKE, ["in"], ["out"])
    assert finish(pod, make).state == SUCCEEDED
    assert runs(pod) == 1
    assert "prep 1/1: echo ran" in pod.log
    assert "s\n" in pod.log.split("✓ prep 1/1: ")[1]
    assert finish(pod, make).state == SUCCEEDED
    assert runs(pod) == 1
    assert pod.log.rstrip().splitlines()[-2].endswith("unchanged")


def test_another_run_of_the_project_uses_what_is_there(pod):
    data(pod, "in", "1")
    make = stage(MAKE, ["in"], ["out"])
    finish(pod, make)
    finish(Pod(pod.root, run_id="second"), make)
    assert runs(pod) == 1


@pytest.mark.parametrize("what", ["input", "touched", "output", "command", "inputs"])
def test_a_stage_runs_again_when_something_it_rests_on_has_changed(pod, what):
    path = data(pod, "in", "1")
    data(pod, "other", "1")
    finish(pod, stage(MAKE, ["in"], ["out"]))
    second = stage(MAKE, ["in"], ["out"])
    if what == "input":
        path.write_text("22")
    elif what == "touched":
        os.utime(path, (1, 1))
    elif what == "output":
        (pod.volume.data / "out").unlink()
    elif what == "command":
        second = stage(MAKE + "; true", ["in"], ["out"])
    else:
        second = stage(MAKE, ["in", "other"], ["out"])
    finish(pod, second)
    assert runs(pod) == 2


@pytest.mark.parametrize("change", ["add", "edit", "remove", "rename"])
def test_a_folder_as_input_counts_by_every_file_in_it(pod, change):
    deep = data(pod, "wavs/a/1.wav", "sound")
    make = stage('touch "$PODCTL_VOLUME/data/out"', ["wavs"], ["out"])
    finish(pod, make)
    finish(pod, make)
    assert runs(pod) == 1
    if change == "add":
        data(pod, "wavs/b/2.wav", "sound")
    elif change == "edit":
        deep.write_text("other sound")
    elif change == "remove":
        deep.unlink()
    else:
        deep.rename(deep.with_name("3.wav"))
    finish(pod, make)
    assert runs(pod) == 2


def test_two_commands_that_write_the_same_file_do_not_believe_each_other(pod):
    one = stage('echo one >"$PODCTL_VOLUME/data/out"', [], ["out"])
    two = stage('echo two >"$PODCTL_VOLUME/data/out"; touch "$PODCTL_VOLUME/data/more"', [], ["out", "more"])
    finish(pod, one)
    finish(pod, two)
    finish(pod, one)
    assert (pod.volume.data / "out").read_text() == "one\n"


def test_stages_run_in_order_in_the_source_folder_and_before_the_job(pod):
    first = stage('pwd -P; echo A >"$PODCTL_VOLUME/data/a"', [], ["a"])
    second = stage('cat "$PODCTL_VOLUME/data/a" - </dev/null >"$PODCTL_VOLUME/data/b"', ["a"], ["b"])
    finish(pod, first, second, command=("bash", "-c", 'echo job sees $(cat "$PODCTL_VOLUME/data/b")'))
    assert str(pod.source.resolve()) in pod.log
    assert pod.log.index("prep 1/2") < pod.log.index("prep 2/2") < pod.log.index("job sees A")


def test_a_failed_stage_fails_the_run_and_the_job_does_not_start(pod):
    status = finish(pod, stage("true"), stage("exit 9"), command=("echo", "trained"))
    assert (status.state, status.phase, status.exit_code) == (FAILED, "prep", 1)
    assert status.reason.startswith("prep 2/2 failed with exit code 9")
    assert "trained" not in pod.log


def test_a_stage_that_leaves_out_an_output_fails_and_has_no_stamp(pod):
    lazy = stage("true", [], ["never/made", "nor this"])
    status = finish(pod, lazy)
    assert status.state == FAILED
    assert "did not leave never/made, nor this" in status.reason
    finish(pod, lazy)
    assert runs(pod) == 2


def test_a_missing_input_fails_before_the_stage_runs(pod):
    status = finish(pod, stage("true", ["absent"]))
    assert status.state == FAILED
    assert str(pod.volume.data / "absent") in status.reason
    assert runs(pod) == 0


def test_an_absolute_path_stays_what_it_is(pod):
    out = pod.home / "elsewhere" / "out"
    assert finish(pod, stage(f"touch '{out}'", [], [str(out)])).state == SUCCEEDED
    assert out.exists()


def test_a_stage_that_was_stopped_half_way_runs_again(pod):
    half = stage('touch "$PODCTL_VOLUME/data/out"; echo half; cat "$PODCTL_VOLUME/hold"', [], ["out"])
    os.mkfifo(pod.volume.root / "hold")
    pod.job("true", prep=[half])
    process = pod.start()
    pod.wait_for("\nhalf")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert (pod.status.state, pod.status.phase) == (STOPPED, "prep")
    (pod.volume.root / "hold").unlink()
    (pod.volume.root / "hold").touch()
    assert finish(pod, half).state == SUCCEEDED
    assert runs(pod) == 2


def test_an_old_stamp_does_not_outlive_a_rerun_that_was_killed(pod):
    source = data(pod, "in", "1")
    os.utime(source, (1, 1))
    make = stage('cp "$PODCTL_VOLUME/data/in" "$PODCTL_VOLUME/data/out"; cat "$PODCTL_VOLUME/hold"', ["in"], ["out"])
    (pod.volume.root / "hold").touch()
    finish(pod, make)
    source.write_text("other")
    (pod.volume.root / "hold").unlink()
    os.mkfifo(pod.volume.root / "hold")
    pod.job("true", prep=[make])
    process = pod.start()
    pod.wait_for_state("running")
    while (pod.volume.data / "out").read_text() != "other":
        assert process.poll() is None
    process.kill()
    process.wait()
    (pod.volume.root / "hold").unlink()
    (pod.volume.root / "hold").touch()
    source.write_text("1")
    os.utime(source, (1, 1))  # the input is what it was, the output is not
    finish(pod, make)
    assert (pod.volume.data / "out").read_text() == "1"


def test_max_hours_covers_the_stages_too(pod):
    pod.job("echo", "trained", prep=[stage("echo up; sleep 60")])
    process = pod.start()
    pod.wait_for("\nup")
    pod.move_clock(4000)
    assert process.wait(20) == 75
    assert (pod.status.state, pod.status.limit) == (STOPPED, "max_hours")
    assert "trained" not in pod.log


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (18.2, "18 s"), (200, "3 m 20 s"), (7800, "2 h 10 m")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text
