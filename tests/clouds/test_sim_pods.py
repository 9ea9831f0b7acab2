"""Pods of the emulated cloud that really run: their program, their disk, their sshd, and how they end."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from support.cloud import GPU, Api, Laptop
from support.pod import is_alive, wait_until

from podctl.sim.faults import Fault
from podctl.sim.processes import end_all
from podctl.sim.sim import Sim
from remote.clock import FileClock

FOR_EVER = "exec sleep 1000"


def sh(script: str) -> str:
    """A create call's `args` that runs a script."""
    return f"sh -c {shlex.quote(script)}"


def said(sim: Sim, id: str, text: str) -> str:
    return wait_until(lambda: text in sim.log(id) and sim.log(id), f"{text!r} in the log: {sim.log(id)}")


def test_args_run_as_the_main_program_with_the_environment_that_runpod_gives(real):
    volume = real.create_volume()
    api = Api(real)
    id = api.create(
        volume=volume.id, env={"MINE": "a b", "RUNPOD_POD_ID": "forged"}, args=sh(f"env; echo done; {FOR_EVER}")
    )
    env = dict(line.split("=", 1) for line in said(real, id, "done").splitlines() if "=" in line)
    pod = real.pod()
    wanted = {"MINE": "a b", "RUNPOD_POD_ID": id, "RUNPOD_API_KEY": pod.key, "RUNPOD_DC_ID": "US-KS-2",
              "RUNPOD_GPU_COUNT": "1", "RUNPOD_PUBLIC_IP": "127.0.0.1", "RUNPOD_TCP_PORT_22": str(pod.port),
              "RUNPOD_VOLUME_ID": volume.id, "PODCTL_RUNPOD_API_URL": f"{real.url}/v2",
              "PODCTL_RUNPOD_GRAPHQL_URL": f"{real.url}/graphql"}  # fmt: skip
    assert {k: env.get(k) for k in wanted} == wanted
    for name in ("PODCTL_START", "PODCTL_GUARD_DIR", "PODCTL_HOST_KEY", "PODCTL_CLOCK_FILE", "PODCTL_PYTHON"):
        assert env[name].startswith("/")
    assert float(env["PODCTL_GUARD_TICK_S"]) > 0
    assert real.account_key not in real.log(id)


def test_without_args_the_image_starts_a_real_sshd_that_takes_the_pods_key_alone(real, laptop, tmp_path):
    api = Api(real)
    id = api.create_running(env={"PUBLIC_KEY": laptop.public}, count=2)
    pod = api.get(f"/pods/{id}").json
    seen = laptop.ssh_when_ready(pod, "env; echo; pwd; cd; pwd; nvidia-smi -L")
    assert "RUNPOD_API_KEY" not in seen
    assert real.pod().key not in seen
    assert seen.count(GPU) == 2
    assert str(real.backend.disk_dir(id)) in seen
    other = tmp_path / "other"
    other.mkdir()
    assert Laptop(other).ssh(pod, "true").returncode == 255


def test_a_stop_wipes_the_container_disk_and_keeps_the_volume_and_the_port_changes(real):
    volume = real.create_volume()
    api = Api(real)
    script = 'ls "$HOME" | grep -q mark && echo kept || echo wiped; touch "$HOME/mark"; echo started; '
    id = api.create(volume=volume.id, args=sh(script + FOR_EVER))
    said(real, id, "started")
    path = Path(api.get(f"/pods/{id}").json["mounts"]["network"][0]["path"])
    assert path == real.volume_dir(volume.id)
    (path / "data").write_text("kept")
    ports = {real.pod().port}
    for n, action in enumerate(("restart", "stop", "start"), 2):
        api.act(id, action)
        if action != "stop":
            wait_until(lambda n=n, a=action: real.log(id).count("started") >= n - (a == "start"), "another start")
            ports.add(real.pod().port)
    assert real.log(id).count("wiped") == 3
    assert "kept" not in real.log(id)
    assert len(ports) == 3
    api.delete(f"/pods/{id}")
    assert (path / "data").read_text() == "kept"


