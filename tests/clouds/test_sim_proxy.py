"""The emulated provider's SSH proxy: a shell for a person with a terminal, and nothing else."""

import os
import pty
import subprocess

import pytest
from support.cloud import Api
from support.pod import wait_until

from podctl.sim.records import Timing
from podctl.sim.sim import Sim


@pytest.fixture
def proxied(tmp_path):
    with Sim(tmp_path / "sim", timing=Timing(0.02, 0.02, 0.02), proxy=True) as sim:
        yield sim


def ssh(laptop, pod, *words: str) -> list[str]:
    at = pod["ssh"]["proxy"]
    options = ["-F", "none", "-i", str(laptop.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    return [
        "ssh",
        *options,
        "-p",
        str(at["port"]),
        *words[:-1],
        f"{at['username']}@{at['host']}",
        *filter(None, words[-1:]),
    ]


def test_it_opens_a_shell_for_an_account_key_and_refuses_all_else(proxied, laptop):
    api = Api(proxied)
    pod = api.wait_for_address(api.create(ports=["22/tcp"], env={"MINE": "here it is"}))

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ssh(laptop, pod, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )

    assert "Permission denied" in run("true").stderr
    api.ask("PUT", "/v2/account/ssh-keys", {"keys": [laptop.public]})
    done = run("true")
    assert (done.returncode, done.stdout.strip()) == (1, "Error: Your SSH client doesn't support PTY")
    assert "subsystem request failed on channel 0" in run("-s", "sftp").stderr

    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("ssh", ssh(laptop, pod, "-tt", ""))
    os.write(terminal, b'echo "$MINE"; echo $((6 * 7)); exit 3\n')
    shown = b""

    def read() -> bool:
        nonlocal shown
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            return True
        return False

    wait_until(read, "the shell ends")
    assert b"here it is\r\n" in shown
    assert b"42\r\n" in shown
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_pod_that_is_stopped_lets_nobody_in(proxied, laptop):
    api = Api(proxied)
    api.ask("PUT", "/v2/account/ssh-keys", {"keys": [laptop.public]})
    pod = api.wait_for_address(api.create())
    api.act(pod["id"], "stop")
    done = subprocess.run(
        ssh(laptop, pod, "true"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    assert "Permission denied" in done.stderr
