"""podctl killed without a word, wherever it is: never run again, the pod ends itself; run again, it goes on."""

from pathlib import Path

import pytest
from support.rented import BOOT_GRACE_S, FETCH_GRACE_S, LATE_S, Rented, paid_until, run_ended_at

from podctl.sim.faults import Fault

pytestmark = pytest.mark.e2e

NOT_MADE = ("offers", "intent")
NOT_LAUNCHED = ("create", "boot", "created", "arm", "send", "start")
LAUNCHED = ("ordered", "run", "end")
QUICK_NEVER, QUICK_AGAIN = ("boot",), ("send", "start")


def quick_or_slow(names: tuple[str, ...], quick: tuple[str, ...]) -> list[object]:
    return [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow]) for n in names]


def killed_at(r: Rented, moment: str, command: str = "echo hello; sleep 0.5; echo bye", **pod: object) -> Path:
    """As that begins; the right after a create call was answered is the beginning of `boot`."""
    x = r.experiment(command, **pod)
    r.at(moment, r.kill)
    done = r.train(x)
    assert done.code == -9, f"it was not killed at {moment}: {done!r}\n{r.story()}"
    return x


@pytest.mark.parametrize("moment", quick_or_slow(NOT_LAUNCHED, QUICK_NEVER))
def test_killed_before_its_run_began_and_never_run_again_the_pod_ends_at_its_boot_grace(
    moment: str, tmp_path: Path
) -> None:
    with Rented(tmp_path) as r:
        killed_at(r, moment)
        assert r.let_time_pass(60, lambda: bool(r.sim.pods()) and r.sim.pods()[0].started_at is not None), r.story()
        pod = r.sim.pod()
        assert pod.started_at is not None
        due = pod.started_at + BOOT_GRACE_S
        r.let_time_pass(due + 10 * LATE_S - r.now)
        late_s = paid_until(pod, r.now) - due
        claimed_s = (
            r.entered["send"] - pod.started_at if "send" in r.entered else 0.0
        )  # a claim is heard as a sign of life
        assert -LATE_S <= late_s <= LATE_S + claimed_s, f"{late_s:.0f} s late\n{r.story()}"
        assert pod.status == "TERMINATED"
        assert not r.begun()
        r.keeps_secrets()


@pytest.mark.slow
@pytest.mark.parametrize("moment", LAUNCHED)
def test_killed_after_its_run_began_and_never_run_again_the_pod_ends_once_nobody_fetches(
    moment: str, tmp_path: Path
) -> None:
    with Rented(tmp_path) as r:
        killed_at(r, moment)
        pod = r.sim.pod()
        assert r.let_time_pass(600, lambda: run_ended_at(r.begun()) > 0, step_s=0.5), r.story()
        due = run_ended_at(r.begun()) + FETCH_GRACE_S
        r.let_time_pass(due + 10 * LATE_S - r.now)
        late_s = paid_until(pod, r.now) - due
        assert -LATE_S <= late_s <= LATE_S, f"{late_s:.0f} s late\n{r.story()}"
        assert [s["state"] for s in r.begun().values()] == ["succeeded"], r.story()
        r.keeps_secrets()


@pytest.mark.slow
def test_a_run_that_does_not_end_ends_with_its_pod_at_the_deadline_whoever_looks_on(tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        killed_at(r, "run", "trap '' TERM; while :; do sleep 1; done", max_hours=0.25)
        pod = r.sim.pod()
        assert pod.started_at is not None
        due = pod.started_at + 900
        r.let_time_pass(due + 10 * LATE_S - r.now)
        assert paid_until(pod, r.now) <= due + LATE_S, r.story()
        assert [s["state"] for s in r.begun().values()] != ["succeeded"], r.story()


@pytest.mark.parametrize("moment", quick_or_slow((*NOT_MADE, *NOT_LAUNCHED, *LAUNCHED), QUICK_AGAIN))
def test_killed_anywhere_and_run_again_there_is_one_pod_and_one_run(moment: str, tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        x = killed_at(r, moment)
        r.succeeds_again(x)
        assert len(r.sim.pods(gone=True)) == 1, r.story()
        assert len(r.begun()) == 1, r.story()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [Fault("stale-list", seconds=30), Fault("hidden-pod", times=1, reads=4)], ids=lambda f: f.name
)
def test_killed_right_after_its_pod_was_made_and_run_again_while_no_list_has_it_there_is_still_one_pod(
    fault: Fault, tmp_path: Path
) -> None:
    with Rented(tmp_path) as r:
        r.sim.faults.add(fault)
        x = killed_at(r, "boot")
        r.succeeds_again(x)
        assert len(r.sim.pods(gone=True)) == 1, r.story()


@pytest.mark.slow
def test_killed_and_run_again_once_its_run_has_succeeded_the_results_come_first(tmp_path: Path) -> None:
    with Rented(tmp_path) as r:
        x = killed_at(r, "run")
        assert r.let_time_pass(600, lambda: run_ended_at(r.begun()) > 0, step_s=0.5), r.story()
        done = r.train(x)
        assert done.code == 8, f"{done!r}\n{r.story()}"
        assert "podctl attach" in done.err, done
        done = r("attach")
        assert done.code == 0, f"{done!r}\n{r.story()}"
        r.check(done, ended_at=r.now)
        assert len(r.sim.pods(gone=True)) == len(r.begun()) == 1, r.story()
