"""What people type by mistake, and what their machines lack: told at once, with what to type next, and never a hang."""

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from support.podctl_cli import COMMAND, Cli


def refused(done, code: int = 2) -> str:
    assert done.code == code, done
    assert "Traceback" not in done.err
    return done.err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "there is no file"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: p.write_bytes(b"name: \xff\xfe"), "not UTF-8"),
        (lambda p: p.write_text("name: [a"), "not YAML"),
        (lambda p: p.write_text("just words"), "holds no keys"),
        (lambda p: p.write_text(""), "holds no keys"),
        (lambda p: p.write_text("[" * 5000), "YAML"),
        (lambda p: p.write_text("a: 2021-99-99"), "YAML"),
    ],
)
@pytest.mark.parametrize("name", ["x.yaml", 'it\'s a "b"; $(c).yaml', "a\nb.yaml"])
def test_a_file_that_is_no_experiment(cli: Cli, make, said: str, name: str):
    path = cli.project / name
    make(path)
    err = refused(cli("train", "--config", name, "--local"))
    assert said in err or "nested too deeply" in err
    assert all(line.startswith(("✗", "→", "  ")) for line in err.splitlines())


def test_every_mistake_of_both_halves_and_of_the_command_line_is_told_at_once(cli: Cli):
    path = cli.training(max_hour=3, gpu_count="many")
    done = cli(
        "train", "-c", path, "--local", "--set", "train.optim.lr=fast", "--set", "name.x=1", "--set", "train.lop=2"
    )
    err = refused(done)
    assert "pod.max_hour: there is no such key: did you mean max_hours?" in err
    assert "pod.gpu_count: " in err
    assert "train.optim.lr: " in err
    assert "train.lop: there is no such key" in err
    assert "--set name.x=1: name is a value" in err
    assert not cli.home.exists()


def test_mistakes_in_json(cli: Cli):
    done = cli("train", "-c", cli.experiment(gpus="x"), "--local", "--json")
    assert done.code == 2
    assert done.lines[-1]["event"] == "error"
    assert done.lines[-1]["mistakes"] == ["pod.gpus: there is no such key: did you mean gpu?"]


def test_a_key_that_stands_twice_is_a_mistake(cli: Cli):
    path = cli.project / "x.yaml"
    path.write_text("name: a\npod:\n  max_hours: 1\n  command: ls\n  max_hours: 2\n")
    assert "line 5: the key max_hours stands twice" in refused(cli("train", "-c", path))


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ({"max_hours": 0}, "pod.max_hours"),
        ({"max_hours": None}, "pod.max_hours"),
        ({"provider": "moon"}, "there is no provider 'moon'"),
        ({"env": {"A": "${NOT_SET_ANYWHERE}"}}, "export NOT_SET_ANYWHERE"),
        ({"env": {"A": "${HF_TOKEN}"}}, "pod.secrets"),
        ({"env": {"MY_API_KEY": "abc"}}, "pod.secrets"),
        ({"env": {"A B": "1"}}, "no name of an environment variable"),
        ({"secrets": ["NOT_SET_ANYWHERE"]}, "NOT_SET_ANYWHERE is not set"),
        ({"command": {"a": 1}}, "pod.command: must be a command"),
        ({"on_success": "keep"}, "must be stop, terminate or {hold: 30m}"),
    ],
)
def test_mistakes_about_the_pod(cli: Cli, pod: dict, said: str):
    err = refused(cli("train", "-c", cli.experiment(**{"command": "ls", **pod})))
    assert said in err
    assert "abc" not in err


@pytest.mark.parametrize("text", ["novalue", "=1", "a..b=1", "pod.max_hours=[1"])
def test_a_set_that_is_none(cli: Cli, text: str):
    assert f"--set {text}" in refused(cli("train", "-c", cli.experiment(), "--set", text))


def test_without_train_and_without_a_command_there_is_nothing_to_do(cli: Cli):
    path = cli.project / "x.yaml"
    path.write_text("name: a\npod: {max_hours: 1}\n")
    assert "train: is missing" in refused(cli("train", "-c", path))


def test_without_tmux_it_says_what_installs_it(cli: Cli, tmp_path: Path):
    path = tmp_path / "bin"
    path.mkdir()
    for tool in ("git", "bash", "sh", "env", "apt-get"):
        (path / tool).symlink_to(f"/usr/bin/{tool}")
    err = refused(cli("train", "-c", cli.experiment(), "--local", env={"PATH": str(path)}), 9)
    assert "tmux is not installed" in err
    assert "install tmux" in err
    assert not cli.home.exists()


def test_a_trainer_without_torch_says_what_installs_it(cli: Cli, tmp_path: Path):
    bare = tmp_path / "python"
    subprocess.run(["python3", "-m", "venv", "--without-pip", str(bare)], check=True)
    err = refused(cli("train", "-c", cli.training(), "--local", env={"PODCTL_PYTHON": str(bare / "bin" / "python")}), 9)
    assert "pip install 'podctl[train]'" in err


