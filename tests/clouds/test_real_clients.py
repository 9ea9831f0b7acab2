"""Clients that nobody here wrote drive the emulated cloud, unmodified: two versions of the `runpod` package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cloud import GPU
from support.pod import wait_until

from podctl.sim.sim import Sim

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BEGIN = """
import json, os, time
import runpod
runpod.api_key = os.environ["SIM_KEY"]
said = {}

def wait(claim):
    for _ in range(600):
        if claim(): return
        time.sleep(0.05)
    raise SystemExit("it never came true")
"""
END = "\nprint(json.dumps(said))\n"
V1 = (
    BEGIN
    + """
said["gpus"] = [g["id"] for g in runpod.get_gpus()]
said["price"] = runpod.get_gpu(os.environ["SIM_GPU"])["securePrice"]
said["user"] = runpod.get_user()
made = runpod.create_pod("pc-sdk", "runpod/stack", os.environ["SIM_GPU"], network_volume_id=os.environ["SIM_VOLUME"],
                         ports="22/tcp", volume_mount_path="/workspace", env={"A": "b"}, docker_args="sleep 1000")
id = made["id"]
said["made"] = made
said["listed"] = [p["id"] for p in runpod.get_pods()]
wait(lambda: runpod.get_pod(id)["runtime"])
said["ports"] = runpod.get_pod(id)["runtime"]["ports"]
said["stopped"] = runpod.stop_pod(id)
said["resumed"] = runpod.resume_pod(id, 1)
wait(lambda: runpod.get_pod(id)["runtime"])
runpod.terminate_pod(id)
said["after"] = runpod.get_pods()
try:
    runpod.create_pod("pc-sdk", "runpod/stack", "NVIDIA H200", data_center_id="US-KS-2")
except runpod.error.QueryError as e:
    said["sold out"] = str(e)
try:
    runpod.create_pod("pc-sdk", "runpod/stack", "NVIDIA NOTHING")
except ValueError as e:
    said["unknown"] = str(e)
runpod.api_key = "wrong"
try:
    runpod.get_pods()
except runpod.error.AuthenticationError as e:
    said["wrong key"] = str(e)
"""
    + END
)
V2 = (
    BEGIN
    + """
said["gpus"] = [g["id"] for g in runpod.get_gpus()]
said["stock"] = runpod.get_gpu(os.environ["SIM_GPU"])["availability"]
made = runpod.create_pod("pc-sdk", "runpod/stack", os.environ["SIM_GPU"], network_volume_id=os.environ["SIM_VOLUME"],
                         ports="22/tcp", volume_mount_path="/workspace", env={"A": "b"}, docker_args="sleep 1000")
id = made["id"]
said["made"] = made
said["listed"] = [p["id"] for p in runpod.get_pods()]
wait(lambda: runpod.get_pod(id)["ssh"]["direct"])
said["ports"] = [runpod.get_pod(id)["ssh"]["direct"]["port"]]
said["stopped"] = runpod.stop_pod(id)
said["resumed"] = runpod.resume_pod(id)
wait(lambda: runpod.get_pod(id)["ssh"]["direct"])
said["ports"].append(runpod.get_pod(id)["ssh"]["direct"]["port"])
runpod.terminate_pod(id)
said["gone"] = runpod.get_pod(id)
said["after"] = runpod.get_pods()
said["user"] = runpod.update_user_settings("ssh-ed25519 AAAA me")
try:
    runpod.create_pod("pc-sdk", "runpod/stack", "NVIDIA H200", data_center_id="US-KS-2")
except runpod.error.QueryError as e:
    said["sold out"] = [str(e), e.status_code]
try:
    runpod.create_pod("pc-sdk", "runpod/stack", os.environ["SIM_GPU"], min_memory_in_gb=64)
except runpod.error.QueryError as e:
    said["newer than the description"] = [e.status_code, e.errors]
runpod.api_key = "wrong"
try:
    runpod.get_pods()
except runpod.error.AuthenticationError as e:
    said["wrong key"] = str(e)
"""
    + END
)


@pytest.fixture
def sdk(request, tmp_path):
    """A program in an environment that holds one version of the package; what it said."""

    def run(version: str, program: str, sim: Sim) -> dict:
        python = environment(request, version)
        volume = sim.create_volume()
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),  # its configuration file is read from there
            "RUNPOD_API_BASE_URL": sim.url,
            "SIM_KEY": sim.account_key,
            "SIM_GPU": GPU,
            "SIM_VOLUME": volume.id,
        }
        done = subprocess.run(
            [python, "-c", program], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(said, dict)
        return said

    return run


def environment(request, version: str) -> Path:
    """A venv with that version, made once and kept in pytest's cache. Skips where pip can't find it."""
    root = request.config.cache.mkdir("clients") / version
    python = root / "bin" / "python"
    if not (root / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(root)], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"runpod=={version}"]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=800, check=False)
        if done.returncode:
            pytest.skip(f"pip can't install runpod {version}: {done.stderr.strip().splitlines()[-1:]}")
        (root / "complete").touch()
    return python


def test_runpod_1_12_drives_it_over_graphql(real, sdk):
    said = sdk("1.12.0", V1, real)
    id = said["made"]["id"]
    assert GPU in said["gpus"]
    assert said["price"] == 0.44
    assert said["user"]["networkVolumes"][0]["dataCenterId"] == "US-KS-2"
    assert said["listed"] == [id]
    assert [p["privatePort"] for p in said["ports"]] == [22]
    assert said["stopped"] == {"id": id, "desiredStatus": "EXITED"}
    assert said["resumed"]["desiredStatus"] == "RUNNING"
    assert said["after"] == []
    assert "no longer any instances available" in said["sold out"]
    assert "No GPU found" in said["unknown"]
    assert "Unauthorized" in said["wrong key"]
    assert {e.path for e in real.requests} == {"/graphql"}
    assert not real.backend.processes(id)


def test_runpod_2_0_drives_it_over_rest_and_what_it_sends_is_as_described(real, sdk, spec):
    said = sdk("2.0.0rc1", V2, real)
    id = said["made"]["id"]
    assert said["stock"] == "HIGH"
    assert said["listed"] == [id]
    assert said["stopped"]["status"] == "EXITED"
    assert said["resumed"]["status"] in ("STARTING", "RUNNING")
    assert len(set(said["ports"])) == 2
    assert (said["gone"], said["after"]) == (None, [])
    assert said["user"]["pubKey"] == "ssh-ed25519 AAAA me"
    assert said["sold out"][1] == 400
    assert said["newer than the description"] == [422, ["$.gpu: additional properties 'minRamPerGpu' not allowed"]]
    assert "Unauthorized" in said["wrong key"]
    sent = [e for e in real.requests if e.path.startswith("/v2/") and e.status not in (401, 422)]
    assert len(sent) > 8
    for e in sent:
        assert not spec.request_faults(e.method, e.path, e.query, e.body), e
    wait_until(lambda: not real.backend.processes(id), "its processes are gone")
