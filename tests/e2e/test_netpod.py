"""The test-bed itself: a pod out of namespaces behaves as a rented one does, and leaves nothing behind."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import netpod
from support.netpod import NetPod, all_processes
from support.pod import wait_until

pytestmark = pytest.mark.skipif(bool(netpod.why_not()), reason=netpod.why_not())


@pytest.fixture
def pod(tmp_path: Path):
    with NetPod(tmp_path, "pod", tmp_path / "volume") as pod:
        yield pod


def test_it_boots_with_a_network_processes_a_name_and_a_home_of_its_own(pod: NetPod) -> None:
    assert pod.ssh("hostname").stdout == "pod\n"
    assert pod.ssh("cat", "/proc/1/comm").stdout == "sshd\n"
    assert pod.ssh("pwd").stdout == "/root\n"
    assert set(pod.ssh("ls", "-A").stdout.split()) <= {".ssh", ".pyenv"}  # the second where Python itself lies there
    assert pod.ssh("ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]
    assert pod.processes()[0].argv[0].startswith(("/usr/sbin/sshd", "sshd"))
    assert "pytest" not in pod.run("sh", "-c", "cat /proc/[0-9]*/cmdline; true").stdout


def test_this_python_runs_in_it_wherever_it_lies(pod: NetPod) -> None:
    done = pod.ssh(sys.executable, "-c", "import pydantic, os; print(os.getpid())")
    assert done.returncode == 0, done.stderr


def test_its_announced_host_key_is_the_one_that_answers(pod: NetPod) -> None:
    scanned = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", pod.host], capture_output=True, text=True, check=True
    ).stdout
    assert pod.address.host_key in scanned
    before = pod.address.host_key
    pod.stop()
    pod.start(new_host_key=True)
    assert pod.address.host_key != before
    assert pod.ssh("true").returncode == 0


def test_a_restart_keeps_the_volume_and_nothing_else(pod: NetPod) -> None:
    pod.ssh("sh", "-c", "echo kept > /workspace/a; echo lost > /opt/a; echo lost > /root/a; echo lost > /tmp/a")
    session = "tmux -S /tmp/s new-session -d -s job 'sleep 1000'"
    assert pod.ssh("sh", "-c", session).returncode == 0
    jobs = wait_until(lambda: [p.pid for p in pod.processes() if p.argv[:1] == ("sleep",)], "what tmux started")
    pod.stop()
    assert not {p.pid for p in all_processes()} & set(jobs)
    assert pod.processes() == []
    with pytest.raises(OSError), socket.create_connection((pod.host, 22), timeout=1):
        pass
    pod.start()
    assert pod.ssh("cat", "/workspace/a").stdout == "kept\n"
    for path in ("/opt/a", "/root/a", "/tmp/a"):
        assert pod.ssh("cat", path).returncode == 1
        assert not Path(path).exists()
    assert (pod.volume / "a").read_text() == "kept\n"


@pytest.mark.slow
def test_a_short_cut_delays_and_a_long_one_ends_the_connection(pod: NetPod) -> None:
    known = pod.home / "known_hosts"
    pod.ssh("true")
    alive = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2", "-o", f"UserKnownHostsFile={known}"]
    count = "for i in $(seq 1000); do echo $i; sleep 0.05; done"
    argv = ["ssh", "-F", "none", "-i", str(pod.key), "-o", "BatchMode=yes", *alive, f"root@{pod.host}", count]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert next(lines) == "1\n"
        pod.cut()
        time.sleep(0.7)  # the length of a cut is what is tried
        pod.mend()
        assert [next(lines) for _ in range(30)] == [f"{i}\n" for i in range(2, 32)]
        pod.cut()
        assert process.wait(20) == 255
    refused = pod.ssh("true", options=["-o", "ConnectTimeout=1"])
    assert refused.returncode == 255
    assert "timed out" in refused.stderr
    pod.mend()
    assert pod.ssh("true").returncode == 0


def test_a_slow_link_is_slow_can_be_cut_and_ends(pod: NetPod) -> None:
    def connect_s() -> float:
        begun = time.monotonic()
        with socket.create_connection((pod.host, 22), timeout=5):
            return time.monotonic() - begun

    assert connect_s() < 0.1
    pod.delay(60)
    assert connect_s() > 0.12
    pod.cut()
    with pytest.raises(TimeoutError), socket.create_connection((pod.host, 22), timeout=0.5):
        pass
    pod.mend()
    assert connect_s() > 0.12
    pod.delay(0)
    assert connect_s() < 0.1
    pod.delay(5, loss=1.0)
    with pytest.raises(TimeoutError), socket.create_connection((pod.host, 22), timeout=0.5):
        pass


def test_programs_can_be_hidden_and_others_put_there(tmp_path: Path) -> None:
    smi = "#!/bin/sh\necho 'NVIDIA H100, 81559 MiB'\n"
    with NetPod(
        tmp_path, "bare", tmp_path / "v", without=("rsync", "tmux"), files={"/usr/local/bin/nvidia-smi": smi}
    ) as pod:
        for program in ("rsync", "tmux"):
            assert pod.ssh("sh", "-c", f"command -v {program}").returncode != 0
        for _ in range(2):
            assert "H100" in pod.ssh("nvidia-smi").stdout
            pod.stop()
            pod.start()
    assert not Path("/usr/local/bin/nvidia-smi").exists()


def test_two_pods_share_a_volume_and_cannot_reach_each_other(tmp_path: Path) -> None:
    with NetPod(tmp_path, "a", tmp_path / "v") as a, NetPod(tmp_path, "b", tmp_path / "v") as b:
        a.run("sh", "-c", "echo from a > /workspace/x")
        assert b.run("cat", "/workspace/x").stdout == "from a\n"
        probe = "import socket, sys; socket.create_connection((sys.argv[1], 22), timeout=1)"
        for host in (b.host, "192.0.2.1"):
            assert "unreachable" in a.run(sys.executable, "-c", probe, host, check=False).stderr
        assert b.ssh("hostname").stdout == "b\n"


def test_a_pod_that_cannot_boot_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    bad = NetPod(tmp_path, "bad", tmp_path / "v", entry=("bash", "-c", "echo out of order; exit 3"))
    with pytest.raises(AssertionError, match="out of order"):
        bad.__enter__()
    assert left(bad.link, "none", tmp_path) == []


def test_nothing_is_left_and_no_stranger_is_reached(tmp_path: Path) -> None:
    with NetPod(tmp_path, "gone", tmp_path / "v") as pod:
        pod.delay(1)
        pod.run("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
        host, link, namespace = pod.host, pod.link, pod.namespace
        assert len(left(link, namespace, tmp_path)) > 5
    assert left(link, namespace, tmp_path) == []
    for stranger in (host, "10.77.255.2", "10.78.0.2"):
        with pytest.raises(PermissionError), socket.create_connection((stranger, 22), timeout=1):
            pass


def test_a_killed_test_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from support.netpod import NetPod\n"
        "with NetPod(Path(sys.argv[1]), 'orphan', Path(sys.argv[1]) / 'v') as pod:\n"
        "    pod.delay(1)\n"
        "    print(pod.link, pod.namespace, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    argv = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link, namespace = process.stdout.readline().split()
        assert len(left(link, namespace, tmp_path)) > 4
        process.kill()
    wait_until(lambda: left(link, namespace, tmp_path) == [], "everything is gone")


def left(link: str, namespace: str, tmp: Path) -> list[str]:
    """What there is of a pod beside the files in its folder: links, mounts, processes."""
    links = [n for n in os.listdir("/sys/class/net") if n in (link, f"{link}d")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp) in line]
    its_own = [
        str(p)
        for p in all_processes()
        if netpod.namespace_of(p.pid, "net") == namespace or str(tmp) in " ".join(p.argv)
    ]
    return links + mounts + its_own
