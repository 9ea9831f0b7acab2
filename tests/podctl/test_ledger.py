"""The ledger's laws: nothing whole is lost, nothing torn is believed, and folding is pure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podctl import ledger as events
from podctl.errors import Busy, MissingHere
from podctl.ledger import Event, Ledger, fold, newest, starting

REPO = Path(__file__).resolve().parents[2]


def event(kind: str = "intent", run: str = "a-1", t: float = 1.0, **more) -> Event:
    return Event(t, kind, run, "project-1", "local", "a", **more)


def test_what_was_appended_is_read_back(tmp_path: Path):
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    written = [event(detail={"path": "a\nb \udcff ü"}), event("created", pod="p"), event("billed", usd=1.5)]
    for e in written:
        ledger.append(e)
    assert list(ledger.events()) == written
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_torn_tail_is_ignored_and_swallows_no_later_line(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(event())
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        torn_is_whole = cut == len(whole) - 1  # only its newline is missing
        assert len(list(ledger.events())) == 1 + torn_is_whole
        ledger.append(event("created"))
        assert [e.event for e in ledger.events()][-1] == "created"
        assert len(list(ledger.events())) == 2 + torn_is_whole


def test_lines_of_many_processes_stay_whole(tmp_path: Path):
    script = """
import sys
from pathlib import Path
from podctl.ledger import Event, Ledger
for i in range(50):
    Ledger(Path(sys.argv[1])).append(Event(i, "intent", f"{sys.argv[2]}-{i}", "p", "local", "x" * 3000))
"""
    path = tmp_path / "ledger.jsonl"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(n)], env=env) for n in range(4)]
    assert [w.wait(60) for w in writers] == [0] * 4
    assert len(Ledger(path).runs()) == 200
    assert len(path.read_text().splitlines()) == 200


def test_what_a_later_version_writes_does_no_harm(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(event())
    with path.open("a") as f:
        f.write(json.dumps({"schema": 99, "run": "a-1", "event": "gone", "t": 2}) + "\n")
        f.write(json.dumps({**vars(event("paused")), "detail": {}, "new_field": 1}) + "\n")
        f.write('[]\n3\n\n{"event": "intent"}\n')
    (run,) = ledger.runs().values()
    assert run.last_event == "intent"


kinds = st.sampled_from([*sorted(events.EVENTS), "unheard-of"])
many = st.lists(st.builds(event, kinds, st.sampled_from(["a-1", "b-2"]), st.floats(0, 1e9), usd=st.floats(0, 100)))


@given(many, many)
def test_folding_is_pure_and_every_run_is_the_sum_of_its_own_events(first: list[Event], then: list[Event]):
    runs = fold([*first, *then])
    assert runs == fold([*first, *then])
    for id_, run in runs.items():
        own = [e for e in [*first, *then] if e.run == id_ and e.event in events.EVENTS]
        assert fold(own) == {id_: run}
        assert run.usd_billed == pytest.approx(sum(e.usd for e in own if e.event == "billed"))
        assert run.attempts == sum(e.event == "launched" for e in own)
        assert run.created_at == own[0].t


def test_a_line_that_must_stand_once_stands_once(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(event(), event("launched"))
    for _ in range(2):
        ledger.append(event("stopped", t=2.0), event("billed", usd=3.0), unless=lambda runs: runs["a-1"].gone_at)
    assert ledger.runs()["a-1"].usd_billed == 3.0


def test_a_run_that_goes_on_after_its_end_is_not_gone():
    kinds_then = [
        "intent",
        "created",
        "started",
        "ready",
        "launched",
        "stopped",
        "billed",
        "intent",
        "started",
        "launched",
    ]
    (run,) = fold(event(k, t=float(i)) for i, k in enumerate(kinds_then)).values()
    assert run.gone_at is None
    assert run.attempts == 2


def test_the_newest_run_is_of_this_project_and_name():
    runs = [*fold([event(run="a-1", t=1), event(run="a-2", t=2)]).values()]
    other = Event(9.0, "intent", "b-9", "project-2", "local", "a")
    runs += fold([other]).values()
    assert newest(runs, "project-1", "a").id == "a-2"
    assert newest(runs, "project-1", "b") is None
    assert newest(runs, "project-2").id == "b-9"


def test_only_one_decides_about_a_name_and_a_dead_ones_lock_is_no_lock(tmp_path: Path):
    with starting(tmp_path, "p", "a"):
        with pytest.raises(Busy), starting(tmp_path, "p", "a"):
            pass
        with starting(tmp_path, "p", "b"):
            pass
    with starting(tmp_path, "p", "a"):  # the file is still there, nobody holds it
        pass


def test_a_full_disk_is_said_before_anything_is_started(cli, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        (small / "ledger.jsonl").write_text("")
        (small / "locks").mkdir()
        (small / "filler").write_bytes(b"x" * 4096)
        fill = f"cat /dev/zero > '{small}/more'"
        assert subprocess.run(["sh", "-c", fill], capture_output=True).returncode != 0
        with pytest.raises(MissingHere, match="disk is full"):
            Ledger(small / "ledger.jsonl").append(event())
        assert (small / "ledger.jsonl").read_bytes() == b""
        done = cli("train", "-c", cli.experiment(), "--local", env={"PODCTL_HOME": str(small)})
        assert done.code == 9, done
        assert "PODCTL_HOME" in done.err
        assert not (small / "volume").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_launch_that_was_undone_does_not_stand_before_a_run_that_lives():
    def event(t: float, kind: str, run: str) -> Event:
        return Event(t, kind, run, "p", "ssh", "tiny", pod="x")

    lived = [event(1, kind, "one") for kind in ("intent", "created", "ready", "launched")]
    undone = [event(2, kind, "two") for kind in ("intent", "created", "gone")]
    assert newest(fold([*lived, *undone]).values(), "p").id == "one"
    assert newest(fold(undone).values(), "p").id == "two"
