"""Each fault in each phase of `podctl train`: the bill is bounded, the run's state is told as it is, and the same
command mends it.

One cell a phase is quick, those of boot, send and start in `test_killed_laptop.py`. The rest: `-m slow -k boot-`, and
so on for each phase, and `-k two_faults`.
"""

from collections import Counter
from pathlib import Path

import pytest
from support.fault_matrix import MATRIX, OK, PAIRS, QUICK, Cell, cells, reason
from support.rented import BOOT_GRACE_S, FETCH_GRACE_S, PHASES, RATE, Rented

from podctl.sim.faults import FAULTS, Fault

pytestmark = pytest.mark.e2e


def test_every_fault_meets_every_phase_or_there_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(MATRIX) == set(FAULTS)
    whys = Counter(reason(f, p) for f, row in MATRIX.items() for p in PHASES if p not in row.cells)
    assert all(whys)
    assert all(set(row.cells) <= set(PHASES) for row in MATRIX.values())
    n_cells = sum(len(row.cells) for row in MATRIX.values())
    assert n_cells + whys.total() == len(FAULTS) * len(PHASES)
    with capsys.disabled():
        print(f"\n{n_cells} cells and {len(PAIRS)} pairs; {whys.total()} can't be:")
        for why, n in whys.most_common():
            print(f"  {n:4}  {why}")


def quick_or_slow(fault: str, phase: str) -> object:
    marks = [] if (phase, fault) in QUICK else [pytest.mark.slow]
    return pytest.param(fault, phase, id=f"{phase}-{fault}", marks=marks)


@pytest.mark.parametrize(("fault", "phase"), [quick_or_slow(f, p) for f, p in cells()])
def test_a_fault_costs_no_more_than_it_must_and_the_same_command_mends_it(
    fault: str, phase: str, tmp_path: Path
) -> None:
    meets(MATRIX[fault].cells[phase], phase, tmp_path, fault)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_two_faults_at_once_cost_no_more(name: str, tmp_path: Path) -> None:
    phase, both = PAIRS[name]
    meets(both, phase, tmp_path, name)


def meets(cell: Cell, phase: str, root: Path, name: str) -> None:
    """One cell, all laws."""
    with Rented(root, rate=cell.rate or RATE) as r:
        r.hurry = cell.hurry or r.rate
        x = r.experiment(**cell.pod)
        if cell.before == "stopped":
            x = stop_one(r)
        if name == "stale-port":  # it is decided with the start
            r.at("create", lambda: r.sim.faults.add(Fault("stale-port", times=1, reads=4)))
        r.at(phase, lambda: cell.strike(r))
        done = r.train(x)
        ended_at = r.now
        told = f"{done!r}\n{r.story()}"
        assert phase in r.entered, f"it never came to {phase}\n{told}"
        assert done.code in cell.codes, told
        r.check(done, ended_at=ended_at, can_end=cell.ends)
        if not cell.ends:
            names_what_it_left(r, done.err)
        r.sim.faults.clear()
        r.sim.cloud.credit_usd = 100.0
        if not cell.ends:
            assert r.let_time_pass(BOOT_GRACE_S + FETCH_GRACE_S), (
                f"the pod's own guard does not go on asking\n{told}\n{r.story()}"
            )
        if done.code != OK:
            r.hurry = r.rate = RATE
            r.succeeds_again(x)


def names_what_it_left(r: Rented, err: str) -> None:
    left = [p for p in r.sim.pods() if p.id in err]
    assert left, f"no pod is named in {err!r}"


def stop_one(r: Rented) -> Path:
    """A run that was stopped with its pod, which stays, switched off."""
    at_first = "[ -e $PODCTL_VOLUME/again ] || { touch $PODCTL_VOLUME/again; sleep 60 & wait; }"
    x = r.experiment(f"trap 'exit 75' TERM; {at_first}; echo bye", on_failure="stop")
    r.start("train", "-c", x, "--yes", "--detach")
    assert r.wait().code == 0
    done = r("stop")
    assert (done.code, [p.status for p in r.sim.pods()]) == (0, ["EXITED"]), f"{done!r}\n{r.story()}"
    return x
