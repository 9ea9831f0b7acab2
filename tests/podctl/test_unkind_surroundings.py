"""The machine at its unkindest: folders that are none, streams that are closed, programs that do not run."""

import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from support.podctl_cli import COMMAND, Cli, wait_for

HOMES = ["a file", "below a file", "a ledger that is a folder", "too long", "~nobody-of-that-name/x"]


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("command", ["ps", "status"])
def test_a_state_directory_that_is_none_is_said_in_a_sentence(cli: Cli, tmp_path: Path, home: str, command: str):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "ledger.jsonl").mkdir(parents=True)
    places = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x",
        "a ledger that is a folder": tmp_path / "folder",
        "too long": tmp_path / ("a" * 300),
    }
    done = cli(command, env={"PODCTL_HOME": str(places.get(home, home))})
    assert done.code == 9, done
    assert "Traceback" not in done.err
    assert "PODCTL_HOME" in done.err


def test_a_folder_that_was_removed_is_said_in_a_sentence(cli: Cli, tmp_path: Path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "ps"], cwd=gone, env=cli.env, capture_output=True, check=False
    )
    assert done.returncode == 9
    assert b"not there any more" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(cli: Cli, closing: str):
    cli("train", "--config", cli.experiment())
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closing}', "sh", *COMMAND, "ps"],
        cwd=cli.project,
        env=cli.env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["ps", "logs"])
def test_output_that_nothing_takes_is_said_in_a_sentence(cli: Cli, command: str):
    cli("train", "--config", cli.experiment())
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, command], cwd=cli.project, env=cli.env, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 9
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_mistake_stays_one_when_nobody_reads_it(cli: Cli):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*COMMAND, "status", "nobody", "--json"],
        cwd=cli.project,
        env=cli.env,
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_keys_in_a_folder_without_git_need_no_git(cli: Cli, tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else []:
            if program.name != "git" and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    (cli.project / ".runpod.env").write_text("A=1\n")
    assert cli("train", "--config", cli.experiment(), "--dry-run", env={"PATH": str(programs)}).code == 0


@pytest.mark.parametrize("python", ["/nowhere/python", "/etc/passwd"])
def test_a_python_that_is_none_is_told_before_anything_is_started(cli: Cli, python: str):
    done = cli("train", "--config", cli.experiment(), env={"PODCTL_PYTHON": python})
    assert done.code == 9
    assert f"PODCTL_PYTHON is {python}" in done.err
    assert "apt-get" not in done.err
    assert not (cli.home / "ledger.jsonl").exists()


def test_a_file_from_elsewhere_belongs_to_the_project_one_is_in(cli: Cli, tmp_path: Path):
    elsewhere = cli.experiment().rename(tmp_path / "x.yaml")
    below = cli.project / "sub"
    below.mkdir()
    assert cli("train", "--config", elsewhere, cwd=below).code == 0
    assert cli("status", cwd=below).code == 0


@pytest.mark.parametrize("to", ["file", "file/below"])
def test_a_place_to_pull_to_that_is_none_is_said_in_a_sentence(cli: Cli, to: str):
    cli("train", "--config", cli.experiment())
    (cli.project / "file").touch()
    done = cli("pull", "--to", to)
    assert done.code == 9
    assert "--to" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_tensorboard_behind(cli: Cli, tmp_path: Path, number: int):
    pytest.importorskip("tensorboard")
    cli("train", "--config", cli.experiment())
    process = cli.start("tensorboard", "--no-browser")
    url = process.stdout.readline().decode().strip()
    process.send_signal(number)
    assert process.wait(20) == 0
    port = int(url.rstrip("/").rpartition(":")[2])
    done = subprocess.run(["pgrep", "-f", f"tensorboard.main.*--port {port}$"], capture_output=True, check=False)
    assert done.stdout == b""


@pytest.mark.slow
def test_a_tensorboard_that_nohup_started_outlives_its_terminal(cli: Cli):
    pytest.importorskip("tensorboard")
    cli("train", "--config", cli.experiment())
    process = cli.start("tensorboard", "--no-browser", by=["nohup"])
    url = process.stdout.readline().decode().strip()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert served(url)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def served(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bool(answer.status == 200)


def test_a_train_in_the_background_of_a_script_does_not_feel_the_scripts_ctrl_c(cli: Cli):
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    process = cli.start("train", "--config", cli.experiment("echo over"), by=deaf)
    wait_for((cli.home / "ledger.jsonl").exists)
    while process.poll() is None:  # before its run begins, while, and after
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert b"over" in out
    assert b"goes on without you" not in err


def test_a_receipt_that_can_not_be_written_does_not_hide_how_a_run_ended(cli: Cli):
    blocked = 'mkdir "$PODCTL_RUN_DIR/receipt.json"; touch "$PODCTL_RUN_DIR/receipt.json/x"; exit 3'
    done = cli("train", "--config", cli.experiment(blocked))
    assert done.code == 1, done
    assert "failed after" in done.err
    assert "receipt could not be written" in done.err


def test_the_patch_keeps_carriage_returns(cli: Cli):
    (cli.project / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    cli.git("add", "-A")
    cli.git("commit", "-q", "-m", "dos")
    (cli.project / "dos.txt").write_bytes(b"one\r\nthree\r\n")
    cli("train", "--config", cli.experiment())
    assert b"+three\r\n" in (cli.run_dir() / "source.patch").read_bytes()


def test_a_train_that_is_killed_leaves_its_run_alone(cli: Cli):
    process = cli.start("train", "--config", cli.experiment("echo begun; sleep 30"))
    wait_for(
        lambda: cli.runs() and (cli.run_dir() / "log").exists() and b"begun" in (cli.run_dir() / "log").read_bytes()
    )
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert cli.state() == "running"
    assert cli("stop").code == 0