def test_words_that_name_no_run(cli: Cli):
    assert "no run yet" in refused(cli("attach"))
    cli("train", "-c", cli.experiment(), "--local")
    cli("train", "-c", cli.experiment(), "--local")
    assert "there is no run 'nonsense'" in refused(cli("status", "nonsense"))
    assert "begins 2 runs" in refused(cli("status", "tin"))
    assert cli("status", cli.runs()[0].name[:-1]).code == 0


def test_an_unknown_option_is_bad_input(cli: Cli):
    assert "No such option" in refused(cli("train", "--lokal"))
    assert "No such command" in refused(cli("trian"))


def test_a_dry_run_writes_nothing(cli: Cli):
    path = cli.experiment(gpu=["H100"], volume="v")
    (cli.project / "new.py").write_text("x = 1\n")
    before = {p: p.stat().st_mtime_ns for p in cli.project.rglob("*")}
    done = cli("train", "-c", path, "--local", "--dry-run")
    assert done.code == 0, done
    assert "2 files" in done.err
    assert "$0.00 at most" in done.err
    assert "pod.gpu has no effect here" in done.err
    assert {p: p.stat().st_mtime_ns for p in cli.project.rglob("*")} == before
    assert not cli.home.exists()


def test_ctrl_c_before_anything_was_started_is_130(cli: Cli):
    os.mkfifo(cli.project / "x.yaml")  # reading it waits for a writer
    podctl = cli.start("train", "-c", "x.yaml")
    fd = os.open(cli.project / "x.yaml", os.O_WRONLY)  # returns once it reads
    podctl.send_signal(2)
    _, err = podctl.communicate(timeout=20)
    os.close(fd)
    assert podctl.returncode == 130, err
    assert err.decode() == "cancelled\n"


def test_a_question_without_a_terminal_is_bad_input_and_with_one_is_asked():
    script = "from podctl.ui import Ui; import sys; sys.exit(3 + Ui().confirm('rent it?'))"
    main = "from podctl.cli import main; from podctl.errors import PodctlError"
    ask = f"{main}\ntry:\n  {script}\nexcept PodctlError as e: print(e.hint); sys.exit(e.exit_code)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    piped = subprocess.run([COMMAND[0], "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=20)
    assert piped.returncode == 2
    assert b"--yes" in piped.stdout
    for answer, code in ((b"y\n", 4), (b"\n", 3), (b"n\n", 3)):
        ours, theirs = pty.openpty()
        asked = subprocess.Popen([COMMAND[0], "-c", ask], stdin=theirs, stderr=theirs, env=env)
        os.close(theirs)
        assert b"rent it?" in os.read(ours, 100)
        os.write(ours, answer)
        assert asked.wait(20) == code
        os.close(ours)


def test_settings_keep_their_secrets_to_themselves(cli: Cli):
    (cli.project / ".runpod.env").write_text("MY_SECRET='a b#c'\nPOD_ID=one # a hint\nEMPTY=\n")
    script = (
        "from podctl.settings import load_settings; from pathlib import Path; import json\n"
        "s = load_settings(Path('.'))\n"
        "print(json.dumps([repr(s), s.secret('MY_SECRET'), s.secret('EMPTY'), s.pod_id, s.owner]))"
    )
    env = {**cli.env, "POD_ID": "two", "PODCTL_OWNER": "Ann-Marie O'Neil, PhD"}
    out = subprocess.run([COMMAND[0], "-c", script], env=env, cwd=cli.project, capture_output=True, check=True).stdout
    shown, secret, empty, pod_id, owner = json.loads(out)
    assert "a b#c" not in shown
    assert (secret, empty) == ("a b#c", None)
    assert pod_id == "one"  # our own note in the file wins over the environment
    assert owner == "annmarieonei"


def test_keys_that_git_tracks_are_refused(cli: Cli):
    (cli.project / ".runpod.env").write_text("RUNPOD_API_KEY=abc\n")
    cli.git("add", "-f", ".runpod.env")
    err = refused(cli("train", "-c", cli.experiment(), "--local"))
    assert "git tracks .runpod.env" in err
    assert "git rm --cached" in err


def test_a_key_that_stands_twice_on_one_line_is_a_mistake(cli: Cli):
    path = cli.project / "x.yaml"
    path.write_text('{"name": "n", "pod": {"max_hours": 1, "max_hours": 9, "command": "x"}}')
    done = cli("train", "--config", path, "--dry-run")
    assert done.code == 2
    assert "max_hours stands twice" in done.err


def test_mistakes_read_as_sentences(cli: Cli):
    sets = ["prep=x", "pod.max_hours=one", "pod.max_usd=true", "pod.command=[]"]
    done = cli("train", "--config", cli.experiment(), *(w for s in sets for w in ("--set", s)))
    assert done.code == 2
    assert "prep: must be a list, not 'x'" in done.err
    assert "pod.max_hours: must be a number, not 'one'" in done.err
    assert "pod.max_usd: must be a number, not true" in done.err
    assert "pod.command: must not be empty" in done.err


def test_a_digit_that_is_no_number_is_no_place_in_a_list(cli: Cli):
    done = cli("train", "--config", cli.experiment(), "--set", "prep=[{run: a}]", "--set", "prep.².run=b")
    assert done.code == 2
    assert "is no place in it" in done.err
