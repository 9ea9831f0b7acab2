"""Runs on this machine, through the command line, the runner and a real tmux."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.podctl_cli import COMMAND, Cli, wait_for

FOREVER = "echo begun; exec sleep 60"
SAVES = "trap 'echo saved; exit 75' TERM; echo begun; while :; do sleep 0.05; done"


def begun(cli: Cli) -> bool:
    return any((run / "log").exists() and b"begun" in (run / "log").read_bytes() for run in cli.runs())


def test_a_run_that_succeeds_prints_its_log_and_leaves_results_and_a_receipt(cli: Cli):
    done = cli("train", "-c", cli.experiment("echo hello; echo there >&2"), "--local")
    assert done.code == 0, done
    run = cli.run_dir()
    assert done.out == (run / "log").read_bytes()
    assert b"hello\n" in done.out
    results = cli.project / ".podctl" / "runs" / run.name
    assert (results / "log").read_bytes() == done.out
    assert (cli.project / ".podctl" / ".gitignore").read_text() == "*\n"
    receipt = json.loads((run / "receipt.json").read_text())
    assert receipt == json.loads((results / "receipt.json").read_text())
    assert (receipt["state"], receipt["exit_code"], receipt["bill"]) == ("succeeded", 0, "$0.00")
    assert "✓" in done.err
    assert "$0.00" in done.err
    assert [e["event"] for e in cli.events()] == [
        "intent",
        "created",
        "started",
        "ready",
        "launched",
        "stopped",
        "billed",
    ]


@pytest.mark.parametrize(("command", "code"), [("exit 1", 1), ("exit 3", 1), ("exit 75", 75)])
def test_the_exit_code_tells_how_the_run_ended(cli: Cli, command: str, code: int):
    done = cli("train", "-c", cli.experiment(command), "--local")
    assert done.code == code, done
    assert "resumes it" in done.err


def test_a_run_that_meets_its_limit_exits_with_7(cli: Cli):
    done = cli("train", "-c", cli.experiment(SAVES), "--local", "--set", "pod.max_hours=0.0003")
    assert done.code == 7, done
    assert "saved" in done.stdout


@pytest.mark.slow
def test_a_headline_of_the_run_is_in_the_receipt(cli: Cli):
    summary = (
        'mkdir -p $PODCTL_RUN_DIR/reports; echo \'{"headline": "WER 8.1 %"}\' > $PODCTL_RUN_DIR/reports/summary.json'
    )
    done = cli("train", "-c", cli.experiment(summary), "--local")
    assert "WER 8.1 %" in done.err


def test_a_long_log_arrives_to_the_last_byte(cli: Cli):
    done = cli("train", "-c", cli.experiment("seq 1 200000; printf 'no newline'; printf '\\377\\000'"), "--local")
    assert done.code == 0
    assert done.out == (cli.run_dir() / "log").read_bytes()
    assert b"199999\n200000\nno newline\xff\x00" in done.out


def test_ctrl_c_leaves_and_attach_sees_the_whole_log(cli: Cli):
    podctl = cli.start("train", "-c", cli.experiment("echo begun; sleep 1.5; echo over"), "--local")
    wait_for(lambda: begun(cli))
    podctl.send_signal(signal.SIGINT)
    _, err = podctl.communicate(timeout=20)
    assert podctl.returncode == 0, err
    assert b"attach" in err
    assert b"stop" in err
    attached = cli("attach")
    assert attached.code == 0, attached
    assert attached.out == (cli.run_dir() / "log").read_bytes()
    assert b"over" in attached.out


def test_a_python_that_is_named_from_the_project_is_the_jobs_too(cli: Cli):
    (cli.project / "env").mkdir()
    (cli.project / "env" / "python").symlink_to(sys.executable)
    experiment = cli.experiment('echo "it is $PODCTL_PYTHON"')
    done = cli("train", "-c", experiment, "--local", env={"PODCTL_PYTHON": "env/python"})
    assert done.code == 0, done
    assert f"it is {cli.project}/env/python" in done.stdout
    broken = cli("train", "-c", experiment, "--local", env={"PODCTL_PYTHON": "/bin/false"})
    assert broken.code == 9
    assert "/bin/false does not run as a Python" in broken.err
    assert "PODCTL_PYTHON" in broken.err


def tmux_that_hangs(cli: Cli, begins: str) -> Path:
    """A machine that takes long to start a session, and says so; it `begins` with its real tmux, or not at all. The
    file that it writes a line to each time."""
    bin_dir = cli.project.parent / "bin"
    bin_dir.mkdir()
    times = bin_dir / "times"
    real = shutil.which("tmux")
    hang = f'case " $* " in *" new-session "*) {begins}; echo once >> {times}; sleep 60;; *) exec {real} "$@";; esac'
    (bin_dir / "tmux").write_text(f"#!/bin/sh\n{hang}\n")
    (bin_dir / "tmux").chmod(0o755)
    cli.env["PATH"] = f"{bin_dir}:{cli.env['PATH']}"
    return times


def test_ctrl_c_while_a_run_is_being_started_leaves_a_run_that_is_known(cli: Cli):
    tmux_that_hangs(cli, begins=f'{shutil.which("tmux")} "$@"')
    podctl = cli.start("train", "-c", cli.experiment(SAVES), "--local")
    wait_for(lambda: begun(cli))
    podctl.send_signal(signal.SIGINT)
    assert_it_left_a_run_that_is_known(podctl, cli)
    stopped = cli("stop")
    assert stopped.code == 0, stopped
    assert b"saved" in (cli.run_dir() / "log").read_bytes()
    assert (cli.run_dir() / "log").read_bytes().count(b"begun") == 1


def test_ctrl_c_just_after_the_answer_leaves_a_run_that_is_known(cli: Cli):
    go = cli.project.parent / "go"
    tmux_that_hangs(cli, begins=f'{shutil.which("tmux")} "$@"; while [ ! -e {go} ]; do sleep 0.02; done; exit 0')
    podctl = cli.start("train", "-c", cli.experiment(FOREVER), "--local")
    wait_for(lambda: begun(cli))
    with (cli.home / "ledger.jsonl").open() as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)  # podctl waits here to write that the run was launched
        go.touch()
        wait_for(lambda: waits_for_a_lock(podctl.pid))
        podctl.send_signal(signal.SIGINT)
    assert_it_left_a_run_that_is_known(podctl, cli)
    assert cli("stop").code == 0


def assert_it_left_a_run_that_is_known(podctl: "subprocess.Popen[bytes]", cli: Cli):
    _, err = podctl.communicate(timeout=20)
    assert podctl.returncode == 0, err
    assert b"goes on without you" in err
    assert [e["event"] for e in cli.events()][-1] == "launched"
    assert cli.state() == "running"


def waits_for_a_lock(pid: int) -> bool:
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_who_does_not_wait_for_the_answer_either_is_told_where_the_run_may_be(cli: Cli):
    times = tmux_that_hangs(cli, begins="true")
    experiment = cli.experiment("echo over")
    podctl = cli.start("train", "-c", experiment, "--local")
    for n in (1, 2):
        wait_for(lambda n=n: times.exists() and len(times.read_text().split()) == n)
        podctl.send_signal(signal.SIGINT)
    _, err = podctl.communicate(timeout=20)
    run = cli.run_dir().name
    assert podctl.returncode == 130, err
    assert f"was not waited for while {run} was started: it may be running".encode() in err
    assert f"podctl attach {run}".encode() in err
    assert "gone" not in [e["event"] for e in cli.events()]
    (times.parent / "tmux").unlink()
    assert run in cli("ps").stdout
    again = cli("train", "-c", experiment, "--local")
    assert again.code == 0, again
    assert cli.run_dir().name == run


def test_a_podctl_that_was_killed_loses_nothing(cli: Cli):
    podctl = cli.start("train", "-c", cli.experiment("echo begun; sleep 1.5; echo over"), "--local")
    wait_for(lambda: begun(cli))
    podctl.kill()
    podctl.wait()
    attached = cli("attach", "tiny")
    assert attached.code == 0, attached
    assert attached.out == (cli.run_dir() / "log").read_bytes()
    assert b"over" in attached.out


def test_a_second_train_while_one_runs_is_busy(cli: Cli):
    path = cli.experiment(FOREVER)
    assert cli("train", "-c", path, "--local", "--detach").code == 0
    wait_for(lambda: begun(cli))
    again = cli("train", "-c", path, "--local")
    assert again.code == 8, again
    assert "attach" in again.err
    forced = cli("train", "-c", path, "--local", "--force-restart")
    assert forced.code == 8, forced
    assert "stop" in forced.err
    assert len(cli.runs()) == 1


def test_of_two_trains_at_the_same_moment_one_wins(cli: Cli):
    path = cli.experiment(FOREVER)
    both = [cli.start("train", "-c", path, "--local", "--detach") for _ in range(2)]
    for podctl in both:
        podctl.communicate(timeout=60)
    assert sorted(p.returncode for p in both) == [0, 8]
    assert len(cli.runs()) == 1


def test_stop_saves_and_the_next_train_resumes_the_same_run(cli: Cli):
    path = cli.experiment(SAVES)
    cli("train", "-c", path, "--local", "--detach")
    wait_for(lambda: begun(cli))
    stopped = cli("stop", "--json")
    assert stopped.code == 0, stopped
    assert stopped.lines[-1]["state"] == "stopped"
    assert stopped.lines[-1]["exit_code"] == 75
    assert "stop_asked" in [e["event"] for e in cli.events()]
    first_log = (cli.run_dir() / "log").read_bytes()
    again = cli.start("train", "-c", path, "--local", "--json")
    wait_for(lambda: (cli.run_dir() / "log").read_bytes().count(b"begun") == 2)
    assert cli("stop").code == 0
    out, err = again.communicate(timeout=30)
    assert again.returncode == 75, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["resumes"]
    assert "".join(x["text"] for x in lines if x["event"] == "log") not in first_log.decode()
    assert lines[-1]["event"] == "receipt"
    assert lines[-1]["attempts"] == 2
    assert len(cli.runs()) == 1


def test_a_stop_in_the_first_moment_waits_until_somebody_can_be_asked(cli: Cli):
    cli("train", "-c", cli.experiment(SAVES), "--local", "--detach")
    assert cli("stop").code == 0
    assert cli.state() == "stopped"


def test_runs_whose_volume_was_removed_stand_in_nobodys_way(cli: Cli):
    path = cli.experiment("exit 1")
    cli("train", "-c", path, "--local")
    shutil.rmtree(cli.home / "volume")
    assert "unreachable" in cli("ps").stdout
    assert cli("attach").code == 1
    assert cli("pull").code == 1
    again = cli("train", "-c", path, "--local")
    assert again.code == 1, again
    assert "gone with its volume" in again.err


def test_a_launch_that_fails_leaves_nothing_running_and_can_be_repeated(cli: Cli):
    (cli.project / "secret.bin").write_text("x")
    cli.home.mkdir()
    (cli.home / "disk").write_text("a file where a folder belongs")
    path = cli.experiment()
    failed = cli("train", "-c", path, "--local")
    assert failed.code == 9, failed
    assert "not started" in cli("ps").stdout
    assert cli("pull").code == 1
    (cli.home / "disk").unlink()
    assert cli("train", "-c", path, "--local").code == 0
    assert [e["event"] for e in cli.events()].count("intent") == 2
    assert len({e["run"] for e in cli.events()}) == 1


def test_results_that_can_not_be_fetched_do_not_hide_how_a_run_ended(cli: Cli):
    (cli.project / ".podctl").write_text("a file where a folder belongs")
    done = cli("train", "-c", cli.experiment(), "--local")
    assert done.code == 0, done
    assert "results could not be fetched" in done.err


def test_stopping_what_is_over_is_no_error(cli: Cli):
    cli("train", "-c", cli.experiment(), "--local")
    done = cli("stop")
    assert done.code == 0
    assert "succeeded" in done.err


def test_a_lost_run_is_recognised_and_resumed(cli: Cli):
    path = cli.experiment(
        "echo begun; test -e $PODCTL_RUN_DIR/twice || { touch $PODCTL_RUN_DIR/twice; exec sleep 60; }"
    )
    cli("train", "-c", path, "--local", "--detach")
    wait_for(lambda: begun(cli))
    cli.kill_tmux()
    assert cli.state() == "lost"
    assert "lost" in cli("ps").stdout
    attached = cli("attach")
    assert attached.code == 1
    assert "resumes it" in attached.err
    again = cli("train", "-c", path, "--local")
    assert again.code == 0, again
    assert "lost" in again.err
    assert len(cli.runs()) == 1


def test_a_run_that_succeeded_is_followed_by_a_new_one(cli: Cli):
    path = cli.experiment()
    assert cli("train", "-c", path, "--local").code == 0
    assert cli("train", "-c", path, "--local").code == 0
    assert len(cli.runs()) == 2


def test_a_resume_with_other_settings_is_refused_with_the_difference(cli: Cli):
    assert cli("train", "-c", cli.experiment("exit 1"), "--local").code == 1
    refused = cli("train", "-c", cli.experiment("echo fine"), "--local")
    assert refused.code == 2, refused
    assert "exit 1 → echo fine" in refused.err
    assert "--force-restart" in refused.err
    forced = cli("train", "-c", cli.experiment("echo fine"), "--local", "--force-restart")
    assert forced.code == 0, forced
    assert len(cli.runs()) == 2


@pytest.mark.slow
def test_a_training_resumes_after_a_change_in_length_and_in_nothing_that_changes_its_weights(cli: Cli):
    path = cli.training()  # its data does not exist, so it fails at once
    assert cli("train", "-c", path, "--local").code == 1
    refused = cli("train", "-c", path, "--local", "--set", "train.optim.lr=3e-3", "--set", "train.loop.steps=20")
    assert refused.code == 2, refused
    assert "optim.lr: 0.001 → 0.003" in refused.err
    assert "loop.steps" not in refused.err
    longer = cli("train", "-c", path, "--local", "--set", "train.loop.steps=20")
    assert "resumes: it was failed" in longer.err
    run = cli.run_dir()
    assert "steps: 20" in (run / "experiment.yaml").read_text()
    assert "steps: 10" in (run / "experiment.yaml.1").read_text()


def test_debug_is_a_lineage_of_its_own(cli: Cli):
    path = cli.experiment("exit 1")
    cli("train", "-c", path, "--local")
    cli("train", "-c", path, "--local", "--debug")
    assert sorted(r.name.rsplit("-", 3)[0] for r in cli.runs()) == ["tiny", "tiny-debug"]


def test_json_on_train_is_an_object_a_line_and_the_last_is_the_receipt(cli: Cli):
    done = cli("train", "-c", cli.experiment("echo hällo; exit 1"), "--local", "--json")
    events = [line["event"] for line in done.lines]
    assert events[:2] == ["plan", "launched"]
    assert events[-1] == "receipt"
    assert done.lines[-1]["exit_code"] == done.code == 1
    log = "".join(line["text"] for line in done.lines if line["event"] == "log")
    assert log == (cli.run_dir() / "log").read_text()


def test_a_source_that_changes_while_a_run_goes_does_not_reach_it(cli: Cli):
    (cli.project / "a.txt").write_text("old\n")
    cli(
        "train",
        "-c",
        cli.experiment("echo begun; while ! test -e $PODCTL_RUN_DIR/go; do sleep 0.05; done; cat a.txt"),
        "--local",
        "--detach",
    )
    wait_for(lambda: begun(cli))
    (cli.project / "a.txt").write_text("new\n")
    (cli.run_dir() / "go").touch()
    assert b"old\n" in cli("attach").out


@pytest.mark.slow
def test_a_project_with_a_strange_path_works(cli: Cli, tmp_path):
    odd = tmp_path / 'a\'; echo "foo" \n;'
    cli.project.rename(odd)
    cli.project = odd
    done = cli(
        "train",
        "-c",
        cli.experiment("cat 'ü b'", file="it's; x\n.yaml"),
        "--local",
        env={"PODCTL_HOME": str(tmp_path / "st ate;")},
    )
    cli.home = tmp_path / "st ate;"
    assert done.code == 1, done  # there is no such file yet
    (odd / "ü b").write_text("found\n")
    done = cli("train", "-c", odd / "it's; x\n.yaml", "--local", env={"PODCTL_HOME": str(cli.home)})
    assert done.code == 0, done
    assert "found" in done.stdout


def test_ps_and_status_say_how_far_it_is(cli: Cli):
    progress = {
        "step": 3,
        "max_steps": 9,
        "epoch": 0.5,
        "phase": "train",
        "phase_since": 0,
        "last_step_at": 0,
        "loss": 0.25,
    }
    progress["best"] = {"step": 2, "metric": "wer", "value": 0.125}
    script = f"echo '{json.dumps(progress)}' > $PODCTL_RUN_DIR/progress.json; {FOREVER}"
    cli("train", "-c", cli.experiment(script), "--local", "--detach")
    wait_for(lambda: begun(cli))
    table = cli("ps").stdout
    assert "3/9" in table
    assert "wer 0.125 at 2" in table
    assert "running" in table
    assert "0.25" in cli("status").stdout
    (listed,) = cli("ps", "--json").lines
    assert (listed["step"], listed["state"], listed["loss"]) == (3, "running", 0.25)


def test_on_a_terminal_a_live_line_tells_how_far_it_is_and_the_log_stays_clean(cli: Cli):
    progress = {
        "step": 3,
        "max_steps": 9,
        "epoch": 1,
        "phase": "train",
        "phase_since": 0,
        "last_step_at": 0,
        "eta_s": 65,
    }
    script = f"echo '{json.dumps(progress)}' > $PODCTL_RUN_DIR/progress.json; echo begun; sleep 1.2; echo over"
    ours, theirs = pty.openpty()
    podctl = subprocess.Popen(
        [*COMMAND, "train", "-c", str(cli.experiment(script)), "--local"],
        env={**cli.env, "TERM": "xterm", "COLUMNS": "120"},
        cwd=cli.project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    cli.started.append(podctl)
    os.close(theirs)
    out = podctl.stdout.read()
    talk = os.read(ours, 100_000).decode()
    os.close(ours)
    assert podctl.wait(20) == 0
    assert out == (cli.run_dir() / "log").read_bytes()
    assert "tiny · train 3/9 · ETA 1 m 5 s · " in talk
    assert talk.rindex("\x1b[K") < talk.index("succeeded")  # nothing of it is left behind


def test_runs_of_other_projects_are_listed_on_request(cli: Cli, tmp_path):
    cli("train", "-c", cli.experiment(), "--local")
    (tmp_path / "other").mkdir()
    assert cli("ps", cwd=tmp_path / "other").stdout == ""
    assert "tiny-" in cli("ps", "--all", cwd=tmp_path / "other").stdout


def test_logs_prints_what_there_is_and_follows_on_request(cli: Cli):
    cli(
        "train",
        "-c",
        cli.experiment("echo begun; while ! test -e $PODCTL_RUN_DIR/go; do sleep 0.05; done; echo over"),
        "--local",
        "--detach",
    )
    wait_for(lambda: begun(cli))
    assert cli("logs").out == (cli.run_dir() / "log").read_bytes()
    following = cli.start("logs", "-f", "tiny")
    (cli.run_dir() / "go").touch()
    out, _ = following.communicate(timeout=20)
    assert out == (cli.run_dir() / "log").read_bytes()
    assert b"over" in out


def test_pull_brings_the_export_and_on_request_checkpoints(cli: Cli, tmp_path):
    script = (
        "cd $PODCTL_RUN_DIR; mkdir -p export checkpoints/step-1; echo c > checkpoints/step-1/c;"
        "echo {} > export/config.json;"
        "head -c 3000000 /dev/zero > export/model.safetensors"
    )
    cli("train", "-c", cli.experiment(script), "--local")
    results = cli.project / ".podctl" / "runs" / cli.run_dir().name
    assert (results / "export" / "config.json").exists()
    assert not (results / "export" / "model.safetensors").exists()
    assert cli("pull", "--to", tmp_path / "a b").code == 0
    assert (tmp_path / "a b" / "export" / "model.safetensors").stat().st_size == 3000000
    assert not (tmp_path / "a b" / "checkpoints").exists()
    cli("pull", "--to", tmp_path / "all", "--checkpoints")
    assert (tmp_path / "all" / "checkpoints" / "step-1" / "c").exists()


def test_a_reader_that_leaves_early_is_no_error(cli: Cli):
    cli("train", "-c", cli.experiment("seq 1 200000"), "--local")
    logs = cli.start("logs")
    logs.stdout.readline()
    logs.stdout.close()
    assert logs.wait(20) == 0
    assert logs.stderr.read() == b""
    logs.stdout = None


def test_the_tmux_of_a_finished_run_is_gone(cli: Cli):
    cli("train", "-c", cli.experiment(), "--local")
    (socket,) = cli.sockets()

    def is_gone() -> bool:
        return subprocess.run(["tmux", "-S", socket, "ls"], capture_output=True).returncode != 0

    wait_for(is_gone)
    assert Path(socket).parent.stat().st_mode & 0o777 == 0o700


def test_ctrl_c_while_a_run_saves_says_that_it_ends_without_one(cli: Cli):
    save = "echo saving; until [ -e $PODCTL_RUN_DIR/go ]; do sleep 0.1; done; exit 75"
    command = f"trap '{save}' TERM; echo begun; while true; do sleep 0.1; done"
    cli("train", "--config", cli.experiment(command), "--detach")
    wait_for(lambda: "begun" in cli("logs").stdout)
    process = cli.start("stop")
    wait_for(lambda: "saving\n" in cli("logs").stdout)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"was asked, and ends without you" in err
    (cli.run_dir() / "go").touch()
    wait_for(lambda: cli.state() == "stopped")


def test_resume_goes_on_by_the_runs_own_experiment(cli: Cli):
    path = cli.experiment("[ -e go ] && exit 0; exit 75")
    assert cli("train", "-c", path, "--local").code == 75
    path.unlink()
    (cli.project / "go").touch()
    done = cli("resume", "tiny")
    assert done.code == 0, done
    assert json.loads((cli.run_dir() / "status.json").read_text())["attempt"] == 2
    again = cli("resume")
    assert (again.code, "nothing to resume" in again.err) == (2, True), again
    elsewhere = cli("resume", cli.run_dir().name, cwd=cli.home)
    assert (elsewhere.code, f"cd {cli.project}" in elsewhere.err) == (2, True), elsewhere
