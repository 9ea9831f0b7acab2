"""A model on a network volume whose pod is gone, or off: what evaluates it rents, is guarded, and gives back."""

import json
from pathlib import Path

import pytest
from support.podctl_cli import Cli
from support.rented import BOOT_GRACE_S, FETCH_GRACE_S, LATE_S, Rented, paid_until, run_ended_at
from support.stand_in import quick_python, trained

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(300)]


def begun_training(r: Rented, tmp_path: Path, seconds: str = "0.3", **pod: object) -> Path:
    python = quick_python(tmp_path / "quick")
    return r.experiment(trained(seconds), env={"PODCTL_PYTHON": str(python), "TAKES_S": "0.5"}, **pod)


def bills(cli: Cli) -> dict[str, float]:
    """Dollars by run."""
    found: dict[str, float] = {}
    for e in cli.events():
        found[e["run"]] = found.get(e["run"], 0.0) + e["usd"]
    return found


def test_a_run_whose_pod_is_gone_is_evaluated_on_a_new_one_that_goes_back_and_is_billed(tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        done = r.train(begun_training(r, tmp_path))
        assert done.code == 0, f"{done!r}\n{r.story()}"
        (run,) = r.begun()
        (r.cli.project / "test.jsonl").write_text("{}\n")
        claims = []
        r.at("run", lambda: claims.extend(_claims(r)))
        looked = r("evaluate", "--dry-run", "test.jsonl")
        assert looked.code == 0, looked
        assert "at most" in looked.err
        assert not r.paid()
        asked = r("evaluate", "test.jsonl")
        assert (asked.code, "add --yes" in asked.err) == (2, True), asked
        done = r("evaluate", "test.jsonl", "--yes", "--json")
        assert done.code == 0, f"{done!r}\n{r.story()}"
        receipt = done.lines[-1]
        assert receipt["metrics"] == {"wer": 0.25}
        assert receipt["pod"] == "gone"
        evaluation = receipt["run"]
        assert claims == [evaluation], "its pod's watchdog had its claim"
        first, second = r.sim.pods(gone=True)
        assert (first.status, second.status) == ("TERMINATED", "TERMINATED")
        assert not r.paid()
        billed = bills(r.cli)
        assert set(billed) == {run, evaluation}
        paid_s = sum((s.end or r.now) - s.start for s in second.meter.spans if s.kind == "gpu")
        usd_per_hour = max(e["usd_per_hour"] for e in r.events() if e["run"] == evaluation)
        assert billed[evaluation] == pytest.approx(paid_s / 3600 * usd_per_hour, rel=0.3)
        assert receipt["usd"] == pytest.approx(billed[evaluation], abs=1e-4)
        assert list((r.cli.project / ".podctl" / "runs" / run / "reports").glob("evaluate-*.json"))
        there = r.sim.volume_dir(r.volume.id) / "runs" / run / "reports"
        assert not list(there.glob("evaluate-*")), "the run itself is only read"
        r.check(done, ended_at=r.now)


def has_ended(r: Rented, run: str) -> bool:
    return bool(r.begun().get(run, {}).get("ended_at"))


def _claims(r: Rented) -> list[str]:
    pod = r.sim.pod()
    return [p.stem for p in (r.sim.backend.guard_dir(pod.id) / "claims").glob("*.json")]


@pytest.mark.parametrize("moment", ["boot", "run"])
def test_killed_while_it_evaluates_no_pod_is_left_and_the_same_words_go_on(moment: str, tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        assert r.train(begun_training(r, tmp_path)).code == 0
        (run,) = r.begun()
        r.at(moment, r.kill)
        assert r("evaluate", "--yes").code == -9
        (pod,) = r.sim.pods()
        (evaluation,) = {e["run"] for e in r.events()} - {run}
        if moment == "boot":
            assert r.let_time_pass(60, lambda: pod.started_at is not None), r.story()
            due = (pod.started_at or 0.0) + BOOT_GRACE_S
        else:
            assert r.let_time_pass(600, lambda: has_ended(r, evaluation), step_s=0.5), r.story()
            due = run_ended_at(r.begun()) + FETCH_GRACE_S
        r.let_time_pass(due + 10 * LATE_S - r.now)
        assert not r.paid(), r.story()
        assert paid_until(pod, r.now) - due <= LATE_S, r.story()
        again = r("evaluate", "--yes", "--json")
        assert again.code == 0, f"{again!r}\n{r.story()}"
        assert again.lines[-1]["run"] == evaluation
        assert not r.paid()
        r.keeps_secrets()


def test_without_a_network_volume_the_very_pod_is_switched_on_and_off_again(tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        done = r.train(begun_training(r, tmp_path, volume=None))
        assert done.code == 0, f"{done!r}\n{r.story()}"
        (pod,) = r.sim.pods(gone=True)
        assert pod.status == "EXITED", r.story()
        done = r("evaluate", "--yes", "--json")
        assert done.code == 0, f"{done!r}\n{r.story()}"
        (same,) = r.sim.pods(gone=True)
        assert (same.id, same.status) == (pod.id, "EXITED"), "its data is on it alone"
        assert not r.paid()
        billed = bills(r.cli)
        paid_s = sum((s.end or 0.0) - s.start for s in same.meter.spans if s.kind == "gpu")
        assert sum(billed.values()) > 0
        assert paid_s > 0
        gone = r("down", same.id, "--yes")
        assert gone.code == 0, gone
        lost = r("evaluate", "--yes")
        assert lost.code == 1, lost
        assert "gone, and its checkpoints with it" in lost.err


def test_a_training_that_goes_on_keeps_its_pod_while_another_looks_at_its_volume(tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        x = begun_training(r, tmp_path, seconds="3600")
        assert r.train(x, "--detach").code == 0
        (run,) = r.runs()
        assert r.let_time_pass(120, lambda: bool(list(r.sim.root.glob("volumes/*/runs/*/checkpoints/*/COMPLETE"))), 0.5)
        done = r("evaluate", "--yes", "--json")
        assert done.code == 0, f"{done!r}\n{r.story()}"
        assert "still going" in done.err
        assert "takes another on the same volume" in done.err
        (still,) = r.paid()
        assert json.loads(r.cli("status", run, "--json").stdout)["state"] == "running"
        assert r("stop", run, "--grace", "1").code == 0
        assert not r.paid(), still
