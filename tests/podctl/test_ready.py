"""From a create call to the first real command: nothing that a provider says is believed alone."""

import contextlib
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from support.renter import KEY, HandClock, Renter

from podctl.boot import make_boot, parse_announced
from podctl.errors import PodGone, ProviderUnclear, Unreachable, Untrusted
from podctl.pods import Result, SshAddress
from podctl.ready import Unfit, wait_until_ready
from podctl.rented import RentedHost
from podctl.ui import Ui

LINE = f"podctl-boot 1 boot=0a1b2c3d dir=/dev/shm/podctl-guard key={KEY}"
LATER = "podctl-boot 1 boot=ffffffff dir=/dev/shm/podctl-guard key=ssh-ed25519 BBBB"


class Talking(Renter):
    """A provider whose pods have a log."""

    log = (LINE,)

    def log_lines(self, pod_id, *, since=None, tail=200):
        return self.log


class Far:
    """A machine that answers from a moment on, to whoever expects its key. `heard`: what it was told to run."""

    def __init__(self, clock: HandClock, from_s: float = 0.0, key: str = KEY, gpus: int = 1) -> None:
        self.clock, self.from_t, self.key, self.gpus = clock, clock.t + from_s, key, gpus
        self.heard: list[list[str]] = []

    def reach(self, pod):
        self.expected = pod.ssh.host_key
        return self

    def run(self, argv, **more):
        if self.clock.t < self.from_t:
            raise Unreachable("refused")
        if self.expected != self.key:
            raise Untrusted("another's key")
        self.heard.append(list(argv))
        return Result(0, "".join(f"GPU {i}: H100\n" for i in range(self.gpus)), "")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def wait(renter: Renter, far: Far, pod=None, **limits):
    pod = pod or renter.put("pc-a-x-700101-000000-beef", "running")
    return wait_until_ready(renter, pod, 1, Ui(), renter.clock, reach=far.reach, **limits)


def test_a_pod_is_ready_once_a_command_ran_to_the_announced_key(clock):
    ready = wait(Talking(clock), Far(clock, from_s=90))
    assert ready.pod.ssh.host_key == KEY
    assert ready.announced.guard_dir == PurePosixPath("/dev/shm/podctl-guard")
    assert 90 <= ready.boot_s < 100


def test_before_its_log_tells_a_key_nobody_connects(clock):
    renter, far = Talking(clock), Far(clock)
    renter.log = ()
    clock.after(30, lambda: setattr(renter, "log", (LINE,)))
    far.reach_before = far.reach
    reached = []
    far.reach = lambda pod: (reached.append(clock.t), far.reach_before(pod))[1]
    began = clock.t
    wait(renter, far)
    assert min(reached) - began >= 30


def test_a_stranger_at_a_stale_address_hears_nothing_and_is_waited_out(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "running")
    stranger, far = Far(clock, key="ssh-ed25519 STRANGER"), Far(clock)
    real = replace(pod.ssh, port=2222)
    clock.after(20, lambda: renter.pods.update({pod.id: replace(pod, ssh=real)}))
    ready = wait_until_ready(
        renter, pod, 1, Ui(), clock, reach=lambda p: (far if p.ssh.port == 2222 else stranger).reach(p)
    )
    assert ready.pod.ssh.port == 2222
    assert not stranger.heard


def test_without_its_gpus_a_pod_will_not_do_though_a_driver_gets_a_moment(clock):
    far = Far(clock, gpus=0)
    clock.after(20, lambda: setattr(far, "gpus", 1))
    assert wait(Talking(clock), far).boot_s >= 20
    with pytest.raises(Unfit, match="0 of 1 GPUs"):
        wait(Talking(clock), Far(clock, gpus=0))


def test_a_machine_that_never_comes_is_given_up_sooner_than_a_slow_image(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "starting")
    renter.pods[pod.id] = replace(pod, ssh=None)
    began = clock.t
    with pytest.raises(Unfit, match="no address"):
        wait(renter, Far(clock), pod)
    assert clock.t - began < 500
    with pytest.raises(Unfit, match="did not answer"):
        wait(renter, Far(clock), pod, no_machine_s=1e9)


def test_a_new_pod_that_is_not_found_yet_is_waited_for_and_an_old_one_is_gone(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "running")
    renter.hidden_until[pod.id] = clock.t + 60
    wait(renter, Far(clock), pod)
    renter.hidden_until[pod.id] = clock.t + 1000
    with pytest.raises(Unfit, match="gone again"):
        wait(renter, Far(clock), pod)


def test_a_provider_that_never_says_how_it_is_leaves_it_unclear(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "running")

    def silent(pod_id):
        raise ProviderUnclear("502")

    renter.get = silent
    with pytest.raises(ProviderUnclear, match="nobody says how"):
        wait(renter, Far(clock), pod)


def test_of_several_boots_the_newest_word_counts_and_noise_is_none():
    noise = ["", "podctl-boot", "podctl-boot 2 boot=00000000 dir=/x key=y", "podctl-boot 1 boot=xyz", "\x1b[0m"]
    assert parse_announced(noise) is None
    both = parse_announced([LINE, *noise, LATER])
    assert both is not None
    assert (both.boot, both.host_key) == ("ffffffff", "ssh-ed25519 BBBB")
    trouble = parse_announced([LINE, "podctl-boot 1 boot=ffffffff trouble=no sshd and no apt-get"])
    assert trouble is not None
    assert trouble.trouble == "no sshd and no apt-get"


