"""The cloud's state machine: what a pod goes through, what is free, and the laws of the bill. No server, no process."""

import random
from dataclasses import dataclass

import pytest

from podctl.sim.cloud import Cloud, Refused
from podctl.sim.faults import Fault, Faults
from podctl.sim.meter import MONTH_S
from podctl.sim.records import ACTIONS, ERROR, EXITED, PROVISIONING, RUNNING, STARTING, TERMINATED, Timing, Wish

GPU = "NVIDIA GeForce RTX 4090"
PRICE = 0.44
STOCK = {GPU: {"US-KS-2": [2, 1]}, "NVIDIA L40S": {"EU-RO-1": [1]}}
SEEDS = range(15)


@dataclass
class HandClock:
    t: float = 1_000_000.0

    def __call__(self) -> float:
        return self.t


def cloud_with(*faults: Fault, **options) -> tuple[Cloud, HandClock]:
    clock = HandClock()
    book = Faults()
    book.add(*faults)
    options = {"stock": STOCK, "timing": Timing(), "balance_usd": 1000.0} | options
    return Cloud(clock, faults=book, **options), clock


def wish(**changes) -> Wish:
    return Wish(**({"name": "pc-a", "image": "i", "gpu": GPU, "ports": ("22/tcp",)} | changes))


def test_a_pod_goes_from_provisioning_to_running_and_is_gone_after_its_termination():
    cloud, clock = cloud_with()
    pod = cloud.create(wish())
    assert pod.status == PROVISIONING
    seen = []
    for _ in range(20):
        clock.t += 0.05
        cloud.settle()
        seen.append(pod.status)
    assert sorted(set(seen), key=seen.index) == [PROVISIONING, STARTING, RUNNING]
    cloud.terminate(pod.id)
    assert pod.status == TERMINATED
    with pytest.raises(Refused) as e:
        cloud.pod(pod.id)
    assert e.value.status == 404


def walk(cloud: Cloud, clock: HandClock, chance: random.Random, steps: int = 60):
    """Do what comes to mind; after each step what the cloud is now."""
    volume = cloud.create_volume("v", 10, "US-KS-2")
    for _ in range(steps):
        live = cloud.live()
        what = chance.choice(["create", "create", "wait", "wait", "act", "act", "act", "fill", "kill"])
        try:
            if what == "create":
                own = chance.choice([0, 50])
                cloud.create(wish(name=f"pc-{len(cloud.pods)}", count=chance.choice([1, 1, 2]), volume_gb=own,
                                  volume="" if own else chance.choice(["", volume.id])))  # fmt: skip
            elif what == "wait":
                clock.t += chance.choice([0.1, 1.0, 30.0, 3600.0])
            elif live and what == "act":
                cloud.act(chance.choice(live).id, chance.choice(["start", "stop", "restart", "terminate"]))
            elif live and what == "kill" and chance.random() < 0.2:
                cloud.kill_host(chance.choice(live).id)
        except Refused:
            pass
        cloud.settle()
        yield


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bill_never_falls_and_stands_still_for_what_is_gone(seed):
    cloud, clock = cloud_with(seed=seed)
    last: dict[str, float] = {}
    gone: dict[str, float] = {}
    for _ in walk(cloud, clock, random.Random(seed)):
        for pod in cloud.pods.values():
            bill = cloud.bill(pod.id)
            assert bill >= last.get(pod.id, 0.0)
            last[pod.id] = bill
            if pod.status == TERMINATED:
                assert bill == gone.setdefault(pod.id, bill)
    assert cloud.bill() == pytest.approx(sum(last.values()))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_free_and_what_is_rented_are_all_there_is(seed):
    cloud, clock = cloud_with(seed=seed)
    for _ in walk(cloud, clock, random.Random(seed)):
        for host in cloud.machines.hosts.values():
            used = sum(p.wish.count for p in cloud.pods.values() if p.host == host.id and p.is_paid_compute)
            assert host.free + used == host.size


@pytest.mark.parametrize("seed", SEEDS)
def test_time_that_goes_by_at_once_bills_as_time_that_goes_by_slowly(seed):
    bills = []
    for pieces in (1, 977):
        cloud, clock = cloud_with(Fault("restart-loop", seconds=7), seed=seed, balance_usd=3.0)
        chance = random.Random(seed)
        cloud.create(wish(volume_gb=chance.choice([0, 50])))
        cloud.create(wish(name="pc-b", count=1))
        for _ in range(pieces):
            clock.t += 8 * 3600 / pieces
            cloud.settle()
        bills.append(cloud.bill())
    assert bills[0] == pytest.approx(bills[1], abs=1e-9)
    assert bills[0] <= 3.0 + 1e-9


def test_a_running_pod_costs_its_price_by_the_second_from_its_creation():
    cloud, clock = cloud_with()
    pod = cloud.create(wish(disk_gb=100))
    clock.t += 1800
    disk = 100 * 0.10 * 1800 / MONTH_S
    assert cloud.bill(pod.id) == pytest.approx(PRICE / 2 + disk)


def test_a_stopped_pod_costs_its_own_disk_twice_over_and_nothing_on_a_network_volume():
    cloud, clock = cloud_with()
    volume = cloud.create_volume("v", 50, "US-KS-2")
    own, net = cloud.create(wish(volume_gb=100)), cloud.create(wish(name="pc-b", volume=volume.id))
    clock.t += 10
    for pod in (own, net):
        cloud.act(pod.id, "stop")
    before = {p.id: cloud.bill(p.id) for p in (own, net)}
    clock.t += MONTH_S
    assert cloud.bill(net.id) == before[net.id]
    assert cloud.bill(own.id) - before[own.id] == pytest.approx(100 * 0.20)


