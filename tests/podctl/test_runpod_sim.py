"""The RunPod provider against the emulated RunPod: over sockets, through everything that one is known to do amiss."""

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from pydantic import SecretStr
from support.openapi import OpenApi
from support.runpod import ManualClock

from podctl.errors import BadInput, NoCapacity, NoRights, PodctlError, ProviderUnclear
from podctl.ownkey import own_key
from podctl.pods import Boot, Offer, Pod, PodSpec
from podctl.providers.runpod.account import Account
from podctl.providers.runpod.provider import RunPodProvider
from podctl.sim.faults import Fault
from podctl.sim.sim import Sim

SPEC = PodSpec(gpu=("4090",), data_centers=("US-KS-2",))
OFFER = Offer("runpod", "RTX 4090", 1, 0.44, "US-KS-2", "NVIDIA GeForce RTX 4090")
NAME = "pc-ann-demo-261121-120000-abcd"
OFFICIAL = OpenApi.runpod()


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "home"))


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Sim]:
    with Sim(tmp_path / "cloud", backend="none") as sim:
        yield sim
    faults = [
        f"{e.method} {e.path}: {fault}"
        for e in sim.requests
        if e.path.startswith("/v2/") and "cursor=" not in e.query
        for fault in OFFICIAL.request_faults(e.method, e.path, e.query, e.body, e.headers)
    ]
    assert faults == [], "every request is as the official description says"


def provider_of(sim: Sim, key: str = "") -> RunPodProvider:
    """The same for a key: reading this machine's certificates takes longer than most of these tests."""
    known = _providers.setdefault(sim, {})
    if key not in known:
        account = Account(SecretStr(key or sim.account_key), api_url=f"{sim.url}/v2", graphql_url=f"{sim.url}/graphql")
        known[key] = RunPodProvider(account, ManualClock())
    return known[key]


_providers: WeakKeyDictionary[Sim, dict[str, RunPodProvider]] = WeakKeyDictionary()


def made(sim: Sim, spec: PodSpec = SPEC, offer: Offer = OFFER) -> Pod:
    return provider_of(sim).create(NAME, offer, spec, Boot(public_key="ssh-ed25519 AAAA me"))


def up(sim: Sim) -> Pod:
    pod = made(sim)
    sim.advance(5)
    return provider_of(sim).get(pod.id)


def test_a_pods_whole_life(sim: Sim):
    provider = provider_of(sim)
    volume = sim.create_volume("data", 50, "US-KS-2")
    spec = replace(SPEC, gpu=("H200", "4090"), data_centers=(), volume="data")
    with pytest.raises(BadInput, match="H200 is not to be had in US-KS-2, where the volume data is"):
        provider.offers(replace(spec, gpu=("H200",)))
    (offer,) = provider.offers(spec)
    assert replace(offer, stock="") == OFFER
    pod = provider.create(NAME, offer, spec, Boot())
    assert (pod.state, pod.volume, pod.usd_per_hour) == ("starting", volume.id, 0.44)
    assert sim.bill() < 0.001
    sim.advance(5)
    pod = provider.get(pod.id)
    assert pod.state == "running"
    assert pod.ssh is not None
    assert pod.started_at is not None
    assert pod.created_at is not None
    assert pod.created_at <= pod.started_at
    assert [p.id for p in provider.list()] == [pod.id]
    first = pod.ssh
    provider.stop(pod.id)
    assert provider.get(pod.id).state == "stopped"
    assert provider.start(pod.id).ssh is None
    sim.advance(5)
    again = provider.get(pod.id)
    assert again.ssh is not None
    assert again.ssh.port != first.port
    sim.advance(3600)
    billed = provider.billed(pod.id, pod.created_at)
    assert billed == pytest.approx(sim.bill(pod.id), abs=0.01)
    balance = provider.balance()
    assert balance is not None
    assert balance.usd == pytest.approx(100 - sim.bill(), abs=0.01)
    provider.terminate(pod.id)
    assert provider.get(pod.id).state == "gone"
    assert provider.list() == []


