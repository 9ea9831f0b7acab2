"""`podctl stop` through the command line: with another grace, and for a run that waits its turn."""

import time

from support.podctl_cli import Cli, wait_for

SLOW = "trap 'sleep 2.5; echo saved; exit 75' TERM; echo begun; while :; do sleep 0.05; done"


def log_of(cli: Cli, name: str) -> str:
    logs = [run / "log" for run in cli.runs() if run.name.startswith(name)]
    return logs[0].read_text() if logs and logs[0].exists() else ""


def test_a_run_that_waits_its_turn_is_stopped_at_once_and_the_one_before_it_goes_on(cli: Cli):
    first = cli.experiment("echo begun; exec sleep 60", name="first", file="1.yaml")
    second = cli.experiment("echo second", name="second", file="2.yaml")
    assert cli("train", "-c", first, "--local", "--detach").code == 0
    wait_for(lambda: "begun" in log_of(cli, "first"))
    assert cli("train", "-c", second, "--local", "--queue", "--detach").code == 0
    stopped = cli("stop", "second", "--json")
    assert stopped.code == 0, stopped
    assert stopped.lines[-1]["state"] == "stopped"
    assert cli("status", "first", "--json").lines[-1]["state"] == "running"


def test_a_shorter_grace_reaches_the_runner(cli: Cli):
    cli("train", "-c", cli.experiment(SLOW), "--local", "--detach")
    wait_for(lambda: "begun" in log_of(cli, "tiny"))
    begun = time.monotonic()
    stopped = cli("stop", "--grace", 0.2)
    assert stopped.code == 0, stopped
    assert "for 0.2 s at most" in stopped.err
    assert "saved" not in log_of(cli, "tiny")
    assert time.monotonic() - begun < 15
    assert cli("stop", "--grace", -1).code == 2
