"""Decisions: what a second train means, names that fit, and the ceiling."""

import pytest

from podctl.errors import BadInput, Busy
from podctl.plan import choose_run, make_plan, make_pod_name, make_run_id, without_effect
from podctl.pods import Offer, Run

OLD = Run("a-1", "p", "a", "local", "", 1.0)


@pytest.mark.parametrize("state", ["stopped", "failed", "lost", "not started"])
def test_what_did_not_succeed_is_resumed(state: str):
    choice = choose_run(OLD, state, (), force=False, new_id="a-2")
    assert (choice.run_id, choice.resumes) == ("a-1", OLD)
    assert state in choice.because
    assert choose_run(OLD, state, ("lr: 1 → 2",), force=True, new_id="a-2").run_id == "a-2"
    with pytest.raises(BadInput) as refused:
        choose_run(OLD, state, ("lr: 1 → 2",), force=False, new_id="a-2")
    assert refused.value.mistakes == ("lr: 1 → 2",)


@pytest.mark.parametrize("state", ["starting", "running", "stopping", "unreachable"])
@pytest.mark.parametrize("force", [False, True])
def test_what_may_still_run_is_never_doubled(state: str, force: bool):
    with pytest.raises(Busy):
        choose_run(OLD, state, (), force=force, new_id="a-2")


def test_after_success_and_at_first_a_run_is_new():
    assert choose_run(OLD, "succeeded", ("lr: 1 → 2",), force=False, new_id="a-2").resumes is None
    assert choose_run(None, "", (), force=False, new_id="a-2").run_id == "a-2"


def test_ids_are_utc_and_pod_names_fit_and_stay_unique():
    assert make_run_id("demo", 0.0, "beef") == "demo-700101-000000-beef"
    long = make_run_id("x" * 30 + "-debug", 0.0, "beef")
    for owner in ("a", "annmarieonei"):
        assert len(make_pod_name(owner, long)) <= 60
        assert make_pod_name(owner, long).endswith("-700101-000000-beef")
    assert make_pod_name("ann", "demo-700101-000000-beef") == "pc-ann-demo-700101-000000-beef"


def test_the_ceiling_is_the_cheapest_offers_price_times_the_hours_and_never_over_the_limit():
    offers = [Offer("x", "H100", 1, 4.0), Offer("x", "A100", 1, 2.0)]
    choice = choose_run(None, "", (), force=False, new_id="a-2")
    plan = make_plan(choice, "ann", offers, max_hours=24)
    assert (plan.offers[0].gpu, plan.ceiling_usd) == ("A100", 48.0)
    with pytest.raises(BadInput, match=r"could cost \$48.00, the limit is \$40.00"):
        make_plan(choice, "ann", offers, max_hours=24, max_usd=40)


def test_keys_without_effect_are_named_where_they_have_none():
    assert set(without_effect("local", {"gpu": 1, "max_hours": 2, "spot": 3})) == {"gpu", "spot"}
    assert without_effect("elsewhere", {"gpu": 1}) == {}
