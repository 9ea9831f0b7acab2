"""The guard in pods of the emulated cloud: what podctl sends, started as the provider starts it."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pod import ROOT, wait_until

from podctl.pods import Boot
from podctl.providers.runpod.shapes import START, environment
from podctl.sim.faults import Fault
from podctl.sim.keys import PodRights
from podctl.sim.sim import Sim

GRACE_S = 300
Make = Callable[..., Sim]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    sims: list[Sim] = []

    def make(**options: Any) -> Sim:
        sims.append(Sim(tmp_path / "sim", **options).__enter__())
        return sims[-1]

    yield make
    for sim in sims:
        sim.__exit__(None, None, None)


def create(sim: Sim, end: str = "terminate") -> str:
    """A pod as podctl creates it; its id, once its boot guard has announced itself."""
    text = (ROOT / "remote" / "boot.sh").read_text(encoding="utf-8")
    env = {"PODCTL_GUARD_S": str(GRACE_S), "PODCTL_GUARD_END": end}
    body = {
        "name": "pc-me-demo",
        "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
        "disk": 20,
        "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 1},
        "ports": ["22/tcp"],
        "args": START,
        "env": environment(Boot(start_script=text, public_key="ssh-ed25519 AAAAnobody", env=env)),
    }
    headers = {"Authorization": f"Bearer {sim.account_key}", "User-Agent": "test", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{sim.url}/v2/pods", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        id = str(json.load(answer)["id"])
    wait_until(lambda: sim.advance(0.1) or "podctl-boot 1 boot=" in sim.log(id), "the announcement")
    return id


def arm(sim: Sim, id: str, **changes: Any) -> dict[str, Any]:
    line = next(w for w in sim.log(id).split() if w.startswith("dir="))
    claim = {
        "schema": 1,
        "run_id": "demo",
        "run_dir": str(sim.root / "run"),
        "disk": "",
        "tool_dir": str(ROOT),
        "deadline_s": 3600,
        "grace_s": 30,
        "fetch_grace_s": 60,
        "on_success": "stop",
        "on_failure": "stop",
    }
    (sim.root / "run").mkdir(exist_ok=True)
    argv = [sys.executable, "-I", "-S", str(ROOT / "remote" / "guard.py"), "arm", line.removeprefix("dir=")]
    order = json.dumps({"claim": claim | changes, "wait_s": 20}).encode()
    env = {"PODCTL_CLOCK_FILE": str(sim.clock.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, input=order, stdout=subprocess.PIPE, env=env, timeout=60, check=False)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def statuses(sim: Sim) -> list[str]:
    return [p.status for p in sim.pods(gone=True)]


def test_a_pod_that_podctl_forgot_is_billed_for_its_boot_grace_and_no_more(make: Make) -> None:
    sim = make()
    create(sim)
    sim.advance(GRACE_S - 60)
    assert statuses(sim) == ["RUNNING"]
    sim.advance(60)
    wait_until(lambda: statuses(sim) == ["TERMINATED"], "the end")
    pod = sim.pods(gone=True)[0]
    bill = sim.bill()
    sim.advance(3600)
    assert sim.bill() == bill
    assert bill <= pod.usd_per_hour * (GRACE_S + 120) / 3600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("v2", "graphql", "best"),
    [("stop", "stop", "allowed"), ("none", "stop", "allowed"), ("read", "read", "read"), ("none", "none", "none")],
)
def test_the_verdict_is_what_the_cloud_lets_a_pods_key_do(make: Make, v2: str, graphql: str, best: str) -> None:
    sim = make(rights=PodRights(v2=v2, graphql=graphql))
    id = create(sim)
    assert arm(sim, id)["best"] == best
    assert statuses(sim) == ["RUNNING"]


@pytest.mark.slow
def test_an_armed_pod_whose_run_never_begins_ends(make: Make) -> None:
    sim = make()
    id = create(sim, end="stop")
    assert arm(sim, id)["living"]
    sim.advance(GRACE_S - 60)
    sim.advance(120)
    wait_until(lambda: statuses(sim) == ["EXITED"], "the end")
    assert "has not begun" in sim.log(id)


@pytest.mark.slow
def test_a_stop_that_the_cloud_ignores_is_asked_for_until_it_is_done(make: Make) -> None:
    sim = make(faults=[Fault("stop-ignored", times=2)])
    create(sim, end="stop")
    sim.advance(GRACE_S)
    wait_until(lambda: sim.advance(5) or statuses(sim) == ["EXITED"], "the end")


@pytest.mark.slow
def test_a_key_that_may_stop_over_graphql_alone_ends_the_pod(make: Make) -> None:
    sim = make(rights=PodRights(v2="none", graphql="stop"))
    create(sim)
    sim.advance(GRACE_S)
    wait_until(lambda: statuses(sim) == ["TERMINATED"], "the end")


@pytest.mark.slow
def test_a_container_that_dies_again_and_again_is_ended_all_the_same(make: Make) -> None:
    """Each start is over before a guard has looked often, and none gets a new grace."""
    sim = make(faults=[Fault("restart-loop", seconds=10, times=10_000)], guard_tick_s=1.0)
    id = create(sim)

    def starts() -> int:
        return sim.log(id).count("podctl-boot 1 boot=")

    def is_over() -> bool:
        return statuses(sim) == ["TERMINATED"]

    while not is_over() and starts() < 100:
        n = starts()
        sim.advance(10)  # no more at once than a start lasts
        wait_until(lambda n=n: is_over() or starts() > n or sim.advance(0.3), "the next start")
    assert is_over()
    assert sim.bill() <= sim.pods(gone=True)[0].usd_per_hour * (GRACE_S + 120) / 3600
