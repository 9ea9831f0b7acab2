"""`podctl ssh`, `exec` and `ssh-config`: by hand on a run's machine, here and over a real sshd."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
from support.machines import Machine, sshd_machine
from support.person import converse
from support.podctl_cli import COMMAND, REPO, Cli, wait_for

from podctl import entering
from podctl.entering import frames, inside
from podctl.pods import Pod, Run
from podctl.sshconfig import Entry, with_entry, with_include
from podctl.ui import Ui
from remote import piped

UNKIND = bytes(range(256)) * 3 + b"\r\n\n\r\0\xff"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory):
    """A run on this machine that is over; one for all tests, none of which changes it."""
    cli = Cli(tmp_path_factory.mktemp("here"))
    (cli.project / "code.py").write_text("print(1)\n")
    done = cli("train", "-c", cli.experiment(env={"COLOUR": "blue"}))
    assert done.code == 0, done
    yield cli
    cli.close()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory):
    """A run on a machine behind a private sshd; one for all tests."""
    tmp = tmp_path_factory.mktemp("there")
    cli = Cli(tmp)
    with sshd_machine(tmp) as machine:
        cli.env |= machine.env
        cli.machine = machine
        (cli.project / "code.py").write_text("print(1)\n")
        path = cli.experiment(env={"COLOUR": "blue"}, provider="ssh", **machine.pod_section)
        done = cli("train", "-c", path, "--yes")
        assert done.code == 0, done
        yield cli
        cli.close()


@pytest.fixture(params=["here", "there"])
def anywhere(request: pytest.FixtureRequest) -> Cli:
    return request.getfixturevalue(request.param)


def fed(cli: Cli, data: bytes, *args: str, timeout: float = 30) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *args], input=data, env=cli.env, cwd=cli.project, capture_output=True, timeout=timeout, check=False
    )


def test_a_command_runs_as_the_job_did_and_its_exit_code_is_ours(anywhere: Cli):
    script = 'ls; echo "$COLOUR $PODCTL_RUN_DIR $PODCTL_VOLUME"; command -v trainer; command -v python; exit 7'
    done = anywhere("exec", "tiny", "--", "sh", "-c", script)
    assert done.code == 7, done
    lines = done.stdout.splitlines()
    assert "code.py" in lines
    run = anywhere.events()[0]["run"]
    assert lines[-3].startswith("blue /")
    assert lines[-3].split()[1].endswith(f"/runs/{run}")
    assert lines[-2].endswith("/remote/bin/trainer")
    assert lines[-1] == str(Path(sys.executable).with_name("python"))


def test_input_and_both_outputs_pass_byte_for_byte(anywhere: Cli):
    done = fed(anywhere, UNKIND, "exec", "--", "sh", "-c", "cat; cat code.py >&2")
    assert done.returncode == 0, done
    assert done.stdout == UNKIND
    assert done.stderr == b"print(1)\n"


def test_much_passes_both_ways(anywhere: Cli):
    data = os.urandom(3_000_000)
    done = fed(anywhere, data, "exec", "--", "cat")
    assert done.stdout == data


def test_words_arrive_as_they_were_typed(anywhere: Cli):
    words = ["a'; echo foo", '"$HOME"', "", "two  spaces", "--json", "--", "!x\\n", "ü", "*"]
    done = anywhere("exec", "--", "printf", "%s|", *words)
    assert done.stdout == "|".join(words) + "|"


def test_a_command_that_is_none_is_told(anywhere: Cli):
    done = anywhere("exec", "--", "no-such-program")
    assert done.code == 127
    assert "no-such-program" in done.err


@pytest.mark.parametrize("args", [["exec"], ["exec", "--"], ["exec", "tiny", "ls"], ["exec", "tiny", "x", "--", "ls"]])
def test_a_command_stands_after_the_dashes(here: Cli, args: list[str]):
    done = here(*args)
    assert done.code == 2
    assert "-- CMD" in done.err


def test_json_lines_end_with_the_exit_code(anywhere: Cli):
    done = anywhere("exec", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.code == 3
    *output, last = done.lines
    texts = {kind: "".join(o["text"] for o in output if o["stream"] == kind) for kind in ("stdout", "stderr")}
    assert texts == {"stdout": "out\n", "stderr": "err\n"}
    assert (last["event"], last["exit_code"]) == ("exited", 3)


def begun(cli: Cli, mark: Path, script: str) -> subprocess.Popen[bytes]:
    process = cli.start("exec", "--", "sh", "-c", f"echo $$ >'{mark}'; {script}")
    wait_for(lambda: mark.exists() and mark.read_text().strip())
    return process


def is_gone(mark: Path) -> bool:
    return not Path(f"/proc/{mark.read_text().strip()}").exists()


def test_ctrl_c_is_the_commands_own(there: Cli, tmp_path: Path):
    mark = tmp_path / "pid"
    process = begun(there, mark, "trap 'echo caught; exit 5' INT; while :; do sleep 0.1; done")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 5
    assert process.stdout.read() == b"caught\n"


def test_a_command_that_ignores_ctrl_c_is_ended_by_the_second(there: Cli, tmp_path: Path):
    mark = tmp_path / "pid"
    process = begun(there, mark, "trap '' INT TERM; while :; do sleep 0.1; done")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    wait_for(lambda: is_gone(mark))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_ends_when_nobody_listens_any_more(there: Cli, tmp_path: Path, how: int):
    mark = tmp_path / "pid"
    process = begun(there, mark, "while :; do sleep 0.1; done")
    process.send_signal(how)
    process.wait(20)
    wait_for(lambda: is_gone(mark))


def test_a_link_that_breaks_is_told_and_ends_the_command(there: Cli, tmp_path: Path):
    mark = tmp_path / "pid"
    process = begun(there, mark, "while :; do sleep 0.1; done")
    there.machine.kill_sessions()
    assert process.wait(30) == 6
    assert b"Traceback" not in process.stderr.read()
    wait_for(lambda: is_gone(mark))


def test_a_reader_that_has_had_enough_ends_it(anywhere: Cli):
    script = '"$@" | head -n 1'
    argv = ["sh", "-c", script, "sh", *COMMAND, "exec", "--", "yes"]
    done = subprocess.run(argv, env=anywhere.env, cwd=anywhere.project, capture_output=True, timeout=30, check=False)
    assert done.stdout == b"y\n"
    assert b"Traceback" not in done.stderr


def test_a_shell_is_where_the_code_is(anywhere: Cli):
    done = fed(anywhere, b"cat code.py; echo $COLOUR; exit 4\n", "ssh")
    assert done.returncode == 4, done
    assert done.stdout.endswith(b"print(1)\nblue\n")
    assert b"the run goes on" in done.stderr


def test_a_shell_on_a_terminal_is_one(there: Cli):
    env = {**there.env, "SHELL": "/bin/sh"}
    answers = [("goes on", "test -t 0 && test -t 1 && echo ter''minal\n"), ("terminal", "exit 3\n")]
    code, seen = converse([*COMMAND, "ssh"], answers, env=env, cwd=there.project)
    assert code == 3, seen


def test_the_runs_own_screen_can_be_looked_at(cli: Cli):
    done = cli("train", "-c", cli.experiment("echo look at me; sleep 60"), "--detach")
    assert done.code == 0, done
    env = {**cli.env, "TERM": "xterm"}
    code, seen = converse([*COMMAND, "ssh", "--tmux"], [("look at me", "x\x02d")], env=env, cwd=cli.project)
    assert code == 0, seen
    assert cli.state() == "running"
    cli("stop")


def test_a_run_that_never_began_has_no_machine(cli: Cli):
    assert cli("exec", "--", "ls").code == 2
    assert cli("ssh").code == 2


# the configuration of ssh


def test_on_this_machine_there_is_nothing_to_connect_to(here: Cli):
    done = here("ssh-config")
    assert done.code == 2
    assert "nothing to connect to" in done.err


def test_a_plain_ssh_reaches_the_machine_by_the_entry(there: Cli, tmp_path: Path):
    entry = there("ssh-config")
    assert entry.code == 0, entry
    assert entry.stdout.startswith("Host podctl-tiny\n")
    (tmp_path / "config").write_text(entry.stdout)
    done = subprocess.run(
        ["ssh", "-F", str(tmp_path / "config"), "podctl-tiny", "echo reached"],
        env=there.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "reached\n", done
    (line,) = there("ssh-config", "--json").lines
    assert line["text"].strip() == entry.stdout.strip()


def test_a_stranger_at_the_address_is_not_spoken_to(there: Cli, tmp_path: Path):
    entry = there("ssh-config").stdout
    (known,) = [line.split(None, 1)[1].strip('"') for line in entry.splitlines() if "UserKnownHostsFile" in line]
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    text = Path(known).read_text().split()
    Path(known).write_text(f"{text[0]} {' '.join(Path(f'{other}.pub').read_text().split()[:2])}\n")
    (tmp_path / "config").write_text(entry)
    argv = ["ssh", "-F", str(tmp_path / "config"), "podctl-tiny", "echo reached"]
    done = subprocess.run(argv, env=there.env, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert done.stdout == ""


def test_it_is_kept_in_a_file_of_ours_that_the_users_own_includes(there: Cli):
    folder = Path(there.env["HOME"]) / ".ssh"
    (folder / "config").write_text("Host other\n  User x\n")
    (folder / "config").chmod(0o644)
    refused = there("ssh-config", "--write")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert not (folder / "podctl_config").exists()
    done = there("ssh-config", "--write", "--yes")
    assert done.code == 0, done
    lines = (folder / "config").read_text().splitlines()
    assert lines[0].startswith("Include ")
    assert lines[-2:] == ["Host other", "  User x"]
    assert (folder / "config").stat().st_mode & 0o777 == 0o644
    assert (folder / "podctl_config").stat().st_mode & 0o777 == 0o600
    before = (folder / "config").read_bytes(), (folder / "podctl_config").read_bytes()
    assert there("ssh-config", "--write", "--json").lines[0]["changed"] is False
    assert ((folder / "config").read_bytes(), (folder / "podctl_config").read_bytes()) == before
    argv = ["ssh", "-F", str(folder / "config"), "podctl-tiny", "echo reached"]
    reached = subprocess.run(argv, env=there.env, capture_output=True, text=True, check=False)
    assert reached.stdout == "reached\n", reached


def test_an_include_stands_at_the_top_and_once():
    ours = Path("/home/a b/.ssh/podctl_config")
    line = 'Include "/home/a b/.ssh/podctl_config"\n'
    assert with_include("", ours) == line
    assert with_include("Host x\n", ours) == f"{line}\nHost x\n"
    assert with_include(f"User y\n{line}Host x\n", ours) == f"User y\n{line}Host x\n"
    within = f"Host x\n  {line}"
    assert with_include(within, ours) == f"{line}\n{within}", "there it counts for x alone"
    assert with_include("Host x\r\n", Path("/c")) == "Include /c\r\n\r\nHost x\r\n"


def test_an_entry_replaces_its_older_self_where_it_stood():
    a, b, newer = "Host a\n  Port 1\n\n", "Host b\n  Port 1\n\n", "Host a\n  Port 2\n\n"
    text = with_entry(with_entry("", "a", a), "b", b)
    assert text.endswith(a + b)
    assert with_entry(text, "a", newer) == text.replace(a, newer)
    assert with_entry(text, "b", b) == text


def test_what_is_odd_is_quoted():
    entry = Entry("podctl-x", "h", 22, "me", ["/a b/%k"], True, '/c"d', "alias", "jump.example")
    text = entry.text()
    assert 'IdentityFile "/a b/%%k"' in text
    assert 'UserKnownHostsFile "/c\\"d"' in text
    assert "ProxyJump jump.example" in text
    assert "ProxyCommand nc -x p %h %p" in Entry("n", "h", 22, "", [], False, "k", "a", "nc -x p %h %p").text()


# the parts


def test_what_is_inside_follows_from_two_files_and_neither_is_needed():
    run = Run("r-1", "p", "r", "ssh", "", 0.0, detail={"run_dir": "/v/runs/r-1", "python": "/usr/bin/python3"})
    bare = inside(run, {}, {})
    assert bare.path == ("/usr/bin",)
    assert bare.env == {"PODCTL_PYTHON": "/usr/bin/python3", "PODCTL_VOLUME": "/v", "PODCTL_RUN_DIR": "/v/runs/r-1"}
    full = inside(
        run,
        {"tool_dir": "/t", "source_dir": "/s", "env": {"A": "1", "PATH": "/own", "PYTHONPATH": "lib"}},
        {"python": {"executable": "/e/bin/python"}},
    )
    assert full.path == ("/t/remote/bin", "/e/bin", "/own")
    assert full.env["PYTHONPATH"] == "/t:lib"
    assert full.env["A"] == "1"
    assert "PATH" not in full.env
    assert inside(run, {"env": 5}, {"python": 5}) == bare


def test_frames_are_whole_or_not_there_yet():
    data = piped.frame(b"o", b"abc") + piped.frame(b"e") + piped.frame(b"o", b"x" * 70000)
    for cut in (0, 1, 4, 5, 7, 8, 13, 20, len(data)):
        held = bytearray(data[:cut])
        first = frames(held)
        held += data[cut:]
        assert first + piped.frames(held) == [(b"o", b"abc"), (b"e", b""), (b"o", b"x" * 70000)]
        assert held == b""


def test_the_part_that_runs_there_needs_nothing_of_ours():
    text = (REPO / "remote" / "piped.py").read_text()
    argv = [sys.executable, "-I", "-S", "-c", text, "sh", "-c", "cat; exit 9"]
    held = bytearray()
    data = piped.frame(b"i", b"hello") + piped.frame(b"e")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(data)
    process.stdin.flush()
    held += process.stdout.read()
    assert process.wait(10) == 9
    process.stdin.close()
    assert frames(held) == [(b"o", b"hello")]


def test_input_that_a_command_does_not_read_is_no_hindrance():
    text = (REPO / "remote" / "piped.py").read_text()
    argv = [sys.executable, "-I", "-S", "-c", text, "sh", "-c", "exec <&-; echo done"]
    with subprocess.Popen(argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        left = piped.frame(b"i", b"x" * 1_000_000) + piped.frame(b"e")
        with contextlib.suppress(BrokenPipeError):  # it may be over before all of that is there
            while left:
                left = left[process.stdin.write(left) or 0 :]
        # and the channel stays open: its end would be that nobody listens any more
        assert (b"o", b"done\n") in frames(bytearray(process.stdout.read()))


def test_the_machine_fixture_is_what_it_says(there: Cli):
    assert isinstance(there.machine, Machine)
    assert there.events()[0]["provider"] == "ssh"


def test_where_only_a_providers_proxy_answers_a_shell_is_opened_and_what_it_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    log = tmp_path / "said"
    (tmp_path / "proxied").write_text(f"#!/bin/sh\necho \"$@\" >'{log}'; exit 7\n")
    (tmp_path / "proxied").chmod(0o755)
    place = PurePosixPath("/workspace")
    pod = Pod("fake", "p1", "pc-a-x", "running", 1.0, place, place, proxy=f"{tmp_path}/proxied p1-64411eb2@ssh.cloud")
    monkeypatch.setattr(entering, "provider_of", lambda run: SimpleNamespace(name="fake", get=lambda pod_id: pod))
    run = Run("x-1", "p", "x", "runpod", "", 1.0, pod="p1", detail={"rents": True})
    assert entering.enter(run, Ui()) == 7
    assert log.read_text() == "p1-64411eb2@ssh.cloud\n"
    assert "without files, tunnels or commands" in capfd.readouterr().err
