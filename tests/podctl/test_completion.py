"""Completion: the engine is a function, and real shells are driven."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.person import converse
from support.podctl_cli import Cli

from podctl.completion import SCRIPTS, Command, Option, answer, escaped, joined, target_of

COMMANDS = {
    "train": Command("Start.", (Option(("--config", "-c"), "FILE"), Option(("--set",), "A.B=C", repeats=True),
                                Option(("--yes", "-y")))),
    "attach": Command("Come back.", (Option(("--json",)),), ("RUN",)),
    "exec": Command("Do.", (), ("RUN", "CMD")),
    "evaluate": Command("Score.", (), ("RUN", "MANIFEST...")),
    "report": Command("Show.", (), ("RUN", "OTHER")),
}  # fmt: skip


def values(metavar: str, begun: str, words):
    known = {
        "FILE": [("a.yaml", ""), ("b.yaml", "")],
        "RUN": [("demo-1", "old"), ("demo", "")],
        "OTHER": [("demo-1", "old"), ("demo", "")],
        "A.B=C": [("x.y=", "")],
    }
    return known.get(metavar)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([""], [*COMMANDS]),
        ([], [*COMMANDS]),
        (["t"], ["train"]),
        (["--"], ["--help", "--version"]),
        (["nonsense", ""], []),
        (["train", ""], []),
        (["train", "--c"], ["--config"]),
        (["train", "-"], ["--config", "-c", "--set", "--yes", "-y"]),
        (["train", "-y", "--"], ["--config", "--set"]),
        (["train", "--set", "x", "--s"], ["--set"]),
        (["train", "--config", ""], ["a.yaml", "b.yaml"]),
        (["train", "-c", "b"], ["b.yaml"]),
        (["train", "--config=a"], ["--config=a.yaml"]),
        (["train", "--set", "x"], ["x.y="]),
        (["attach", ""], ["demo-1", "demo"]),
        (["attach", "demo-"], ["demo-1"]),
        (["attach", "demo", ""], []),
        (["--version", "attach", "demo-"], ["demo-1"]),
        (["exec", "demo", ""], None),
        (["evaluate", ""], ["demo-1", "demo"]),
        (["evaluate", "demo", "a"], None),
        (["evaluate", "demo", "a.jsonl", "b"], None),
        (["report", "demo", "d"], ["demo-1", "demo"]),
        (["report", "demo", "demo-1", ""], []),
        (["exec", "demo", "--", "l"], None),
    ],
)
def test_what_may_be_typed_next(words: list[str], found: list[str] | None):
    told = answer(words, COMMANDS, values)
    assert (told if told is None else [w for w, _ in told]) == found


def test_bash_cuts_words_at_equals_and_they_are_joined_again():
    assert joined(["train", "--config", "=", "x"]) == (["train", "--config=x"], 9)
    assert joined(["train", "--config", "="]) == (["train", "--config="], 9)
    assert joined(["train", "--set", "a.b", "=", "c", ""]) == (["train", "--set", "a.b=c", ""], 0)
    assert joined([]) == ([], 0)
    assert escaped("a b$(c)") == "a\\ b\\$\\(c\\)"


@pytest.fixture
def podctl(cli: Cli, tmp_path: Path):
    """podctl on the PATH, a run in the ledger, an experiment, a folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "podctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m podctl "$@"\n')
    (programs / "podctl").chmod(0o755)
    cli.env["PATH"] = f"{programs}:{cli.env['PATH']}"
    cli.env["HOME"] = str(tmp_path)
    cli.experiment()
    cli.experiment(file="my run.yaml")
    (cli.project / "configs").mkdir()
    (cli.project / "notes.txt").touch()
    assert cli("train", "-c", "x.yaml").code == 0
    return cli


def asked(cli: Cli, *words: str) -> list[str]:
    """What bash would offer for these words."""
    script = 'eval "$(podctl completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _podctl_completion; '
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    argv = ["bash", "--norc", "-c", script, "bash", "podctl", *words]
    done = subprocess.run(argv, env=cli.env, cwd=cli.project, capture_output=True, text=True, check=True)
    assert done.stderr == "", done.stderr
    return done.stdout.split("\n")[:-1]


def test_bash_completes_commands_options_runs_files_and_keys(podctl: Cli):
    run = podctl.run_dir().name
    assert {"train", "attach", "init", "doctor"} <= set(asked(podctl, ""))
    assert asked(podctl, "att") == ["attach"]
    assert "--follow" in asked(podctl, "logs", "--f")
    assert asked(podctl, "attach", "") == [run, "tiny"]
    assert asked(podctl, "attach", run[:8]) == [run]
    assert asked(podctl, "train", "--config", "") == ["configs/", "my\\ run.yaml", "x.yaml"]
    assert asked(podctl, "train", "--config", "=", "x") == ["x.yaml"]
    assert "pod.max_hours=" in asked(podctl, "train", "-c", "x.yaml", "--set", "pod.max")
    assert "pod.command=" in asked(podctl, "train", "--config", "=", "x.yaml", "--set", "pod.c")
    assert "pod.max_usd=" in asked(podctl, "train", "--set", "pod.max")
    assert "notes.txt" in asked(podctl, "pull", "--to", "n")
    assert asked(podctl, "nonsense", "") == [""]


