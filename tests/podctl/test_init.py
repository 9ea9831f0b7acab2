"""`podctl init`: asks before it writes, keeps what is there, shows no key, and does nothing the second time."""

import io
import json
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from dotenv import dotenv_values
from support.person import converse
from support.podctl_cli import COMMAND, REPO, Cli
from support.sshd import ssh_agent

from podctl import envfile
from podctl.init import ignoring, parse_ssh
from podctl.sshkeys import is_encrypted, public_half

KEY = "rpa_C4N4RY0123456789abcdef"
SKIP_ALL = [("RunPod", "\n"), ("Lambda", "\n"), ("Weights & Biases", "\n"), ("Hugging Face", "\n")]


@pytest.fixture
def person(cli: Cli, tmp_path: Path):
    """A person with a home folder that holds nothing."""
    home = tmp_path / "person"
    home.mkdir()
    for name in ("SSH_AUTH_SOCK", "HF_TOKEN", "WANDB_API_KEY", "PODCTL_OWNER"):
        cli.env.pop(name, None)
    cli.env |= {"HOME": str(home), "USER": "ann", "LOGNAME": "ann"}
    return home


def has_key(home: Path, *more: str) -> Path:
    key = home / ".ssh" / "id_ed25519"
    key.parent.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key), *more], check=True)
    return key


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in root.rglob("*")
        if p.is_file() and ".git" not in p.relative_to(root).parts
    }


def test_the_example_in_the_repository_is_what_a_new_file_begins_as():
    assert (REPO / ".runpod.env.example").read_text() == envfile.TEMPLATE
    assert set(envfile.KNOWN) == set(dotenv_values(stream=io.StringIO(envfile.new_text())))


def test_a_project_is_made_ready_and_its_first_experiment_can_be_planned(cli: Cli, person: Path):
    done = cli("init", "--yes")
    assert done.code == 0, done
    assert stat.S_IMODE((cli.project / ".runpod.env").stat().st_mode) == 0o600
    assert (cli.project / ".gitignore").read_text() == ".runpod.env\n.podctl/\n"
    assert "PRIVATE KEY" in (person / ".ssh" / "id_ed25519").read_text()
    assert stat.S_IMODE((person / ".ssh" / "id_ed25519").stat().st_mode) == 0o600
    planned = cli("train", "--config", "experiment.yaml", "--dry-run", "--local")
    assert planned.code == 0, planned
    assert cli.git("status", "--porcelain").split() == ["??", ".gitignore", "??", "experiment.yaml"]


def test_a_second_time_changes_nothing(cli: Cli, person: Path):
    cli("init", "--yes")
    before = tree(cli.project), tree(person)
    done = cli("init", "--yes", "--json")
    assert done.code == 0, done
    assert done.lines[0]["changed"] == []
    assert (tree(cli.project), tree(person)) == before