def test_a_pods_own_disk_outlives_its_stop_and_not_its_end(real):
    api = Api(real)
    id = api.create_running(mounts={"persistent": {"size": 20, "path": "/workspace"}}, args=sh(FOR_EVER))
    path = Path(api.get(f"/pods/{id}").json["mounts"]["persistent"]["path"])
    (path / "data").write_text("x")
    api.act(id, "stop")
    api.act(id, "start")
    api.wait_for_address(id)
    assert (path / "data").exists()
    api.delete(f"/pods/{id}")
    assert not path.exists()


@pytest.mark.parametrize("how", ["stop", "terminate", "host", "sim"])
def test_nothing_of_a_pod_outlives_it_however_it_hid(tmp_path, how):
    hide = (
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM HUP; exec sleep 1000' &); "
        "(env -i setsid sleep 1000 &); sleep 1000 & echo pids; " + FOR_EVER
    )
    with Sim(tmp_path) as sim:
        api = Api(sim)
        id = api.create(args=sh(hide))
        said(sim, id, "pids")
        wait_until(lambda: len(sim.backend.processes(id)) >= 5, "all have begun")
        alive = {p.pid for p in sim.backend.processes(id)}
        if how == "host":
            sim.kill_host(id)
        elif how != "sim":
            api.act(id, how)
            sim.advance(1)
        if how != "sim":
            wait_until(lambda: not any(is_alive(p) for p in alive), "all are gone")
    assert not any(is_alive(p) for p in alive)
    assert not sim.backend.pods.exists()


def test_only_a_pods_own_processes_end_with_it(real):
    api = Api(real)
    ids = [api.create(name=f"pc-{n}", args=sh(f"echo up; {FOR_EVER}")) for n in range(2)]
    for id in ids:
        said(real, id, "up")
    api.act(ids[0], "terminate")
    real.advance(1)
    assert not real.backend.processes(ids[0])
    assert real.backend.processes(ids[1])
    assert is_alive(os.getpid())


def test_a_main_program_that_ends_is_started_again_after_a_while_on_the_same_disk_and_billed(real):
    api = Api(real)
    script = 'echo start $(ls "$HOME" | wc -l) $(ls "$PODCTL_GUARD_DIR" 2>/dev/null | wc -l);'
    script += 'touch "$HOME/mark"; mkdir -p "$PODCTL_GUARD_DIR"; touch "$PODCTL_GUARD_DIR/mark"'
    id = api.create(args=sh(script))
    wait_until(lambda: "container exited" in real.log(id, "system"), "its end")
    assert real.log(id) == "start 0 0\n"
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"
    real.advance(18)
    wait_until(lambda: real.log(id) == "start 0 0\nstart 1 0\n", "another start")  # its memory disk is new
    assert real.bill() >= 0.44 * 18 / 3600


def test_what_cannot_be_run_says_so_and_is_tried_for_ever(real):
    id = Api(real).create(args="/no/such/program --x")
    wait_until(lambda: "container exited" in real.log(id, "system"), "its end")
    real.advance(18)
    wait_until(lambda: real.log(id).count("No such file") == 2, "another")
    other = Api(real).create(name="pc-b", args="sh -c 'unclosed")
    wait_until(lambda: "no closing quotation" in real.log(other), "a word")


def test_two_pods_that_write_to_tmp_do_not_meet(real):
    api = Api(real)
    script = "echo {0} >/tmp/podctl-sim-test && sleep 0.1 && cat /tmp/podctl-sim-test; " + FOR_EVER
    ids = [api.create(name=f"pc-{n}", args=sh(script.format(f"mine{n}"))) for n in range(2)]
    for n, id in enumerate(ids):
        said(real, id, f"mine{n}")
    assert not Path("/tmp/podctl-sim-test").exists()