@pytest.mark.parametrize("status", [PROVISIONING, STARTING, RUNNING, EXITED, ERROR])
def test_an_action_that_is_not_legal_now_is_refused_and_changes_nothing(status):
    cloud, clock = cloud_with(*([Fault("pod-error")] if status == ERROR else []))
    pod = cloud.create(wish())
    clock.t += {PROVISIONING: 0.0, STARTING: 0.3}.get(status, 5.0)
    cloud.settle()
    if status == EXITED:
        cloud.act(pod.id, "stop")
    assert pod.status == status
    for action in {"start", "stop", "restart", "terminate"} - set(ACTIONS[status]):
        with pytest.raises(Refused) as e:
            cloud.act(pod.id, action)
        assert e.value.status == 409
        assert pod.status == status


def test_a_stopped_pod_goes_back_to_its_own_machine_or_nowhere():
    cloud, clock = cloud_with()
    pod = cloud.create(wish(count=2))
    clock.t += 5
    cloud.act(pod.id, "stop")
    host = pod.host
    other = cloud.create(wish(name="pc-b", count=2))
    assert other.host == host
    with pytest.raises(Refused, match="not enough free GPUs on the host machine") as e:
        cloud.act(pod.id, "start")
    assert e.value.status == 400
    cloud.terminate(other.id)
    cloud.act(pod.id, "start")
    assert pod.host == host


def test_a_balance_that_ends_stops_what_has_a_network_volume_and_terminates_the_rest():
    cloud, clock = cloud_with(balance_usd=2.0)
    volume = cloud.create_volume("v", 50, "US-KS-2")
    kept, lost = cloud.create(wish(volume=volume.id)), cloud.create(wish(name="pc-b", volume_gb=20))
    clock.t += 7 * 86400
    cloud.settle()
    assert (kept.status, lost.status) == (EXITED, TERMINATED)
    assert cloud.bill() == pytest.approx(2.0, abs=1e-6)


def test_an_hour_must_be_paid_for_before_anything_is_made():
    cloud, _ = cloud_with(balance_usd=PRICE - 0.01)
    with pytest.raises(Refused) as e:
        cloud.create(wish())
    assert e.value.status == 402
    assert not cloud.pods


def test_over_the_spend_limit_a_create_looks_sold_out():
    cloud, _ = cloud_with(spend_limit_usd=PRICE * 1.5)
    cloud.create(wish())
    with pytest.raises(Refused, match="no longer any instances") as e:
        cloud.create(wish())
    assert e.value.status == 400


def test_a_volume_ties_a_pod_to_its_data_center():
    cloud, _ = cloud_with()
    volume = cloud.create_volume("v", 50, "EU-RO-1")
    with pytest.raises(Refused, match="EU-RO-1") as e:
        cloud.create(wish(volume=volume.id, data_centers=("US-KS-2",)))
    assert e.value.status == 400
    with pytest.raises(Refused, match="no longer any instances"):
        cloud.create(wish(volume=volume.id))  # none of that GPU there
    assert cloud.create(wish(gpu="NVIDIA L40S", volume=volume.id)).data_center == "EU-RO-1"


def test_cuda_versions_are_numbers_not_decimals():
    cloud, _ = cloud_with(stock={GPU: {"EUR-IS-1": [1]}})  # 12.8 there
    for wrong in ({"min_cuda": "12.11"}, {"min_cuda": "13.0"}, {"cudas": ("12.6",)}):
        with pytest.raises(Refused, match="no longer any instances"):
            cloud.create(wish(**wrong))
    assert cloud.create(wish(min_cuda="12.2")).data_center == "EUR-IS-1"


def test_the_same_seed_makes_the_same_cloud():
    def ids(seed: int) -> list[str]:
        cloud, _ = cloud_with(seed=seed)
        return [cloud.create(wish()).id, *(h for h in cloud.machines.hosts)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_a_container_that_ends_is_started_again_and_billed_all_the_while():
    cloud, clock = cloud_with()
    pod = cloud.create(wish())
    clock.t += 5
    cloud.settle()
    for n in range(1, 5):
        cloud.effects.clear()
        cloud.container_ended(pod.id, pod.boot)
        clock.t += 16
        cloud.settle()
        assert [type(e).__name__ for e in cloud.effects] == ["Halt"]
        clock.t += 2
        cloud.settle()
        assert [type(e).__name__ for e in cloud.effects][:2] == ["Halt", "Launch"]
        assert pod.status == RUNNING
        assert cloud.bill(pod.id) >= PRICE * (5 + 18 * n) / 3600


def test_a_machine_that_dies_is_noticed_late_and_its_pod_is_billed_until_it_is_given_back():
    cloud, clock = cloud_with()
    pod = cloud.create(wish())
    clock.t += 5
    cloud.kill_host(pod.id)
    assert pod.status == RUNNING
    clock.t += 31
    cloud.settle()
    assert pod.status == ERROR
    before = cloud.bill(pod.id)
    clock.t += 60
    assert cloud.bill(pod.id) > before
    with pytest.raises(Refused):
        cloud.act(pod.id, "start")
    cloud.terminate(pod.id)
