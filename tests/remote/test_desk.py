"""A run is begun by one order, which may be given twice; what fails leaves no session and no secret."""

import concurrent.futures
import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pod import Pod, wait_until

from remote.rundir import Job

FOREVER = 'echo "begun $TOKEN"; exec sleep 60'


class Desk:
    """Orders for one pod, and their answers."""

    def __init__(self, pod: Pod, sockets: Path) -> None:
        self.pod, self.sockets = pod, sockets

    def order(self, command: str = FOREVER, **changes: Any) -> dict[str, Any]:
        pod = self.pod
        job = Job(pod.run_id, "demo", str(pod.source), str(pod.tool), ["bash", "-c", command], [], {}, 1.0, 5.0)
        env = {"PODCTL_VOLUME": str(pod.volume.root), "PODCTL_DISK": str(pod.disk), "PODCTL_PYTHON": sys.executable}
        secrets_file = str(self.sockets / "private" / f"{pod.run_id}.json")
        return {
            "run_id": pod.run_id, "run_dir": str(pod.run), "disk": str(pod.disk), "token": secrets.token_hex(8),
            "files": {"job.json": json.dumps(dataclasses.asdict(job))}, "attempt_before": 0, "tree": "",
            "source_dir": str(pod.source), "secrets": {"TOKEN": "a-secret-value"}, "secrets_file": secrets_file,
            "socket": str(self.sockets / "own" / f"{pod.run_id[-4:]}.sock"),
            "env": {**env, "PODCTL_SECRETS": secrets_file},
            "runner": ["bash", str(pod.tool / "remote" / "run.sh"), str(pod.run)], "beside": False, **changes,
        }  # fmt: skip

    def start(self, order: dict[str, Any], **env: str) -> dict[str, Any]:
        argv = [sys.executable, "-I", "-S", str(self.pod.tool / "remote" / "desk.py"), "start"]
        done = subprocess.run(
            argv, input=json.dumps(order).encode(), env={**os.environ, **env}, stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    sockets = Path(tempfile.mkdtemp(prefix="pc", dir="/tmp"))
    with Pod(tmp_path) as pod:
        try:
            yield Desk(pod, sockets)
        finally:
            for socket in (sockets / "own").glob("*.sock"):
                subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, check=False)
            wait_until(lambda: not pod.status or pod.status.is_final or not alive(pod), "its runner ended")
            shutil.rmtree(sockets, ignore_errors=True)


def alive(pod: Pod) -> bool:
    return bool(pod.control("status").get("lost")) is False


def test_an_order_that_is_given_twice_begins_one_attempt(desk: Desk):
    order = desk.order()
    assert desk.start(order) == {"ok": True}
    assert desk.start(order) == {"ok": True, "again": True}
    desk.pod.wait_for("begun ***")
    assert desk.pod.status is not None
    assert desk.pod.status.attempt == 1
    other = desk.start(desk.order())
    assert (other["ok"], other["busy"]) == (False, True), "another order for a run that lives is refused"
    assert "is running already" in other["error"]


def test_an_order_given_again_after_its_run_ended_begins_nothing(desk: Desk):
    order = desk.order("echo once >> $PODCTL_RUN_DIR/times")
    assert desk.start(order) == {"ok": True}
    desk.pod.wait_for_state("succeeded")
    wait_until(lambda: not session_lives(order), "its session ended")
    assert desk.start(order) == {"ok": True, "again": True}
    assert desk.pod.status is not None
    assert desk.pod.status.attempt == 1
    assert (desk.pod.run.root / "times").read_text() == "once\n"
    resumes = desk.order("echo twice >> $PODCTL_RUN_DIR/times", attempt_before=1, socket=order["socket"])
    assert desk.start(resumes) == {"ok": True}, "another order is another attempt"
    wait_until(lambda: (desk.pod.run.root / "times").read_text() == "once\ntwice\n", "its second attempt")


def session_lives(order: dict[str, Any]) -> bool:
    argv = ["tmux", "-S", order["socket"], "has-session", "-t", order["run_id"]]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_of_two_laptops_at_the_same_moment_one_begins(desk: Desk):
    orders = [desk.order(), desk.order(run_id="other-261121-080000-beef")]
    orders[1] |= {"run_dir": str(desk.pod.volume.run(orders[1]["run_id"])), "socket": orders[0]["socket"] + "2.sock"}
    orders[1]["runner"] = [*orders[1]["runner"][:-1], orders[1]["run_dir"]]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(desk.start, orders))
    assert sorted(a["ok"] for a in answers) == [False, True], answers
    (refused,) = (a for a in answers if not a["ok"])
    assert "is going on this machine" in refused["error"]
    assert "--queue" in refused["hint"]


def test_without_tmux_there_is_one_sentence_and_no_secret_stays(desk: Desk, tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tmux").write_text("#!/bin/sh\necho no server for you >&2; exit 1\n")
    (tmp_path / "bin" / "tmux").chmod(0o755)
    answer = desk.start(desk.order(), PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert answer["error"] == "tmux could not start the run: no server for you"
    assert not list((desk.sockets / "private").iterdir())


def test_secrets_are_for_their_owner_alone_and_not_in_the_session(desk: Desk):
    order = desk.order(runner=["sleep", "60"])
    assert desk.start(order, TOKEN="a-secret-value")["ok"]
    path = Path(order["secrets_file"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    shown = subprocess.check_output(["tmux", "-S", order["socket"], "show-environment", "-g"])
    assert b"a-secret-value" not in shown
    assert b"TOKEN" not in shown


def test_a_private_folder_that_is_somebody_elses_is_refused(desk: Desk):
    (desk.sockets / "own").symlink_to("/tmp")
    answer = desk.start(desk.order())
    assert "is not a folder of yours" in answer["error"]


def test_an_earlier_attempts_account_stays_beside_the_new_one(desk: Desk):
    desk.pod.run.job.write_text("{}")
    order = desk.order("true", attempt_before=3)
    assert desk.start(order)["ok"]
    assert (desk.pod.run.root / "job.json.3").read_text() == "{}"
    desk.pod.wait_for_state("succeeded")