def test_a_pod_goes_by_the_clouds_clock(real):
    api = Api(real)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from remote.clock import clock_from_env as c; k = c();"
        "t = k.elapsed(); print('waiting', flush=True); k.sleep(3600); print('slept', flush=True)"
    )
    root = Path(__file__).parents[2]
    id = api.create(args=sh(f'"$PODCTL_PYTHON" -I -c {shlex.quote(code)} {shlex.quote(str(root))}; {FOR_EVER}'))
    said(real, id, "waiting")
    real.advance(3601)
    said(real, id, "slept")


def test_a_clock_on_the_wall_that_jumps_bills_nothing(real):
    api = Api(real)
    id = api.create(args=sh(f"echo up; {FOR_EVER}"))
    said(real, id, "up")
    before, now = real.bill(), real.clock.now()
    real.clock.set_wall(-86400)
    assert FileClock(str(real.clock.path)).now() < now - 86000
    assert 0 <= real.clock.now() - now < 60
    assert real.bill() - before < 0.44 * 60 / 3600
    real.advance(3600)
    assert FileClock(str(real.clock.path)).now() < now - 80000
    assert real.bill() > 0.44


def test_a_pod_ends_itself_with_its_own_key(real):
    api = Api(real)
    script = """
import http.client, json, os, urllib.parse
at = urllib.parse.urlsplit(os.environ["PODCTL_RUNPOD_API_URL"])
c = http.client.HTTPConnection(at.netloc)
c.request("POST", at.path + "/pods/" + os.environ["RUNPOD_POD_ID"] + "/action", json.dumps({"action": "terminate"}),
          {"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"]} | {"User-Agent": "guard"})
"""
    id = api.create(args=sh(f'"$PODCTL_PYTHON" -I -c {shlex.quote(script)}; {FOR_EVER}'))
    wait_until(lambda: not real.pods(), "it is gone")
    assert [e.key for e in real.requests if e.path.endswith("/action")] == [f"pod:{id}"]
    before = real.bill()
    real.advance(3600)
    assert real.bill() == before


def test_the_log_is_followed_from_where_one_was(real):
    api = Api(real)
    id = api.create(args=sh("for n in 1 2 3; do echo line $n; done; exit 0"))
    wait_until(lambda: "line 3" in real.log(id), "lines")
    api.delete(f"/pods/{id}")  # a stream ends with its pod
    real.cloud.pods[id].status = "EXITED"
    wait_until(lambda: real.cloud.pods[id].log[-1], "a line")
    pod = real.cloud.pods[id]
    lines = [line.text for line in pod.log]

    def read(query: str, last: str = "") -> list[dict]:
        import threading

        threading.Timer(0.1, lambda: setattr(pod, "status", "TERMINATED")).start()
        pod.status = "EXITED"
        reply = api.ask("GET", f"/v2/pods/{id}/logs{query}", headers={"Last-Event-ID": last} if last else {})
        assert reply.headers["content-type"] == "text/event-stream"
        events = [e for e in reply.body.decode().split("\n\n") if e.startswith("id: ")]
        return [{"id": e.split("\n")[0][4:]} | json.loads(e.split("\ndata: ")[1]) for e in events]

    everything = read("?tail=5000")
    assert [e["line"] for e in everything] == lines
    assert [e["line"] for e in read("?source=container")] == ["line 1", "line 2", "line 3"]
    assert [e["line"] for e in read("?tail=2")] == lines[-2:]
    assert [e["line"] for e in read("", last=everything[1]["id"])] == lines[2:]
    assert [e["line"] for e in read(f"?since={everything[0]['ts']}")] == lines
    assert api.get(f"/pods/{id}/logs?tail=5001").status in (404, 422)


# faults that need a pod


