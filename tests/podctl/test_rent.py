"""Create or resume: one pod for a run, whatever its provider answers, and none that nobody knows of."""

from dataclasses import replace

import pytest
from support.renter import HandClock, Renter, at_once, makes, sold_out

from podctl import ledger as events
from podctl.errors import (
    BadInput,
    NoCapacity,
    NoRights,
    NothingSent,
    OfferRefused,
    PodctlError,
    ProviderUnclear,
)
from podctl.podname import make_pod_name
from podctl.pods import Boot, Offer, PodSpec
from podctl.rent import Renting, Wish, end_pod
from podctl.ui import Ui

RUN = "demo-700101-000000-beef"
NAME = make_pod_name("ann", RUN)
OTHER = make_pod_name("ann", "demo-700101-000000-dead")


def wish(*gpus: str, known: str = "", again: bool = False, asked_at: float | None = None) -> Wish:
    offers = [Offer("fake", gpu, 1, 1.0) for gpu in gpus or ("H100", "A100")]
    return Wish(RUN, NAME, offers, PodSpec(gpu=gpus), Boot(), known_pod=known, may_exist=again, asked_at=asked_at)


class Desk:
    """One command's renting, and what it wrote down."""

    def __init__(self, **provider) -> None:
        self.clock = HandClock()
        self.renter = Renter(self.clock, **provider)
        self.lines: list[tuple[str, str]] = []
        self.renting = Renting(self.renter, self._record, Ui(), self.clock, at_once)

    def _record(self, event: str, pod=None, **detail) -> None:
        self.lines.append((event, pod.id if pod else ""))

    def obtain(self, *args, **more):
        return self.renting.obtain(wish(*args, **more))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_first_offer_that_is_to_be_had_is_taken(desk: Desk):
    desk.renter.script = [sold_out()]
    assert desk.obtain().pod.gpu == "A100"
    assert desk.lines == [(events.CREATED, "p0")]


def test_where_all_are_sold_out_nothing_is_rented_and_all_are_named(desk: Desk):
    desk.renter.script = [sold_out(), sold_out()]
    with pytest.raises(NoCapacity, match="H100, A100"):
        desk.obtain()
    assert not desk.renter.pods


def test_refusals_that_all_speak_of_the_request_are_the_requests_fault(desk: Desk):
    desk.renter.script = [OfferRefused("refused", detail="too large"), OfferRefused("refused", detail="far too large")]
    with pytest.raises(BadInput, match="far too large"):
        desk.obtain()
    mixed = Desk()
    mixed.renter.script = [OfferRefused("disk too large"), sold_out()]
    with pytest.raises(NoCapacity):
        mixed.obtain()


def test_a_mistake_that_every_offer_would_meet_is_told_at_once(desk: Desk):
    desk.renter.script = [BadInput("unknown field")]
    with pytest.raises(BadInput, match="unknown field"):
        desk.obtain()
    assert desk.renter.did("create") == ["H100"]


def test_a_request_that_never_left_is_not_looked_for(desk: Desk):
    began = desk.clock.t
    desk.renter.script = [NothingSent("no network; nothing was made")]
    with pytest.raises(NothingSent):
        desk.obtain()
    assert desk.clock.t == began


def test_a_key_without_rights_asks_for_nothing_more(desk: Desk):
    desk.renter.script = [NoRights("no balance")]
    with pytest.raises(NoRights):
        desk.obtain()
    assert desk.renter.did("create") == ["H100"]


def test_an_unclear_answer_that_made_a_pod_is_found_by_its_name_not_tried_again(desk: Desk):
    desk.renter.script = [makes(ProviderUnclear("500"))]
    desk.renter.hidden_until["p0"] = desk.clock.t + 30
    assert desk.obtain().pod.id == "p0"
    assert desk.renter.did("create") == ["H100"]
    assert desk.lines == [(events.RECONCILED, "p0")]


def test_an_unclear_answer_that_made_none_is_believed_only_once_the_list_is_settled(desk: Desk):
    began = desk.clock.t
    desk.renter.script = [ProviderUnclear("500")]
    desk.renter.unclear_lists = 3
    assert desk.obtain().pod.gpu == "A100"
    assert desk.clock.t - began > 60


def test_where_no_list_comes_either_nobody_pretends_to_know(desk: Desk):
    desk.renter.script = [ProviderUnclear("500")]
    desk.renter.unclear_lists = 1000
    with pytest.raises(ProviderUnclear, match="nobody knows whether"):
        desk.obtain()


@pytest.mark.parametrize("made", [False, True])
def test_ctrl_c_while_a_create_is_under_way_leaves_no_pod(desk: Desk, made: bool):
    stroke = KeyboardInterrupt()
    desk.renter.script = [makes(stroke) if made else stroke]
    with pytest.raises(KeyboardInterrupt):
        desk.obtain()
    assert not desk.renter.living
    assert len(desk.renter.pods) == made


def test_a_bad_machine_is_given_back_before_another_is_taken(desk: Desk):
    desk.renter.script = ["broken"]
    ready = desk.obtain()
    assert [p.id for p in desk.renter.living] == [ready.pod.id] == ["p1"]
    assert desk.renter.did("create") == ["H100", "A100"]
    assert desk.lines == [(events.CREATED, "p0"), (events.GONE, "p0"), (events.CREATED, "p1")]