def test_the_boot_guard_travels_whole_and_without_a_secret():
    boot = make_boot("ssh-ed25519 AAAA podctl", grace_s=900, end="terminate", run_id="x")
    assert boot.start_script.startswith("#!")
    assert boot.env == {"PODCTL_GUARD_S": "900", "PODCTL_GUARD_END": "terminate", "PODCTL_RUN": "x"}


# ---- afterwards


class Place:
    """Hosts by port; `down` ones do not answer."""

    def __init__(self) -> None:
        self.down: set[int] = set()
        self.strangers: set[int] = set()

    def reach(self, pod):
        place, port = self, pod.ssh.port

        class There:
            name = "x"

            def run(self, argv, **more):
                if port in place.strangers:
                    raise Untrusted("another's key")
                if port in place.down:
                    raise Unreachable("no route")
                return Result(0, f"{port} {pod.ssh.host_key}", "")

            @contextlib.contextmanager
            def stream(self, argv, *, stdin=None):
                self.run(argv)
                yield None

        return There()


@pytest.fixture
def moved(clock, monkeypatch):
    """A running pod, its host, and where it can be reached."""
    renter, place = Talking(clock), Place()
    pod = renter.put("pc-a-x-700101-000000-beef", "running")
    monkeypatch.setattr("podctl.rented.LOOK_S", 0.0)
    return renter, place, pod, RentedHost(renter, pod.id, pod.name, KEY, reach=place.reach)


def test_a_pod_that_starts_anew_elsewhere_is_found_there_with_its_new_key(moved):
    renter, place, pod, host = moved
    assert host.run(["x"]).stdout == f"22 {KEY}"
    place.strangers.add(22)  # who has the old port now
    renter.pods[pod.id] = replace(pod, ssh=SshAddress("127.0.0.1", 4022, "root"))
    renter.log = (LINE, LATER)
    assert host.run(["x"]).stdout == "4022 ssh-ed25519 BBBB"
    with host.stream(["x"]):
        pass


def test_a_stranger_at_an_address_that_is_still_the_pods_is_no_reason_to_try_again(moved):
    _, place, _, host = moved
    host.run(["x"])
    place.strangers.add(22)
    with pytest.raises(Untrusted):
        host.run(["x"])


def test_a_pod_is_gone_when_its_provider_says_so_twice_and_switched_off_when_it_says_so_once(moved):
    renter, place, pod, host = moved
    host.run(["x"])
    place.down.add(22)
    renter.pods[pod.id] = replace(pod, state="gone")
    for _ in range(3):
        with contextlib.suppress(PodGone), pytest.raises(Unreachable):
            host.run(["x"])
    with pytest.raises(PodGone):
        host.run(["x"])
    renter.pods[pod.id] = replace(pod, state="stopped")
    with pytest.raises(PodGone, match="stopped"):
        host.run(["x"])


def test_a_pod_whose_log_nobody_could_read_until_it_ended_itself_is_not_blamed_for_it(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "running")

    def silent(pod_id, **more):
        raise ProviderUnclear("log service unavailable")

    renter.log_lines = silent
    clock.after(900, renter.pods.clear)  # its boot guard
    with pytest.raises(ProviderUnclear, match="log service unavailable"):
        wait(renter, Far(clock), pod)


def test_a_blink_of_its_provider_does_not_excuse_a_bad_pod(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "starting")
    renter.get = lambda pod_id, get=renter.get, blinks=iter("x"): _blink() if next(blinks, "") else get(pod_id)
    clock.after(200, renter.pods.clear)
    with pytest.raises(Unfit, match="gone again"):
        wait(renter, Far(clock), pod)


def _blink():
    raise ProviderUnclear("offline")


def test_a_pod_that_is_gone_while_it_is_waited_for_is_still_called_by_its_name(clock):
    renter = Talking(clock)
    pod = renter.put("pc-a-x-700101-000000-beef", "running")
    renter.pods.clear()
    with pytest.raises(Unfit, match="pc-a-x-700101-000000-beef is gone again"):
        wait_until_ready(renter, pod, 1, Ui(), clock)


def test_a_machine_that_does_not_answer_and_is_called_broken_twice_is_waited_for_no_longer(moved):
    renter, place, pod, host = moved
    host.run(["x"])
    place.down.add(22)
    renter.pods[pod.id] = replace(pod, state="broken")
    for _ in range(3):
        with contextlib.suppress(PodGone), pytest.raises(Unreachable):
            host.run(["x"])
    with pytest.raises(PodGone, match="broken"):
        host.run(["x"])


def test_a_provider_that_does_not_answer_changes_nothing_about_a_machine_that_does(moved):
    renter, place, _, host = moved
    host.run(["x"])

    def silent(pod_id):
        raise ProviderUnclear("offline")

    renter.get = silent
    assert host.run(["x"]).ok
    place.down.add(22)
    with pytest.raises(Unreachable, match="no route"):
        host.run(["x"])
    fresh = RentedHost(renter, "p0", "x", KEY, reach=place.reach)
    with pytest.raises(Unreachable, match="offline"):
        fresh.run(["x"])