def test_what_is_typed_is_written_and_never_shown(cli: Cli, person: Path):
    has_key(person)
    answers = [("RunPod", f"{KEY}\n"), *SKIP_ALL[1:3], ("Hugging Face", "hf_t0k3n\n"), ("your name", "Ann B.\n")]
    code, seen = converse([*COMMAND, "init"], answers, env=cli.env, cwd=cli.project)
    assert code == 0, seen
    assert KEY not in seen
    assert "hf_t0k3n" not in seen
    values = dotenv_values(cli.project / ".runpod.env")
    assert values["RUNPOD_API_KEY"] == KEY
    assert values["HF_TOKEN"] == "hf_t0k3n"
    assert values["PODCTL_OWNER"] == "annb"
    assert values["LAMBDA_API_KEY"] == ""
    for file in cli.project.rglob("*"):
        assert file.name == ".runpod.env" or not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_a_key_is_in_no_argv_while_it_is_asked_and_written(cli: Cli, person: Path, tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ssh-keygen", "git", "ssh-add"):
        real = shutil.which(name)
        assert real
        script = f'#!/bin/sh\nprintf "%s\\n" "$@" >>"{tmp_path}/argv"; env >>"{tmp_path}/argv"; exec {real} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    env = {**cli.env, "PATH": f"{programs}:{cli.env['PATH']}"}
    answers = [("RunPod", f"{KEY}\n"), *SKIP_ALL[1:], ("your name", "\n"), ("SSH key", "\n")]
    code, seen = converse([*COMMAND, "init"], answers, env=env, cwd=cli.project)
    assert code == 0, seen
    told = (tmp_path / "argv").read_text()
    assert "ed25519" in told
    assert KEY not in told


def test_a_key_with_a_space_is_asked_again_and_not_quoted(cli: Cli, person: Path):
    has_key(person)
    answers = [("RunPod", f"export {KEY}\n"), ("once more", f"{KEY}\n"), *SKIP_ALL[1:], ("your name", "\n")]
    code, seen = converse([*COMMAND, "init"], answers, env=cli.env, cwd=cli.project)
    assert code == 0, seen
    assert KEY not in seen
    assert dotenv_values(cli.project / ".runpod.env")["RUNPOD_API_KEY"] == KEY


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_leaving_within_the_questions_leaves_nothing_behind(cli: Cli, person: Path, key: str):
    answers = [("RunPod", f"{KEY}\n"), ("Lambda", key)]
    code, seen = converse(["setsid", "--ctty", "--wait", *COMMAND, "init"], answers, env=cli.env, cwd=cli.project)
    assert code == 130, seen
    assert tree(cli.project) == {}
    assert tree(person) == {}


def test_without_a_terminal_it_asks_nobody(cli: Cli, person: Path):
    done = cli("init")
    assert done.code == 2
    assert "--yes" in done.err
    assert tree(cli.project) == {}


def test_values_that_are_there_stay_and_are_not_asked_for(cli: Cli, person: Path):
    has_key(person)
    text = "# mine\r\nexport RUNPOD_API_KEY='old' # from ann\r\nHF_TOKEN=\r\nOTHER=1"
    (cli.project / ".runpod.env").write_bytes(text.encode())
    answers = [*SKIP_ALL[1:3], ("Hugging Face", "hf_x\n"), ("your name", "bob\n")]
    code, seen = converse([*COMMAND, "init"], answers, env=cli.env, cwd=cli.project)
    assert code == 0, seen
    assert "RunPod" not in seen
    wanted = text.replace("HF_TOKEN=", "HF_TOKEN=hf_x") + "\r\nPODCTL_OWNER=bob\r\n"
    assert (cli.project / ".runpod.env").read_bytes() == wanted.encode()


def test_a_key_in_the_environment_is_not_asked_for(cli: Cli, person: Path):
    has_key(person)
    env = {**cli.env, "RUNPOD_API_KEY": "x", "WANDB_API_KEY": "y", "HF_TOKEN": "z", "PODCTL_OWNER": "o"}
    code, seen = converse([*COMMAND, "init"], [("Lambda", "\n")], env=env, cwd=cli.project)
    assert code == 0, seen


def test_keys_that_others_could_read_are_made_private(cli: Cli, person: Path):
    path = cli.project / ".runpod.env"
    path.write_text("A=1\n")
    path.chmod(0o644)
    done = cli("init", "--yes")
    assert "by you alone" in done.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "A=1\n"


def test_tracked_keys_are_refused_before_anything_is_written(cli: Cli, person: Path):
    (cli.project / ".runpod.env").write_text(f"RUNPOD_API_KEY={KEY}\n")
    cli.git("add", "-f", ".runpod.env")
    done = cli("init", "--yes")
    assert done.code == 2
    assert "git tracks .runpod.env" in done.err
    assert KEY not in done.stdout + done.err
    assert set(tree(cli.project)) == {".runpod.env"}


def test_a_key_with_a_passphrase_and_no_agent_is_warned_of(cli: Cli, person: Path):
    key = has_key(person)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(key)], check=True)
    done = cli("init", "--yes")
    assert done.code == 0, done
    assert "no agent holds it" in done.err
    assert f"ssh-add {key}" in done.err


def test_a_key_with_a_passphrase_that_the_agent_holds_is_fine(cli: Cli, person: Path, tmp_path: Path):
    key = has_key(person)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, ssh_agent(socket := Path(folder, "agent")):
        cli.env["SSH_AUTH_SOCK"] = str(socket)
        subprocess.run(["ssh-add", "-q", str(key)], env=cli.env, check=True)
        subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(key)], check=True)
        done = cli("init", "--yes")
        assert done.code == 0, done
        assert "has a passphrase" not in done.err


