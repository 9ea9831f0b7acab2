"""What a person, a clock or a file may do to `podctl train` on a cloud: one sentence, what to type, nothing lost."""

import json
import threading
from pathlib import Path

import pytest
from support.podctl_cli import Cli, Done
from support.rented import CANARY, Rented

from podctl.sim.records import Timing, Wish
from podctl.sim.sim import Sim

pytestmark = pytest.mark.e2e


class Asked:
    """A project before a cloud that rents, but runs nothing: for what is refused before anything is rented."""

    def __init__(self, root: Path, sim: Sim) -> None:
        self.sim, self.cli = sim, Cli(root)
        self.cli.env |= sim.env() | {"HOME": str(root)}

    def refused(self, code: int, *words: str, env: dict[str, str] | None = None, **pod: object) -> Done:
        given = {"provider": "runpod", "gpu": ["4090"], "max_hours": 1, **pod}
        done = self.cli("train", "-c", self.cli.experiment(**given), "--yes", env=env)
        assert done.code == code, done
        assert done.err.count("✗") == 1, done
        assert all(word in done.err for word in ("→", *words)), done
        assert not [e for e in self.sim.requests if e.method == "POST" and e.path == "/v2/pods"]
        assert not (self.cli.home / "ledger.jsonl").exists()
        return done


@pytest.fixture
def asked(tmp_path: Path):
    with Sim(tmp_path / "sim", backend="none") as sim:
        asked = Asked(tmp_path, sim)
        yield asked
        asked.cli.close()


def test_without_a_key_one_hears_where_to_get_one(asked: Asked):
    del asked.cli.env["RUNPOD_API_KEY"]
    asked.refused(3, "RUNPOD_API_KEY", ".runpod.env")


def test_a_wrong_key_is_called_wrong_and_never_shown(asked: Asked):
    done = asked.refused(3, "does not accept the key", env={"RUNPOD_API_KEY": CANARY})
    assert CANARY not in done.err + done.stdout


def test_a_pods_own_key_in_the_environment_is_guessed_as_what_it_is(asked: Asked):
    with asked.sim._locked():
        pod = asked.sim.cloud.create(Wish("somebodys", "image", "NVIDIA GeForce RTX 4090"))
    asked.refused(3, "pod's own key", env={"RUNPOD_API_KEY": pod.key, "RUNPOD_POD_ID": pod.id})


def test_a_volume_where_no_such_gpu_is_names_those_that_are_there(asked: Asked):
    asked.sim.create_volume("far", data_center="US-TX-3")
    asked.refused(2, "US-TX-3", "L4", volume="far")


def test_a_gpu_that_does_not_exist_is_answered_with_the_nearest(asked: Asked):
    asked.refused(2, "RTX 4091", "4090", gpu=["RTX 4091"])


def test_keys_that_git_tracks_go_nowhere(asked: Asked):
    (asked.cli.project / ".runpod.env").write_text("RUNPOD_API_KEY=x\n")
    asked.cli.git("add", "-f", ".runpod.env")
    asked.refused(2, "git tracks .runpod.env", "git rm --cached")
    assert not asked.sim.requests


@pytest.mark.slow
def test_of_two_at_once_one_rents_and_the_other_is_told_so(tmp_path: Path):
    with Rented(tmp_path) as r:
        x = r.experiment("echo hello; sleep 1; echo bye")
        others: list[Done] = []

        def at_once() -> None:
            others.append(r.cli("train", "-c", x, "--yes", timeout=120))

        second = threading.Thread(target=at_once)
        r.at("boot", second.start)
        done = r.train(x)
        second.join()
        assert (done.code, [o.code for o in others]) == (0, [8]), f"{done!r}\n{others}"
        assert len(r.sim.pods(gone=True)) == 1
        r.check(done, ended_at=r.now)


@pytest.mark.slow
@pytest.mark.parametrize("day_s", [86400, -86400])
@pytest.mark.parametrize("phase", ["offers", "boot", "run"])
def test_a_laptops_clock_that_jumps_by_a_day_costs_nothing_and_is_not_billed(day_s: int, phase: str, tmp_path: Path):
    with Rented(tmp_path, rate=1.0, timing=Timing()) as r:
        ours = tmp_path / "clock"
        ours.write_text("0 0")
        r.cli.env["PODCTL_CLOCK_FILE"] = str(ours)
        r.at(phase, lambda: (ours.write_text(f"0 {day_s}"), None)[1])
        done = r.train(r.experiment("echo hello; sleep 2; echo bye"))
        assert done.code == 0, f"{done!r}\n{r.story()}"
        billed = sum(e["usd"] for e in r.cli.events() if e["event"] == "billed")
        assert abs(billed - r.sim.bill()) < 0.01, f"${billed} for what costs ${r.sim.bill()}\n{done!r}"
        r.check(done, ended_at=r.now)


@pytest.mark.slow
@pytest.mark.parametrize("day_s", [86400, -86400])
def test_what_a_failed_launch_cost_is_told_by_time_that_went_by_whatever_the_clock_says(day_s: int, tmp_path: Path):
    with Rented(tmp_path, rate=1.0, timing=Timing()) as r:
        ours = tmp_path / "clock"
        ours.write_text(f"0 {day_s}")
        r.cli.env["PODCTL_CLOCK_FILE"] = str(ours)
        r.at("arm", lambda: r.sim.kill_host(r.sim.pod()))
        done = r.train(r.experiment())
        assert done.code == 6, f"{done!r}\n{r.story()}"
        billed = sum(e["usd"] for e in r.cli.events() if e["event"] == "billed")
        assert abs(billed - r.sim.bill()) < 0.01, f"${billed} for what costs ${r.sim.bill()}\n{done!r}"


@pytest.mark.slow
def test_a_lost_ledger_rents_no_second_pod_and_the_run_comes_back(tmp_path: Path):
    with Rented(tmp_path) as r:
        x = r.experiment("echo hello; until [ -e $PODCTL_VOLUME/go ]; do sleep 0.1; done; echo bye")
        assert r.train(x, "--detach").code == 0
        (r.cli.home / "ledger.jsonl").unlink()
        pod = r.sim.pod()

        (told,) = r("pods", "--json").lines
        assert told["pod"] == pod.id
        assert told["is_ours"]
        done = r.train(x)
        assert done.code == 8, f"{done!r}\n{r.story()}"
        assert pod.id in done.err, done
        assert "recover" in done.err, done
        assert len(r.sim.pods(gone=True)) == 1

        assert r("recover", "-c", x).stdout.split() == list(r.begun())
        assert r.train(x).code == 8
        (r.sim.volume_dir(r.volume.id) / "go").touch()
        done = r("attach")
        assert done.code == 0, f"{done!r}\n{r.story()}"
        assert len(r.sim.pods(gone=True)) == 1
        assert len(r.begun()) == 1
        r.check(done, ended_at=r.now)
        assert json.loads(r("status", "--json").stdout)["state"] == "succeeded"
