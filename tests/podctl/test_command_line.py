"""The command line itself: quick to answer, light to import, and with a word for everything."""

import json
import subprocess
import sys

import pytest
from support.podctl_cli import Cli

from podctl.ui import money, shown, size
from remote.clock import duration


def test_help_imports_nothing_heavy(cli: Cli):
    script = (
        "import sys; from podctl.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'httpx', 'pydantic', 'rich', 'yaml', 'trainer', 'importlib.metadata', 'asyncio'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=cli.env, cwd=cli.project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_commands_help_imports_nothing_of_the_training(cli: Cli):
    script = (  # pydantic is not in the list: Typer itself needs it to parse an option
        "import sys; from podctl.cli import main; main(['train', '--help'])\n"
        "sys.exit(', '.join(sorted({'torch', 'numpy', 'httpx', 'rich', 'yaml', 'trainer'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=cli.env, cwd=cli.project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


COMMANDS = [
    *("init", "doctor", "completion", "train", "attach", "logs", "ps", "status", "stop", "tensorboard", "pull"),
    *("exec", "ssh-config", "recover"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(cli: Cli, command: str):
    done = cli(command, "--help")
    assert done.code == 0
    assert "Examples:" in done.stdout
    assert f"podctl {command}" in done.stdout
    assert "--json" in done.stdout


def test_every_command_but_a_shell_speaks_json(cli: Cli):
    told = cli("--help").stdout.partition("Commands:")[2]
    names = [line.split()[0] for line in told.splitlines() if line[:2] == "  " and line[2:3].strip()]
    names = [n for n in names if cli(n, "--help").code == 0]
    assert len(names) >= len(COMMANDS)
    assert [n for n in names if "--json" not in cli(n, "--help").stdout] == ["ssh"]


def test_in_json_stdout_holds_nothing_else(cli: Cli):
    cli.env |= {"HOME": str(cli.home), "SSH_AUTH_SOCK": ""}
    cli.home.mkdir()
    path = cli.experiment("echo out; echo err >&2")
    for args in (
        ["init", "--yes"],
        ["doctor", "-c", path],
        ["completion", "bash"],
        ["train", "-c", path, "--dry-run"],
        ["train", "-c", path],
        ["attach"],
        ["logs"],
        ["ps"],
        ["status"],
        ["stop"],
        ["pull"],
        ["ssh-config"],
        ["exec"],
        ["status", "nobody"],
    ):
        done = cli(*args, "--json")
        assert done.lines, args
        assert all(isinstance(line, dict) for line in done.lines), args
        assert "Traceback" not in done.err, args


def test_the_version_is_told(cli: Cli):
    assert cli("--version").stdout.startswith("podctl 0.")


def test_figures_read_as_people_write_them():
    shown_s = [duration(s) for s in (0.34, 9.96, 48, 59.7, 60, 310, 3600, 7800, 100000)]
    assert shown_s == ["0.3 s", "10 s", "48 s", "1 m", "1 m", "5 m 10 s", "1 h", "2 h 10 m", "1 d 3 h"]
    assert [money(3.2), money(0), money(12345.678)] == ["$3.20", "$0.00", "$12,345.68"]
    assert [size(840), size(12300), size(1.2e9), size(5e12)] == ["840 B", "12.3 kB", "1.2 GB", "5.0 TB"]
    assert shown("/a/b c") == "/a/b c"
    assert shown("/a\nb") == "'/a\\nb'"


def test_hints_name_the_program_as_it_was_typed(cli: Cli):
    assert "python -m podctl train --config" in cli("attach").err
    assert "python -m podctl ps --all lists them" in cli("status", "nonsense").err


def test_tensorboard_serves_until_ctrl_c(cli: Cli):
    pytest.importorskip("tensorboard")
    import signal
    import urllib.request

    cli("train", "-c", cli.experiment("mkdir -p $PODCTL_RUN_DIR/tb"), "--local")
    podctl = cli.start("tensorboard", "--no-browser")
    url = podctl.stdout.readline().decode().strip()
    assert urllib.request.urlopen(url, timeout=20).status == 200
    podctl.send_signal(signal.SIGINT)
    podctl.communicate(timeout=20)
    assert podctl.returncode == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)


def test_a_loss_that_is_no_number_is_still_json(capsys):
    from podctl.ui import Ui

    Ui(as_json=True).emit({"loss": float("nan"), "best": {"value": float("inf")}, "seen": [1.5]})
    told = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert told == {"loss": None, "best": {"value": None}, "seen": [1.5]}


def test_the_hint_of_an_empty_list_can_be_typed(cli: Cli):
    assert "→ python -m podctl train" in cli("ps").err