def test_what_a_key_file_says_of_itself(tmp_path: Path):
    for kind, more in (("ed25519", []), ("rsa", []), ("rsa", ["-m", "PEM"]), ("ecdsa", [])):
        for phrase in ("", "open sesame"):
            key = tmp_path / f"{kind}{len(more)}{bool(phrase)}"
            argv = ["ssh-keygen", "-q", "-t", kind, "-N", phrase, *more, "-f", str(key)]
            subprocess.run(argv, check=True)
            text = key.read_text()
            assert is_encrypted(text) == bool(phrase), key
            assert public_half(text, key) == " ".join(Path(f"{key}.pub").read_text().split()[:2])
    assert not is_encrypted("")
    assert not is_encrypted("-----BEGIN OPENSSH PRIVATE KEY-----\n!!!\n-----END")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ".runpod.env\n.podctl/\n"),
        ("*.pyc", "*.pyc\n.runpod.env\n.podctl/\n"),
        ("a\r\n", "a\r\n.runpod.env\r\n.podctl/\r\n"),
        (".runpod.env\n.podctl/\n", ".runpod.env\n.podctl/\n"),
        ("/.runpod.env\n.podctl\n", "/.runpod.env\n.podctl\n"),
        (".podctl/\n.runpod.env", ".podctl/\n.runpod.env"),
        (".runpod.env\n!.runpod.env\n.podctl/\n", ".runpod.env\n!.runpod.env\n.podctl/\n.runpod.env\n"),
        ("#.runpod.env\n.podctl/\n", "#.runpod.env\n.podctl/\n.runpod.env\n"),
        (".runpod.env/\n.podctl/\n", ".runpod.env/\n.podctl/\n.runpod.env\n"),
    ],
)
def test_git_ignores_each_name_once(before: str, after: str):
    assert ignoring(before, (".runpod.env", ".podctl/")) == after
    assert ignoring(after, (".runpod.env", ".podctl/")) == after


@pytest.mark.parametrize(
    "value", ["plain", "a b", "#x", "it's", "back\\slash", '"q"', "$HOME", "é", "a=b", "' #", "\\'"]
)
def test_a_value_is_read_back_as_it_was_typed(value: str):
    for text in ("", envfile.new_text(), "HF_TOKEN=\n", "export HF_TOKEN = ''\n", "HF_TOKEN", "A='x\ny'\nHF_TOKEN=\n"):
        filled = envfile.fill_in(text, {"HF_TOKEN": value})
        assert dotenv_values(stream=io.StringIO(filled), interpolate=False)["HF_TOKEN"] == value
        assert envfile.fill_in(filled, {"HF_TOKEN": "another"}) == filled


def test_a_machine_is_written_into_the_first_experiment(cli: Cli, person: Path):
    done = cli("init", "--yes", "--ssh", "me@127.0.0.1:1", "--volume", "~/my runs")
    text = (cli.project / "experiment.yaml").read_text()
    assert "ssh: {host: 127.0.0.1, port: 1, user: me}" in text
    assert "volume: ~/my runs" in text
    planned = cli("train", "--config", "experiment.yaml", "--dry-run", "--local")
    assert planned.code == 0, planned
    assert ".runpod.env made" in done.err


def test_an_experiment_of_ones_own_is_never_touched(cli: Cli, person: Path):
    (cli.project / "configs").mkdir()
    mine = cli.experiment(file="configs/mine.yaml")
    before = mine.read_bytes()
    done = cli("init", "--yes", "--ssh", "gpubox.invalid", "--volume", "/data")
    assert mine.read_bytes() == before
    assert not (cli.project / "experiment.yaml").exists()
    assert "ssh: gpubox.invalid" in done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--ssh", "gpubox"], "--volume"),
        (["--volume", "/data"], "--ssh NAME"),
        (["--ssh", "gpubox", "--volume", "data"], "--volume must be a folder"),
        (["--ssh=-oProxyCommand=x", "--volume", "/d"], "names no machine"),
        (["--ssh", "a b", "--volume", "/d"], "names no machine"),
        (["--ssh", "a:99999", "--volume", "/d"], "ssh.port"),
        (["--ssh", "-", "--volume", "/d"], "names no machine"),
    ],
)
def test_a_machine_that_is_none_is_refused_before_anything_is_written(cli: Cli, person: Path, args, said: str):
    done = cli("init", "--yes", *args)
    assert done.code == 2, done
    assert said in done.err
    assert tree(cli.project) == {}


