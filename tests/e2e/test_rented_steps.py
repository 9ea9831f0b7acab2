"""Rented machines step by step: up, looked around on, trained on, down; listed and reaped; shared out by owner."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.machines import Machine, runpod_machine
from support.podctl_cli import Cli

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def machine(tmp_path: Path, cli: Cli) -> Iterator[Machine]:
    with runpod_machine(tmp_path) as machine:
        cli.env |= {**machine.env, "PODCTL_OWNER": "ann"}
        yield machine


def test_a_machine_goes_up_is_looked_around_on_trained_on_and_comes_down(machine: Machine, cli: Cli) -> None:
    sim = machine.extra["sim"]
    file = cli.experiment('echo "data: $(cat "$PODCTL_VOLUME/data/words")"; sleep 30', **machine.pod_section)
    (cli.project / "words").write_text("hello")
    up = cli("up", "-c", file, "--yes", "--json")
    assert up.code == 0, up
    assert up.lines[-1]["event"] == "up"
    assert [p.status for p in sim.pods()] == ["RUNNING"]

    (listed,) = cli("pods", "--json").lines
    assert (listed["owner"], listed["is_ours"], listed["expired"]) == ("ann", True, False)
    assert listed["run"] == up.lines[-1]["run"]
    assert cli("sync").code == 0
    assert "home" in cli("exec", "--", "sh", "-c", 'cd && echo "home $PWD"').stdout
    assert cli("push", "words").code == 0

    trained = cli("train", "-c", file, "--yes", "--detach")
    assert trained.code == 0, trained
    assert "is there already" in trained.err
    down = cli("down", "--yes", timeout=120)
    assert down.code == 0, down
    assert [p.status for p in sim.pods(gone=True)] == ["TERMINATED"]
    run = json.loads(cli("status", "--json").stdout)
    assert run["state"] == "stopped"
    log = (machine.volume / "runs" / run["run"] / "log").read_text()
    assert "data: hello" in log
    assert "gone already" in cli("down").err
    assert cli("exec", "--", "true").code == 6


def test_only_what_is_ours_and_over_is_reaped_and_a_colleagues_by_its_name(machine: Machine, cli: Cli) -> None:
    sim = machine.extra["sim"]
    for owner, name in (("ann", "mine"), ("bob", "theirs")):
        file = cli.experiment("sleep 600", name=name, file=f"{name}.yaml", **machine.pod_section)
        more = {"PODCTL_OWNER": owner}
        assert cli("up", "-c", file, "--yes", env=more).code == 0
    nothing = cli("reap", "--yes")
    assert "nothing of yours has expired" in nothing.err
    assert len(sim.pods()) == 2

    for pod in sim.pods():  # as if nothing on them did its work
        for p in sim.backend.processes(pod.id):
            _freeze(p.pid)
    sim.advance(4 * 3600)
    reaped = cli("reap", "--yes", "--json")
    assert reaped.code == 0, reaped
    assert [line["name"].split("-")[1] for line in reaped.lines] == ["ann"]
    (left,) = sim.pods()
    assert left.wish.name.startswith("pc-bob-")
    by_name = cli("reap", left.wish.name, "--yes")
    assert by_name.code == 0, by_name
    assert not sim.pods()


def _freeze(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