@pytest.mark.parametrize(
    ("name", "kind", "pods"),
    [
        ("sold-out", NoCapacity, 0),
        ("sold-out-late", NoCapacity, 0),
        ("spend-limit", NoCapacity, 0),
        ("no-balance", NoRights, 0),
        ("error-after-create", ProviderUnclear, 1),
        ("cut-after-create", ProviderUnclear, 1),
        ("hang-after-create", ProviderUnclear, 1),
        ("error-before-create", ProviderUnclear, 0),
        ("server-error", ProviderUnclear, 0),
        ("cloudflare", ProviderUnclear, 0),
        ("cloudflare-after", ProviderUnclear, 1),
    ],
)
def test_each_way_that_a_create_fails_is_told_and_happens_once(sim: Sim, name: str, kind: type, pods: int):
    sim.faults.add(Fault(name, times=1, seconds=0.1))
    with pytest.raises(PodctlError) as e:
        made(sim)
    assert isinstance(e.value, kind)
    assert ("may have been made" in e.value.message) == (kind is ProviderUnclear)
    assert [p.name for p in provider_of(sim).list()] == [NAME] * pods, "its name tells whether it was"
    assert len([r for r in sim.requests if (r.method, r.path) == ("POST", "/v2/pods")]) == 1


def test_sold_out_machines_are_no_offers(sim: Sim):
    sim.faults.add(Fault("sold-out", gpu="NVIDIA GeForce RTX 4090"))
    with pytest.raises(NoCapacity) as e:
        provider_of(sim).offers(SPEC)
    assert "L40S" in e.value.hint
    assert [o.gpu for o in provider_of(sim).offers(replace(SPEC, gpu=("4090", "L40S")))] == ["L40S"]


@pytest.mark.parametrize("name", ["server-error", "cloudflare", "rate-limited"])
def test_a_read_that_fails_a_while_is_read_in_the_end(sim: Sim, name: str):
    sim.faults.add(Fault(name, times=2, seconds=3))
    provider = provider_of(sim)
    assert provider.offers(SPEC)
    assert len([r for r in sim.requests if r.status >= 400]) == 2


def test_a_create_waits_for_its_turn(sim: Sim):
    sim.faults.add(Fault("rate-limited", times=1, seconds=7, method="POST"))
    assert made(sim).state == "starting"
    assert len(sim.pods()) == 1


@pytest.mark.parametrize("text", [0, 1])
def test_a_full_host_is_told_in_both_of_its_ways(sim: Sim, text: int):
    pod = up(sim)
    provider_of(sim).stop(pod.id)
    sim.faults.add(Fault("host-full", text=text))
    with pytest.raises(NoCapacity, match="stopped on has no GPU free"):
        provider_of(sim).start(pod.id)


@pytest.mark.parametrize(
    ("name", "state"),
    [("pod-error", "broken"), ("no-machine", "starting"), ("unknown-status", "starting"), ("unknown-keys", "running")],
)
def test_each_odd_pod_has_a_state(sim: Sim, name: str, state: str):
    sim.faults.add(Fault(name))
    pod = made(sim)
    if name != "unknown-status":
        sim.advance(5)
    assert provider_of(sim).get(pod.id).state == state


def test_a_new_pod_that_is_not_told_of_is_gone_until_it_is(sim: Sim):
    sim.faults.add(Fault("hidden-pod", reads=2))
    pod = made(sim)
    states = [provider_of(sim).get(pod.id).state for _ in range(4)]
    assert states[0] == "gone"
    assert states[-1] != "gone", "who has just made it looks again"


def test_what_runpod_says_and_does_not_do_is_seen_by_a_second_look(sim: Sim):
    pod = up(sim)
    sim.faults.add(Fault("stop-ignored"), Fault("delete-ignored"))
    provider = provider_of(sim)
    provider.stop(pod.id)
    assert provider.get(pod.id).state == "running"
    provider.terminate(pod.id)
    assert provider.get(pod.id).state != "gone"


@pytest.mark.parametrize("name", ["server-error", "cloudflare", "cloudflare-after"])
def test_a_change_is_looked_at_and_asked_again(sim: Sim, name: str):
    pod = up(sim)
    provider = provider_of(sim)
    for change, method in ((provider.stop, "POST"), (provider.start, "POST"), (provider.terminate, "DELETE")):
        sim.faults.add(Fault(name, times=1, method=method))
        change(pod.id)
    assert sim.pods() == []