def test_bad_machines_in_a_row_end_some_time(desk: Desk):
    desk.renter.script = ["broken"] * 20
    with pytest.raises(NoCapacity, match="4 machines in a row"):
        desk.obtain()
    assert not desk.renter.living


def test_a_pod_of_an_earlier_command_is_taken_up_and_a_second_one_ended(desk: Desk):
    desk.renter.put(OTHER, "running")
    mine = desk.renter.put(NAME, "running")
    desk.renter.put(NAME, "starting")
    assert desk.obtain(again=True).pod.id == mine.id
    assert not desk.renter.did("create")
    assert [p.name for p in desk.renter.living] == [OTHER, NAME]


def test_a_stopped_pod_is_started_and_where_its_host_is_full_its_volume_moves_on(desk: Desk):
    old = desk.renter.put(NAME, "stopped")
    assert desk.obtain(again=True, known=old.id).pod.id == old.id
    full = Desk()
    old = full.renter.put(NAME, "stopped")
    full.renter.start_script = [NoCapacity("not enough free GPUs on the host machine")]
    ready = full.obtain(again=True, known=old.id)
    assert (ready.pod.id, ready.is_new) == ("p1", True)
    assert full.renter.pods[old.id].state == "gone"


def test_without_a_volume_a_full_host_is_waited_for_since_the_data_lies_there(desk: Desk):
    desk.renter.volume = ""
    old = desk.renter.put(NAME, "stopped")
    desk.renter.start_script = [NoCapacity("host full")]
    with pytest.raises(NoCapacity, match="its data lies on that machine alone"):
        desk.obtain(again=True, known=old.id)
    assert desk.renter.pods[old.id].state == "stopped"
    assert not desk.renter.did("terminate")


def test_a_started_pod_that_will_not_do_is_switched_off_where_its_data_lies_on_it_alone(desk: Desk):
    desk.renter.volume = ""
    old = desk.renter.put(NAME, "stopped")
    desk.renter.start_script = ["broken"]
    with pytest.raises(PodctlError, match="it is stopped"):
        desk.obtain(again=True, known=old.id)
    assert desk.renter.pods[old.id].state == "stopped"


def test_a_run_that_is_new_asks_for_no_list(desk: Desk):
    desk.renter.unclear_lists = 1000
    assert desk.obtain().pod.id == "p0"


def test_a_pod_that_does_not_end_is_named_with_what_it_costs(desk: Desk):
    pod = desk.renter.put(NAME, "running")
    desk.renter.deaf.add(pod.id)
    with pytest.raises(ProviderUnclear, match=r"p0.*may still be there and cost \$1.00 an hour"):
        end_pod(desk.renter, pod, desk.renter.terminate, desk.clock)
    assert len(desk.renter.did("terminate")) > 2


def test_what_is_never_deleted_is_switched_off_and_named(desk: Desk):
    pod = desk.renter.put(NAME, "running")
    desk.renter.undying.add(pod.id)
    with pytest.raises(ProviderUnclear, match=r"p0.*is switched off, and was not deleted"):
        end_pod(desk.renter, pod, desk.renter.terminate, desk.clock)
    assert not desk.renter.living


def test_a_young_pod_that_nobody_knows_yet_is_not_believed_to_be_gone(desk: Desk):
    pod = desk.renter.put(NAME, "running")
    desk.renter.hidden_until[pod.id] = desk.clock.t + 20
    end_pod(desk.renter, pod, desk.renter.terminate, desk.clock, is_young=True)
    assert not desk.renter.living


def test_what_is_gone_already_is_success_and_asks_for_nothing(desk: Desk):
    pod = desk.renter.put(NAME, "gone")
    assert end_pod(desk.renter, pod, desk.renter.terminate, desk.clock).state == "gone"
    assert not desk.renter.did("terminate")


def test_stopping_is_seen_to_have_stopped(desk: Desk):
    pod = desk.renter.put(NAME, "running")
    assert end_pod(desk.renter, pod, desk.renter.stop, desk.clock).state == "stopped"
    assert desk.renter.pods[pod.id] == replace(pod, state="stopped")


def test_a_pod_that_a_killed_command_asked_for_is_waited_for_until_a_list_would_have_it(desk: Desk):
    desk.renter.put(NAME, "running")
    desk.renter.hidden_until["p0"] = desk.clock.t + 40
    assert desk.obtain(again=True, asked_at=desk.clock.t - 10).pod.id == "p0"
    assert not desk.renter.did("create")


@pytest.mark.parametrize("ago_s", [3600.0, -86400.0])
def test_an_old_wish_is_not_waited_for_and_a_clock_that_was_set_back_does_not_wait_for_ever(desk: Desk, ago_s: float):
    begun = desk.clock.t
    desk.obtain(again=True, asked_at=begun - ago_s)
    assert desk.renter.did("create")
    assert desk.clock.t - begun <= 90


def test_where_all_said_no_it_is_written_down_that_nothing_is_there_so_that_nobody_looks_for_it(desk: Desk):
    desk.renter.script = [sold_out(), sold_out()]
    with pytest.raises(NoCapacity):
        desk.obtain()
    assert desk.lines == [(events.RECONCILED, "")]