def test_a_stranger_answers_at_the_old_port_and_is_told_what_it_is_sent(real, laptop):
    api = Api(real)
    id = api.create_running(env={"PUBLIC_KEY": laptop.public})
    old = api.get(f"/pods/{id}").json
    laptop.ssh_when_ready(old, "true")
    api.act(id, "stop")
    real.advance(1)
    real.faults.add(Fault("stale-port", times=1, reads=50))
    told = api.act(id, "start").json
    assert told["ssh"]["direct"]["port"] == old["ssh"]["direct"]["port"]
    wait_until(lambda: laptop.ssh(told, "echo secret").returncode == 0, "a stranger lets us in")
    wait_until(lambda: b"echo secret" in real.strangers[0].received, "it wrote that down")


def test_a_pod_without_gpus_says_so(real, laptop):
    real.faults.add(Fault("zero-gpu", times=1))
    api = Api(real)
    id = api.create_running(env={"PUBLIC_KEY": laptop.public})
    pod = api.get(f"/pods/{id}").json
    wait_until(lambda: laptop.ssh(pod, "true").returncode == 0, "ssh")
    done = laptop.ssh(pod, "nvidia-smi -L")
    assert (done.returncode, done.stdout) == (6, "No devices were found\n")


def test_sshd_may_refuse_for_a_while_after_its_address_is_told(real, laptop):
    real.faults.add(Fault("late-ssh", times=1, seconds=90))
    api = Api(real)
    id = api.create_running(env={"PUBLIC_KEY": laptop.public})
    pod = api.get(f"/pods/{id}").json
    said(real, id, "ready to use")
    assert "refused" in laptop.ssh(pod, "true").stderr
    real.advance(91)
    laptop.ssh_when_ready(pod, "true")


def test_a_container_in_a_restart_loop_never_lasts(real):
    real.faults.add(Fault("restart-loop", seconds=5))
    id = Api(real).create(args=sh(f"echo up; {FOR_EVER}"))
    for n in range(1, 4):
        wait_until(lambda n=n: real.log(id).count("up") == n, f"start {n}")
        real.advance(6)
        wait_until(lambda n=n: real.log(id, "system").count("exited") == n, f"end {n}")
        real.advance(18)


def test_a_machine_that_dies_takes_its_processes_along(real):
    real.faults.add(Fault("host-gone", times=1, seconds=30))
    api = Api(real)
    id = api.create(args=sh(f"echo up; {FOR_EVER}"))
    said(real, id, "up")
    real.advance(31)
    assert not real.backend.processes(id)
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"
    real.advance(31)
    assert api.get(f"/pods/{id}").json["status"] == "ERROR"


def test_a_spot_pods_main_program_alone_is_told_and_five_seconds_later_all_is_gone(real):
    script = "trap 'echo told main' TERM; sh -c \"trap 'echo told child' TERM; while :; do sleep 0.05; done\" & "
    script += "echo up; while :; do sleep 0.05; done"
    query = f"""mutation {{ podRentInterruptable(input: {{ name: "pc-spot", imageName: "i", gpuTypeId: "{GPU}",
        gpuCount: 1, bidPerGpu: 0.3, dockerArgs: {json.dumps(sh(script))} }}) {{ id }} }}"""
    id = Api(real).graphql(query)["data"]["podRentInterruptable"]["id"]
    said(real, id, "up")
    real.preempt(id)
    said(real, id, "told main")
    assert real.backend.processes(id)
    real.advance(5)
    assert not real.backend.processes(id)
    assert "told child" not in real.log(id)
    assert real.pod().status == "EXITED"


def test_a_stop_that_is_ignored_leaves_its_processes_running(real):
    real.faults.add(Fault("stop-ignored"))
    api = Api(real)
    id = api.create(args=sh(f"echo up; {FOR_EVER}"))
    said(real, id, "up")
    pid = real.backend.main_pid(id)
    assert api.act(id, "stop").json["status"] == "EXITED"
    real.advance(60)
    assert is_alive(pid)


def test_ending_nothing_ends_nothing():
    with subprocess.Popen(["sleep", "60"]) as other:
        end_all([], "nobody's mark")
        assert other.poll() is None
        other.kill()
