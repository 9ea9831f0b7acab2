"""What is said of a run whose pod is no more, by what came home of it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from podctl.plan import UNSEEN
from podctl.pods import Run
from podctl.runs import last_known, results_dir
from remote.rundir import FAILED, SUCCEEDED, Status

SAID = b"hello\nbye\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run("demo-700101-000000-beef", "p", "demo", "runpod", "pc-x", 0.0, pod="p0", launched_at=1.0)
    return replace(run, detail={"project_root": str(tmp_path), "socket": "s", "rents": True, "volume": "v"})


def came_home(run: Run, state: str, log: bytes | None) -> None:
    root = results_dir(run)
    root.mkdir(parents=True)
    status = Status(
        run.id, 1, "b", state, "train", 7, started_at=2.0, heartbeat_at=9.0, ended_at=9.0, log_bytes=len(SAID)
    )
    (root / "status.json").write_text(json.dumps(asdict(status)))
    if log is not None:
        (root / "log").write_bytes(log)


def test_a_success_that_is_here_to_its_last_byte_is_one(run: Run):
    came_home(run, SUCCEEDED, SAID)
    assert last_known(run, 10.0).state == SUCCEEDED


@pytest.mark.parametrize("log", [SAID[:-1], b"", None])
def test_a_success_whose_log_is_not_whole_here_has_more_on_its_volume(run: Run, log: bytes | None):
    came_home(run, SUCCEEDED, log)
    assert last_known(run, 10.0).state == UNSEEN


def test_a_failure_is_one_however_much_of_it_is_here(run: Run):
    came_home(run, FAILED, None)
    assert last_known(run, 10.0).state == FAILED
