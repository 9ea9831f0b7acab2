"""Machines as people have them: full, read-only, old, without tmux, with a wrong clock. One sentence each, and nothing
half begun."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import netpod
from support.machines import Machine, laptop_env, netpod_machine, sshd_machine
from support.podctl_cli import Cli
from support.pythons import installed
from support.sshd import Sshd, make_key

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(netpod.why_not()), reason=netpod.why_not() or "can be made here"),
]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Machine]:
    with netpod_machine(tmp_path) as machine:
        yield machine


def there(machine: Machine, script: str) -> str:
    """A command in the pod, not over SSH."""
    return str(machine.extra["pod"].run("sh", "-c", script).stdout)  # type: ignore[attr-defined]


def test_a_machine_without_tmux_says_what_to_type_there(tmp_path: Path, cli: Cli) -> None:
    with netpod_machine(tmp_path, without=("tmux",)) as machine:
        cli.env |= machine.env
        done = cli("train", "-c", cli.experiment(provider="ssh", **machine.pod_section))
        assert done.code == 9, done
        assert "has no tmux, and a run needs it" in done.err
        assert "apt-get install tmux" in done.err
        assert not list((machine.volume / "runs").iterdir())


def test_a_volume_that_is_full_is_one_sentence_and_leaves_no_secret(pod: Machine, cli: Cli) -> None:
    cli.env |= {**pod.env, "MY_TOKEN": "canary-" + "x" * 20}
    there(pod, "mkdir -p /full && mount -t tmpfs -o size=64k tmpfs /full && mkdir /full/runs")
    there(pod, "dd if=/dev/zero of=/full/all bs=1k count=1000 2>/dev/null || true")
    section = {**pod.pod_section, "volume": "/full"}
    done = cli("train", "-c", cli.experiment(provider="ssh", secrets=["MY_TOKEN"], **section))
    assert done.code in (1, 9), done
    assert "No space left on device" in done.err or "the disk is full" in done.err
    assert "Traceback" not in done.err
    assert there(pod, "ls /dev/shm/podctl-0 2>/dev/null || true") == ""
    assert not pod.has_process("runner.py")


def test_a_local_disk_that_is_full_is_one_sentence(pod: Machine, cli: Cli) -> None:
    cli.env |= pod.env
    (cli.project / "large.bin").write_bytes(b"x" * 3_000_000)
    there(pod, "mkdir -p /small && mount -t tmpfs -o size=2m tmpfs /small")
    section = {**pod.pod_section, "ssh": {**pod.pod_section["ssh"], "disk": "/small"}}  # type: ignore[dict-item]
    done = cli("train", "-c", cli.experiment(provider="ssh", **section))
    assert done.code in (1, 9), done
    assert "No space left" in done.err or "the disk is full" in done.err, done
    assert "Traceback" not in done.err
    assert there(pod, "find /small -name '*.tmp'") == "", "nothing half"


def test_a_volume_that_is_read_only_names_the_key_to_correct(pod: Machine, cli: Cli) -> None:
    cli.env |= pod.env
    there(pod, "mkdir -p /fixed && mount -t tmpfs -o ro tmpfs /fixed")
    done = cli("train", "-c", cli.experiment(provider="ssh", **{**pod.pod_section, "volume": "/fixed"}))
    assert done.code == 9, done
    assert "/fixed/runs" in done.err
    assert "Read-only file system" in done.err
    assert "pod.volume" in done.err


def test_python_3_8_over_there_is_enough_to_run_and_be_asked(tmp_path: Path, cli: Cli) -> None:
    old = installed("3.8")
    if not old:
        pytest.skip("there is no Python 3.8 here")
    with sshd_machine(tmp_path) as machine:
        cli.env |= machine.env
        section = {**machine.pod_section, "ssh": {**machine.pod_section["ssh"], "python": old}}  # type: ignore[dict-item]
        done = cli("train", "-c", cli.experiment("python -V; python3 -V", provider="ssh", **section), timeout=60)
        assert done.code == 0, done
        assert "Python 3.8" in done.stdout
        assert cli("status", "--json").lines[-1]["state"] == "succeeded"
        assert cli("pull", "--to", tmp_path / "pulled").code == 0


def test_a_machine_whose_clock_is_a_day_off_tells_true_durations(tmp_path: Path, cli: Cli) -> None:
    """The wall clock of a namespace can't be set, so the laptop's is."""
    with sshd_machine(tmp_path) as machine:
        (tmp_path / "clock").write_text("-86400")
        cli.env |= {**machine.env, "PODCTL_CLOCK_FILE": str(tmp_path / "clock")}
        command = 'echo begun; while [ ! -e "$PODCTL_VOLUME/go" ]; do sleep 0.05; done'
        file = cli.experiment(command, provider="ssh", **machine.pod_section)
        assert cli("train", "-c", file, "--detach", timeout=60).code == 0
        status = cli("status", timeout=60)
        assert "running" in status.stdout or "starting" in status.stdout, status
        ran = next(line for line in status.stdout.splitlines() if line.startswith("ran"))
        assert " d" not in ran, status
        assert cli("train", "-c", file, timeout=60).code == 8, "it is alive, whatever the clocks say"
        (machine.volume / "go").touch()
        done = cli("attach", "--json", timeout=60)
        assert done.code == 0, done
        assert done.lines[-1]["duration_s"] < 600


def test_paths_of_two_hundred_characters_and_with_quotes(pod: Machine, cli: Cli) -> None:
    cli.env |= pod.env
    long = "/workspace/" + "/".join(['a\'; echo "foo" $HOME #'[:20] + "x" * 20] * 5)
    assert len(long) > 200
    section = {**pod.pod_section, "volume": long}
    done = cli("train", "-c", cli.experiment('echo "$PODCTL_VOLUME"', provider="ssh", **section), timeout=60)
    assert done.code == 0, done
    assert long in done.stdout
    assert cli("status", "--json").lines[-1]["state"] == "succeeded"


def test_a_stranger_at_the_address_is_sent_nothing(tmp_path: Path, cli: Cli) -> None:
    cli.env["MY_TOKEN"] = "canary-" + "x" * 20
    with laptop_env(tmp_path) as env, Sshd(tmp_path / "true one") as known:
        cli.env |= env
        with Sshd(tmp_path / "stranger", accept_any=True) as stranger:
            section = {
                "ssh": {"host": "127.0.0.1", "port": stranger.port, "user": known.user, "key": str(known.key),
                        "host_key": known.host_key},
                "volume": str(tmp_path / "volume"), "secrets": ["MY_TOKEN"],
            }  # fmt: skip
            for wire in ("openssh", "fabric"):
                done = cli("train", "-c", cli.experiment(provider="ssh", **section), env={"PODCTL_SSH": wire})
                assert done.code == 6, done
                assert "nothing was sent" in done.err, done
                assert stranger.received == b""
                assert stranger.logins == 0


@pytest.mark.parametrize("wire", ["openssh", "fabric"])
def test_keys_that_do_not_open_say_what_to_type(tmp_path: Path, cli: Cli, wire: str) -> None:
    with laptop_env(tmp_path) as env, Sshd(tmp_path / "sshd") as server:
        cli.env |= {**env, "PODCTL_SSH": wire}

        def train(key: Path) -> str:
            ssh = {"host": "127.0.0.1", "port": server.port, "user": server.user, "key": str(key),
                   "host_key": server.host_key}  # fmt: skip
            done = cli("train", "-c", cli.experiment(provider="ssh", ssh=ssh, volume=str(tmp_path / "volume")))
            assert done.code in (2, 3, 6), done
            assert "Traceback" not in done.err
            return done.err

        assert "key" in train(make_key(tmp_path / "wrong"))
        assert "ssh-add" in train(make_key(tmp_path / "locked", passphrase="a secret sentence"))
        assert "there is no file" in train(tmp_path / "absent")
        assert "a secret sentence" not in train(tmp_path / "locked")


def test_a_terminal_of_forty_columns_shows_one_line_that_lives(pod: Machine, cli: Cli, tmp_path: Path) -> None:
    cli.env |= pod.env
    command = "echo begun; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.3; done"
    file = cli.experiment(command, provider="ssh", **pod.pod_section)
    socket = tmp_path / "s"
    tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
    run = [sys.executable, "-m", "podctl", "train", "-c", str(file)]
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "40", "-y", "30", *run, ";", "set", "-g", "remain-on-exit", "on"],
        env={**cli.env, "TERM": "xterm-256color"}, cwd=cli.project, check=True,
    )  # fmt: skip
    try:
        screens = []
        for _ in range(100):
            screens.append(subprocess.check_output([*tmux, "capture-pane", "-p"], text=True))
            if "succeeded" in screens[-1]:
                break
            subprocess.run(["sleep", "0.1"], check=True)
        assert "succeeded" in screens[-1], screens[-1]
        live = {line for s in screens for line in s.splitlines() if "· $" in line or line.startswith("tiny · ")}
        assert live, screens[len(screens) // 2]
        assert all(len(line) <= 40 for line in live)
        print(json.dumps(sorted(live)))
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
