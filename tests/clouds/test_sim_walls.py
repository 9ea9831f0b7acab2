"""Pods of the emulated cloud with walls: as they see themselves on RunPod. Needs root."""

import shlex
from pathlib import Path

import pytest
from support.cloud import Api
from support.pod import is_alive, wait_until

from podctl.sim import namespaces
from podctl.sim.records import Timing
from podctl.sim.sim import Sim

pytestmark = pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not())


@pytest.fixture
def walled(tmp_path):
    with Sim(tmp_path / "sim", backend="namespaces", timing=Timing(0.02, 0.02, 0.02)) as sim:
        yield sim


def test_a_pod_sees_a_root_of_its_own_and_its_volume_where_it_asked_for_it(walled, laptop):
    api = Api(walled)
    volume = walled.create_volume()
    (walled.volume_dir(volume.id) / "data").write_text("kept")
    id = api.create(volume=volume.id, env={"PUBLIC_KEY": laptop.public})
    pod = api.wait_for_address(id)
    assert pod["mounts"]["network"][0]["path"] == "/workspace"
    assert pod["ssh"]["direct"]["username"] == "root"
    seen = laptop.ssh_when_ready(
        pod, "cat /workspace/data; echo; hostname; pwd; ls -A /tmp; nvidia-smi -L; ls /etc/ssh/ssh_host_*; env;"
        "tr '\\0' '\\n' </proc/1/environ; echo mine >/workspace/new; echo x >/usr/mine; ls -d /start.sh /dev/shm",
    )  # fmt: skip
    for part in ("kept", f"{id}-", "/root", "GPU 0", "ssh_host_ed25519_key", "/start.sh"):
        assert part in seen
    assert str(walled.root) not in seen.replace(f"PODCTL_SIM_POD={walled.root}", "")
    assert seen.count("RUNPOD_API_KEY") == 1  # its first process's alone
    assert (walled.volume_dir(volume.id) / "new").read_text() == "mine\n"
    assert not Path("/usr/mine").exists()
    api.act(id, "stop")
    api.act(id, "start")
    pod = api.wait_for_address(id)
    assert laptop.ssh_when_ready(pod, "cat /workspace/new") == "mine\n"
    assert "No such file" in laptop.ssh(pod, "ls /usr/mine").stderr


@pytest.mark.slow
def test_a_pod_with_walls_goes_by_the_clouds_clock_and_ends_itself(walled):
    code = """
import os, sys, time, http.client, json, urllib.parse
def added(): return float(open(os.environ["PODCTL_CLOCK_FILE"]).read().split()[0])
print("up", flush=True)
while added() < 900: time.sleep(0.02)
at = urllib.parse.urlsplit(os.environ["PODCTL_RUNPOD_API_URL"])
c = http.client.HTTPConnection(at.netloc)
c.request("POST", at.path + "/pods/" + os.environ["RUNPOD_POD_ID"] + "/action", json.dumps({"action": "terminate"}),
          {"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "User-Agent": "guard"})
time.sleep(1000)
"""
    id = Api(walled).create(args=f"sh -c {shlex.quote('exec $PODCTL_PYTHON -I -S -c ' + shlex.quote(code))}")
    wait_until(lambda: "up" in walled.log(id), f"it runs: {walled.log(id)}")
    pids = {p.pid for p in walled.backend.processes(id)}
    walled.advance(900)
    wait_until(lambda: not walled.pods(), "it is gone")
    walled.advance(1)
    assert not any(is_alive(p) for p in pids)


@pytest.mark.slow
def test_after_a_crash_the_disk_is_kept_and_the_memory_disk_is_new(walled):
    script = "echo start $(ls /root) $(ls /dev/shm); touch /root/mark /dev/shm/mark; (setsid sleep 1000 &); sleep 0.1"
    id = Api(walled).create(args=f"sh -c {shlex.quote(script)}")
    wait_until(lambda: "container exited" in walled.log(id, "system"), f"its end: {walled.log(id)}")
    assert not walled.backend.processes(id)
    walled.advance(18)
    wait_until(lambda: walled.log(id) == "start\nstart mark\n", f"another start: {walled.log(id)}")