def test_another_projects_runs_are_not_offered(podctl: Cli, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    podctl.project = other
    assert asked(podctl, "attach", "") == [""]


def test_a_tab_in_a_real_bash_completes(podctl: Cli):
    run = podctl.run_dir().name
    answers = [
        ("$ ", 'PS1="% "; eval "$(podctl completion bash)"; echo rea""dy\n'),
        ("ready\r\n", f"podctl attach {run[:9]}\t"),
        (run[9:], "\x15podctl train --config my\t"),
        ("my\\ run.yaml", "\x15exit\n"),
    ]
    env = {**podctl.env, "TERM": "dumb", "PS1": "$ "}
    code, seen = converse(["bash", "--norc", "--noprofile", "-i"], answers, env=env, cwd=podctl.project)
    assert code == 0, seen


@pytest.mark.parametrize("home", ["/dev/null/x", "~nobody-of-that-name/x"])
def test_whatever_is_wrong_a_prompt_stays_clean(podctl: Cli, home: str):
    done = podctl("attach", "", env={"_PODCTL_COMPLETE": "bash", "PODCTL_HOME": home})
    assert (done.code, done.stdout, done.err) == (0, "words\n", "")
    done = podctl("train", "-c", "no.yaml", "--set", "", env={"_PODCTL_COMPLETE": "bash"})
    assert (done.code, done.stdout, done.err) == (0, "words\n", "")
    done = podctl("train", "-c", "nowhere/", env={"_PODCTL_COMPLETE": "zsh"})
    assert (done.code, done.stdout, done.err) == (0, "words\n", "")


def test_an_answer_is_quick_and_imports_nothing_heavy(podctl: Cli):
    script = (
        "import sys; from podctl.cli import main; main(['attach', ''])\n"
        "heavy = {'torch', 'numpy', 'rich', 'yaml', 'trainer', 'paramiko', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    env = {**podctl.env, "_PODCTL_COMPLETE": "bash"}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=podctl.project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert podctl.run_dir().name in done.stdout
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_their_script(cli: Cli, shell: str, tmp_path: Path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(SCRIPTS[shell])
    subprocess.run([shell, "-n", str(script)], check=True)


def test_a_real_zsh_completes(podctl: Cli, tmp_path: Path):
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    run = podctl.run_dir().name
    answers = [
        ("ask> ", 'autoload -Uz compinit; compinit -u; eval "$(podctl completion zsh)"; echo rea""dy\n'),
        ("ready\r\n", f"podctl attach {run[:9]}\t"),
        (run[9:], "\x15podctl train --config=my\t"),
        ("run.yaml", "\x15exit\n"),
    ]
    env = {**podctl.env, "TERM": "dumb", "PS1": "ask> "}
    code, seen = converse(["zsh", "-f", "-i"], answers, env=env, cwd=podctl.project)
    assert code == 0, seen


def test_a_real_fish_is_answered(podctl: Cli):
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    run = podctl.run_dir().name
    script = "podctl completion fish | source; complete -C 'podctl attach '; complete -C 'podctl train --config='"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=podctl.env, cwd=podctl.project, capture_output=True, text=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()][:2] == [run, "tiny"], done
    assert "--config=x.yaml" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_is_installed_once_and_with_consent(cli: Cli, tmp_path: Path, shell: str):
    cli.env |= {"HOME": str(tmp_path / "person"), "SHELL": f"/bin/{shell}"}
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        cli.env.pop(name, None)
    refused = cli("completion", "--install")
    assert refused.code == 2
    assert "--yes" in refused.err
    first = cli("completion", "--install", "--yes", "--json")
    assert first.code == 0, first
    file = Path(first.lines[0]["file"])
    assert file == target_of(shell, tmp_path / "person", {})
    assert file.read_text() == SCRIPTS[shell]
    assert cli("completion", shell, "--install", "--json").lines[0]["changed"] is False


def test_a_shell_that_is_none_is_told(cli: Cli):
    done = cli("completion", "tcsh")
    assert done.code == 2
    assert "bash, zsh, fish" in done.err
    assert cli("completion", env={"SHELL": ""}).code == 2
    assert os.fspath(target_of("zsh", Path("/h"), {"ZDOTDIR": "/z"})) == "/z/.zfunc/_podctl"
