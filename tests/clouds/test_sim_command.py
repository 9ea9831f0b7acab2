"""`podctl sim`: what it prints for another terminal, what it says later, and that it leaves nothing behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cloud import Api, wish
from support.pod import is_alive, wait_until

from podctl.errors import BadInput
from podctl.sim.catalogue import Catalogue
from podctl.sim.foreground import read_stock

ROOT = Path(__file__).parents[2]


class Shown:
    """`podctl sim …` in the foreground of nobody."""

    def __init__(self, root: Path, *words: str) -> None:
        self.out, self.err = root / "out", root / "err"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(root), "RUNPOD_API_KEY": "rpa_a_real_one"}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "podctl", "sim", *words], env=env, cwd=root, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    @property
    def url(self) -> str:
        return str(self.events[0]["url"])

    account_key = property(lambda self: self.events[0]["env"]["RUNPOD_API_KEY"])


@contextlib.contextmanager
def shown(root: Path, *words: str) -> Iterator[Shown]:
    here = Shown(root, *words)
    try:
        yield here
    finally:
        here.process.kill()
        here.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_says_what_becomes_of_pods_and_ends_them_with_itself(tmp_path, number):
    with shown(tmp_path, "--json", "--rate", "60", "--volume", "data@US-TX-3", "--stock", "L40S@US-TX-3=1") as here:
        wait_until(lambda: b"\n" in here.out.read_bytes(), "the exports")
        api = Api(here)
        script = 'echo $$ >"$AT/pid"; exec sleep 1000'
        volume = here.events[0]["volumes"][0]
        assert volume["data_center"] == "US-TX-3"
        id = api.post(
            "/pods", wish(gpu="NVIDIA L40S", volume=volume["id"], env={"AT": str(tmp_path)}, args=f"sh -c '{script}'")
        ).json["id"]
        wait_until(lambda: any(e.get("status") == "RUNNING" for e in here.events), "RUNNING is said")
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")
        pid = int((tmp_path / "pid").read_text())
        assert (
            api.post("/pods", wish(name="pc-b", gpu="NVIDIA L40S", dataCenterIds=["US-TX-3"])).status == 400
        )  # one was all there were
        here.process.send_signal(number)
        assert here.process.wait(20) == 0
        assert not is_alive(pid)
        assert here.events[-1]["event"] == "end"
        assert here.events[-1]["usd"] > 0
        assert next(e["id"] for e in here.events if e["event"] == "pod") == id
        assert "rpa_a_real_one" not in here.out.read_text() + here.err.read_text()
        assert not list(tmp_path.glob("podctl-sim-*"))


def test_killed_itself_it_leaves_no_pod_running(tmp_path):
    with shown(tmp_path, "--json", "--rate", "600") as here:
        wait_until(lambda: b"\n" in here.out.read_bytes(), "the exports")
        script = 'setsid sleep 1000 & echo $! >"$AT/pid"; exec sleep 1000'
        Api(here).post("/pods", wish(env={"AT": str(tmp_path)}, args=f"sh -c '{script}'"))
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")
        pid = int((tmp_path / "pid").read_text())
        here.process.kill()
        wait_until(lambda: not is_alive(pid), "its pod ends")


def test_without_json_the_exports_are_data_and_the_rest_is_talk(tmp_path):
    with shown(tmp_path, "--volume", "data") as here:
        wait_until(lambda: "Ctrl-C" in here.err.read_text(), "how to end it")
        lines = here.out.read_text().splitlines()
        assert all(line.startswith("export ") for line in lines)
        assert any(line.startswith("export PODCTL_RUNPOD_API_URL=http://127.0.0.1:") for line in lines)
        assert "data" in here.err.read_text()


def test_a_port_that_is_taken_is_said_and_nothing_is_left(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with shown(tmp_path, "--port", str(s.getsockname()[1])) as here:
            assert here.process.wait(20) == 2
    assert "in use" in here.err.read_text()
    assert "--port" in here.err.read_text()


def test_stock_is_read_by_short_names_and_a_wrong_word_names_the_right_ones():
    catalogue = Catalogue.shipped()
    stock = read_stock(["4090=3", "l40s@US-KS-2=0"], catalogue)
    assert [n for sizes in stock["NVIDIA GeForce RTX 4090"].values() for n in sizes] == [3]
    assert stock["NVIDIA L40S"]["US-KS-2"] == [0]
    assert sum(stock["NVIDIA L40S"]["EU-RO-1"]) > 0
    for word in ("zzz=1", "4090", "4090=many", "4090@MOON=1", "=1"):
        with pytest.raises(BadInput) as e:
            read_stock([word], catalogue)
        assert "RTX 4090" in str(e.value.hint)