def test_how_a_machine_is_typed():
    assert parse_ssh("gpubox") == "gpubox"
    assert parse_ssh("me@gpubox") == {"host": "gpubox", "user": "me"}
    assert parse_ssh("gpubox:22") == {"host": "gpubox", "port": 22}
    assert parse_ssh("me@[::1]:22") == {"host": "::1", "port": 22, "user": "me"}
    assert parse_ssh("fe80::1") == "fe80::1"


@pytest.mark.parametrize("what", ["gitignore is a directory", "env is a directory", "env is not UTF-8", "odd line"])
def test_unkind_files_are_said_in_a_sentence(cli: Cli, person: Path, what: str):
    if what == "gitignore is a directory":
        (cli.project / ".gitignore").mkdir()
    elif what == "env is a directory":
        (cli.project / ".runpod.env").mkdir()
    else:
        text = b"A=\xff\xfe\n" if what == "env is not UTF-8" else f"RUNPOD_API_KEY='{KEY}\n".encode()
        (cli.project / ".runpod.env").write_bytes(text)
    done = cli("init", "--yes")
    assert done.code in (2, 9), done
    assert "Traceback" not in done.err
    assert KEY not in done.err
    assert not (cli.project / "experiment.yaml").exists()


def test_a_folder_that_can_not_be_written_is_said_in_a_sentence(cli: Cli, person: Path):
    script = 'mount --bind -o ro "$PWD" "$PWD" && mount -o remount,bind,ro "$PWD" && cd "$PWD" && exec "$@"'
    argv = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if subprocess.run([*argv, "true"], cwd=cli.project, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        [*argv, *COMMAND, "init", "--yes"], cwd=cli.project, env=cli.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done
    assert "can't be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_person_without_a_home_is_told_and_can_go_on(cli: Cli, person: Path):
    env = {k: v for k, v in cli.env.items() if k not in ("HOME", "USER", "LOGNAME")}
    argv = ["unshare", "-U", "--map-user=54321"]
    if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*argv, *COMMAND, "init", "--yes"],
        cwd=cli.project,
        env={**env, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert "no home folder" in done.stderr
    assert "experiment.yaml made" in done.stderr


def test_a_home_that_takes_no_key_is_a_warning(cli: Cli, person: Path):
    done = cli("init", "--yes", env={"HOME": "/dev/null/x"})
    assert done.code == 0, done
    assert "! /dev/null/x/.ssh can't be made" in done.err
    assert "experiment.yaml made" in done.err


@pytest.mark.parametrize("name", ["Мой проект", 'it\'s "a"; $(c)', "-dash", "123"])
def test_a_project_of_any_name_gets_an_experiment(cli: Cli, person: Path, tmp_path: Path, name: str):
    project = tmp_path / "x" / name
    project.mkdir(parents=True)
    done = cli("init", "--yes", cwd=project)
    assert done.code == 0, done
    planned = cli("train", "--config", "experiment.yaml", "--dry-run", cwd=project)
    assert planned.code == 0, planned


def test_links_are_followed_and_stay(cli: Cli, person: Path, tmp_path: Path):
    (tmp_path / "ignores").write_text("a\n")
    (cli.project / ".gitignore").symlink_to(tmp_path / "ignores")
    assert cli("init", "--yes").code == 0
    assert (cli.project / ".gitignore").is_symlink()
    assert (tmp_path / "ignores").read_text() == "a\n.runpod.env\n.podctl/\n"


def test_json_is_all_that_is_on_stdout(cli: Cli, person: Path):
    done = cli("init", "--yes", "--json")
    (line,) = done.lines
    assert line["event"] == "init"
    assert any("experiment.yaml" in c for c in line["changed"])
    assert json.dumps(line["next"])
