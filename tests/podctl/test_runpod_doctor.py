"""`podctl doctor` for RunPod: what the account is like becomes findings, each with its fix; nothing is rented."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.podctl_cli import Cli
from support.runpod import ACCOUNT, KEY, Cloud, problem

from podctl.errors import BadInput, NoCapacity, NoRights
from podctl.findings import BAD, OK, WARN, Finding, verdict
from podctl.pods import Balance, Offer, PodSpec, Volume
from podctl.providers.runpod.checkup import Seen, judge, look
from podctl.providers.runpod.shapes import gone

SPEC = PodSpec(gpu=("4090",), volume="data")
SEEN = Seen(
    source=".runpod.env",
    key=True,
    balance=Balance(20, 0, 80),
    volume=Volume("v1", "data", 50, "EU-RO-1"),
    offers=(Offer("runpod", "RTX 4090", 1, 0.69, "EU-RO-1", "x", "low"), Offer("runpod", "L40S", 1, 0.86, "EU-RO-1")),
)
POD = replace(gone("p"), state="running", name="pc-ann-x", usd_per_hour=0.69)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "home"))


def unwell(seen: Seen) -> list[Finding]:
    return [f for f in judge(seen, SPEC) if f.level != OK]


def test_an_account_that_has_all_of_it_is_well():
    assert unwell(SEEN) == []
    texts = [f.text for f in judge(SEEN, SPEC)]
    assert "volume data (v1), 50 GB in EU-RO-1" in texts
    assert "1 × RTX 4090 in EU-RO-1 for $0.69 an hour, stock low; 1 more after it" in texts


@pytest.mark.parametrize(
    ("changes", "level", "about", "said", "code"),
    [
        ({"pods": NoRights("no", "make a key")}, BAD, "key", "no", 3),
        ({"shadows": True}, WARN, "key", "hides another", 0),
        ({"pods": (POD,)}, WARN, "pods", "$0.69 an hour: pc-ann-x (running)", 0),
        ({"balance": Balance(0.5, 0, 80)}, BAD, "balance", "$0.50, spending $0.00 an hour of at most $80.00: too", 3),
        ({"balance": Balance(50, 79.8, 80)}, WARN, "balance", "would pass the spend limit", 0),
        (
            {"volume": BadInput("there is no volume 'data'", "make one"), "offers": ()},
            BAD,
            "volume",
            "there is no v",
            2,
        ),
        ({"volume": None}, WARN, "volume", "no network volume", 0),
        ({"offers": BadInput("RunPod has no GPU 'X'", "did you")}, BAD, "gpu", "no GPU 'X'", 2),
        ({"offers": NoCapacity("none free", "try later")}, WARN, "gpu", "none free", 0),
    ],
)
def test_what_is_not_well_is_said_with_its_fix(changes: dict, level: str, about: str, said: str, code: int):
    (finding,) = unwell(replace(SEEN, **changes))
    assert (finding.level, finding.about, finding.where) == (level, about, "runpod")
    assert said in finding.text
    assert finding.fix
    assert verdict([finding]) == code


def test_what_a_spot_pod_is_is_said():
    (finding,) = [f for f in judge(SEEN, replace(SPEC, spot=True)) if f.level != OK]
    assert (finding.level, finding.about) == (WARN, "spot")
    assert "at any moment" in finding.text


def test_looking_asks_and_changes_nothing():
    cloud = Cloud()
    cloud.volume("v1", "data", "EU-RO-1")
    seen = look(ACCOUNT, SPEC, cloud.provider())
    assert [f for f in judge(seen, SPEC) if f.level == BAD] == []
    assert {r.method for r in cloud.requests if r.url.path != "/graphql"} == {"GET"}
    assert cloud.faults == []


def test_a_key_that_may_not_list_pods_is_asked_nothing_more():
    cloud = Cloud()
    cloud.amiss["any"] = [problem(403, "access denied")] * 9
    (finding,) = judge(look(ACCOUNT, SPEC, cloud.provider()), SPEC)
    assert (finding.level, finding.exit_code) == (BAD, 3)
    assert "pod's own key" in finding.fix
    assert len(cloud.requests) == 1


def test_each_part_that_is_not_told_leaves_the_others():
    cloud = Cloud()
    cloud.amiss["GET /network-volumes"] = [problem(500, "x")] * 9
    cloud.amiss["POST graphql"] = [httpx.Response(410)]
    findings = list(judge(look(ACCOUNT, SPEC, cloud.provider()), SPEC))
    assert [(f.about, f.level) for f in findings if f.level != OK] == [("volume", BAD)]
    assert "does not tell" in next(f.text for f in findings if f.about == "balance")


def test_the_command_says_where_to_make_a_key_and_asks_for_no_ssh_key(cli: Cli):
    path = cli.experiment(provider="runpod", gpu="4090")
    done = cli("doctor", "-c", path, env={"HOME": str(cli.home)})
    assert done.code == 3, done
    assert "✗ runpod: there is no RUNPOD_API_KEY" in done.stdout
    assert "console.runpod.io" in done.stdout
    assert "there is no SSH key" not in done.stdout
    nobody = {"RUNPOD_API_KEY": KEY, "PODCTL_RUNPOD_API_URL": "http://api.example/v2"}
    done = cli("doctor", "-c", path, env=nobody)
    assert done.code == 2, done
    assert "in the clear" in done.stdout
    assert KEY not in done.stdout + done.err