def test_lists_that_are_old_or_in_pages_are_read(sim: Sim):
    sim.faults.add(Fault("paged", limit=2), Fault("unknown-keys"))
    provider = provider_of(sim)
    names = [f"{NAME}{n}" for n in range(5)]
    for name in names:
        provider.create(name, OFFER, SPEC, Boot())
    assert sorted(p.name for p in provider.list()) == names
    for n in range(5):
        sim.create_volume(f"data{n}")
    assert len(provider.volumes()) == 5
    assert len(provider.offers(SPEC)) == 1


def test_a_log_that_is_down_is_no_empty_log(sim: Sim):
    pod = up(sim)
    sim.faults.add(Fault("logs-down"))
    with pytest.raises(ProviderUnclear):
        provider_of(sim).log_lines(pod.id)


def test_without_the_old_api_there_is_no_balance_and_no_spot(sim: Sim):
    sim.faults.add(Fault("graphql-gone"))
    assert provider_of(sim).balance() is None
    with pytest.raises(BadInput, match="retired") as e:
        provider_of(sim).offers(replace(SPEC, spot=True))
    assert "spot: false" in e.value.hint


def test_a_spot_pod_is_rented_and_read_like_any(sim: Sim):
    volume = sim.create_volume("data", 50, "US-KS-2")
    spec = replace(SPEC, spot=True, volume="data", gpu_count=2)
    (offer,) = provider_of(sim).offers(spec)
    assert offer.spot
    assert offer.usd_per_hour < 2 * 0.44
    pod = provider_of(sim).create(NAME, offer, spec, Boot(env={"A": '"\\é\n'}, start_script="exec sleep 1"))
    sim.advance(5)
    there = provider_of(sim).get(pod.id)
    assert (there.state, there.gpu_count, there.volume) == ("running", 2, volume.id)
    assert sim.pod().wish.env["A"] == '"\\é\n'
    assert there.usd_per_hour == pytest.approx(offer.usd_per_hour)


def test_keys_that_are_none_or_another_pods(sim: Sim):
    pod = up(sim)
    with pytest.raises(NoRights, match="does not accept the key"):
        provider_of(sim, "rpa_wrong").list()
    with pytest.raises(NoRights, match="may not list the pods") as e:
        provider_of(sim, sim.cloud.pods[pod.id].key).list()
    assert "a pod's own key" in e.value.hint
    assert provider_of(sim, sim.cloud.pods[pod.id].key).balance() is None


def test_a_volume_is_made_and_found(sim: Sim):
    provider = provider_of(sim)
    volume = provider.create_volume("speech", 20, "eu-ro-1")
    assert volume in provider.volumes()
    with pytest.raises(BadInput, match="CA-MTL-3 has no network volumes"):
        provider.create_volume("speech", 20, "CA-MTL-3")


def test_a_pod_that_really_runs_is_entered_by_our_own_key(tmp_path: Path):
    key, public = own_key()
    script = 'echo "said at boot: $(basename "$0")"\nexec "$PODCTL_START"\n'
    with Sim(tmp_path / "cloud") as sim:
        volume = sim.create_volume("data", 50, "US-KS-2")
        provider = provider_of(sim)
        made = provider.create(NAME, OFFER, replace(SPEC, volume="data"), Boot(public, start_script=script))
        sim.advance(5)
        deadline, pod = threading.Event(), provider.get(made.id)
        for _ in range(200):
            pod, lines = provider.get(made.id), sim.log(made.id)
            if pod.ssh and "ready to use" in lines and entered(pod, key).returncode != 255:
                break
            deadline.wait(0.05)
        assert provider.log_lines(made.id)[0] == "said at boot: podctl-boot"
        assert str(pod.volume_dir) == str(sim.volume_dir(volume.id)), "the answer says where it is mounted"
        assert pod.python, "an emulated pod names a Python"
        assert entered(pod, key).stdout == "0\n", "the pod's own key is known to its main process alone"
        provider.terminate(made.id)


def entered(pod: Pod, key: Path) -> "subprocess.CompletedProcess[str]":
    assert pod.ssh is not None
    options = [
        "-oStrictHostKeyChecking=no",
        "-oUserKnownHostsFile=/dev/null",
        "-oBatchMode=yes",
        "-oIdentitiesOnly=yes",
    ]
    where = ["-p", str(pod.ssh.port), "-i", str(key), f"{pod.ssh.user}@{pod.ssh.host}"]
    argv = ["ssh", "-F", "none", *options, *where, "env | grep -c RUNPOD_API_KEY"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)
