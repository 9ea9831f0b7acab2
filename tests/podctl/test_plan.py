"""Decisions: what a second train means, names that fit, and the ceiling."""

from dataclasses import replace

import pytest

from podctl.errors import BadInput, Busy
from podctl.plan import choose_run, make_plan, make_run_id, without_effect
from podctl.podname import make_pod_name, parse_pod_name
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


def test_a_pods_name_says_whose_it_is_which_run_it_is_for_and_until_when():
    until = 1_800_000_000.0 // 60 * 60
    for owner, run_id in (("ann", "demo-700101-000000-beef"), ("annmarieonei", "x" * 30 + "-debug-700101-000000-beef")):
        name = make_pod_name(owner, run_id, attempt=12, until=until)
        said = parse_pod_name(name)
        assert len(name) <= 60
        assert said is not None
        assert (said.owner, said.attempt, said.until, said.is_of(run_id)) == (owner, 12, until, True)
        assert not said.is_of("demo-700101-000000-dead")
    plain = parse_pod_name(make_pod_name("ann", "demo-700101-000000-beef"))
    assert plain is not None
    assert plain.until is None
    for strange in (
        "",
        "pc-",
        "gpu box",
        "pc-ann-demo",
        "PC-ann-demo-700101-000000-beef",
        "pc-a-x-700101-000000-beef-a1-99",
    ):
        assert parse_pod_name(strange) is None


def test_the_ceiling_is_the_dearest_candidate_for_all_hours_and_none_goes_over_the_limit():
    offers = [Offer("x", "H100", 1, 4.0), Offer("x", "A100", 1, 2.0)]
    choice = choose_run(None, "", (), force=False, new_id="a-2")
    plan = make_plan(choice, "pc-ann-a-2", offers, max_hours=24)
    assert ([o.gpu for o in plan.offers], plan.ceiling_usd) == (["H100", "A100"], 96.0)
    assert [o.gpu for o in make_plan(choice, "n", offers, max_hours=24, max_usd=50).offers] == ["A100"]
    with pytest.raises(BadInput, match=r"could cost \$48.00, the limit is \$40.00"):
        make_plan(choice, "n", offers, max_hours=24, max_usd=40)


def test_the_limit_in_dollars_is_over_all_attempts_of_a_run():
    spent = choose_run(replace(OLD, usd_billed=30.0), "stopped", (), force=False, new_id="a-2")
    offers = [Offer("x", "A100", 1, 2.0)]
    assert make_plan(spent, "n", offers, max_hours=5, max_usd=40).spent_usd == 30.0
    with pytest.raises(BadInput, match=r"the limit is \$40.00, of which \$30.00 is spent"):
        make_plan(spent, "n", offers, max_hours=6, max_usd=40)


def test_keys_without_effect_are_named_where_they_have_none():
    assert set(without_effect("local", {"gpu": 1, "max_hours": 2, "spot": 3})) == {"gpu", "spot"}
    assert without_effect("elsewhere", {"gpu": 1}) == {}
