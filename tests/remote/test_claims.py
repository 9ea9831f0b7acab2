"""What a pod is still needed for: decisions alone, no pod."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.claims import (
    ABSENT,
    LIVES,
    LOST_GRACE_S,
    STOP,
    TERMINATE,
    UNKNOWN,
    Act,
    BadClaim,
    Boot,
    Claim,
    Ending,
    Look,
    decide,
    parse_boot,
    parse_claim,
    save_s,
)
from remote.rundir import FAILED, LOST, STOPPED, SUCCEEDED

BOOT = Boot("0a1b2c3d", 1000.0, 900.0, TERMINATE)
CLAIM = Claim("r", "/v/runs/r", "/d", "/t", 7200.0, 60.0, 600.0, Ending(TERMINATE), Ending(STOP))


def act(state: str, elapsed_s: float, claim: Claim = CLAIM, fetched: bool = False, **more: Any) -> Act:
    look = Look(state, more.pop("since_s", 100.0), more.pop("was_seen", True))
    return decide(BOOT, [claim], {"r": look}, ["r"] if fetched else [], more, elapsed_s)


def test_a_run_that_lives_keeps_its_pod_up_to_its_deadline_and_no_longer() -> None:
    assert not act(LIVES, 7199.9).end
    at_deadline = act(LIVES, 7200.0)
    assert at_deadline.end == STOP
    assert at_deadline.is_deadline
    assert "deadline" in at_deadline.why


def test_it_is_asked_to_save_before_the_deadline_early_enough_for_its_grace() -> None:
    assert not act(LIVES, save_s(CLAIM) - 1).save
    assert act(LIVES, save_s(CLAIM)).save == ("r",)
    assert save_s(CLAIM) + CLAIM.grace_s < CLAIM.deadline_s
    assert save_s(replace(CLAIM, deadline_s=60.0)) >= 30.0  # not in its first second


def test_a_pod_whose_run_never_begins_ends_after_the_boot_grace() -> None:
    assert not act(ABSENT, 999.9, was_seen=False).end
    assert act(ABSENT, 1000.0, was_seen=False).end == BOOT.end
    assert act(UNKNOWN, 1000.0, was_seen=False).end == BOOT.end


def test_a_volume_that_stopped_answering_ends_nothing_before_the_deadline() -> None:
    assert not act(UNKNOWN, 7199.0).end
    assert act(UNKNOWN, 7200.0).end


def test_each_end_of_a_run_has_its_own_ending_after_the_fetch_grace() -> None:
    assert not act(SUCCEEDED, 699.9).end
    assert act(SUCCEEDED, 700.0).end == TERMINATE
    assert act(FAILED, 700.0).end == STOP
    assert act(STOPPED, 700.0).end == STOP


def test_fetched_results_end_the_grace_at_once() -> None:
    assert act(SUCCEEDED, 100.0, fetched=True).end == TERMINATE


def test_a_lost_run_counts_as_failed_after_a_while() -> None:
    assert not act(LOST, 100.0 + LOST_GRACE_S - 1, fetched=True).end
    assert act(LOST, 100.0 + LOST_GRACE_S, fetched=True).end == STOP


def test_a_hold_keeps_a_failed_run_for_its_time_and_then_the_pod_ends_its_own_way() -> None:
    held = replace(CLAIM, on_failure=Ending(hold_s=1800.0))
    assert not act(FAILED, 1899.9, held, fetched=True).end
    assert act(FAILED, 1900.0, held, fetched=True).end == BOOT.end
    assert act(STOPPED, 100.0, held, fetched=True).end == BOOT.end  # who stopped it does not hold it


def test_a_hold_that_was_asked_for_later_ends_at_its_moment_whatever_the_run_did() -> None:
    assert not act(SUCCEEDED, 2999.0, fetched=True, r=3000.0).end
    assert act(SUCCEEDED, 3000.0, fetched=True, r=3000.0).end


def test_the_pod_lives_until_the_last_claim_is_gone() -> None:
    later = replace(CLAIM, run_id="s", deadline_s=9000.0)
    looks = {"r": Look(SUCCEEDED, 100.0, True), "s": Look(LIVES, 100.0, True)}
    assert not decide(BOOT, [CLAIM, later], looks, ["r"], {}, 8999.0).end
    assert "run s" in decide(BOOT, [CLAIM, later], looks, ["r"], {}, 9000.0).why


def test_where_one_run_wants_the_pod_kept_it_is_not_destroyed() -> None:
    other = replace(CLAIM, run_id="s", on_success=Ending(STOP))
    looks = {"r": Look(SUCCEEDED, 100.0, True), "s": Look(SUCCEEDED, 90.0, True)}
    assert decide(BOOT, [CLAIM, other], looks, ["r", "s"], {}, 100.0).end == STOP


def test_a_pod_without_a_claim_ends_after_the_boot_grace() -> None:
    assert not decide(BOOT, [], {}, [], {}, 899.0).end
    assert decide(BOOT, [], {}, [], {}, 900.0).end == TERMINATE


seconds = st.floats(0, 1e6, allow_nan=False)
endings = st.one_of(st.sampled_from([Ending(STOP), Ending(TERMINATE)]), seconds.map(lambda s: Ending(hold_s=s)))
claims = st.builds(
    Claim,
    st.sampled_from("rst"),
    *[st.just("/x")] * 3,
    *[seconds] * 3,
    endings,
    endings,
)
states = st.sampled_from([LIVES, UNKNOWN, ABSENT, LOST, SUCCEEDED, FAILED, STOPPED])


@given(
    st.lists(claims, max_size=3, unique_by=lambda c: c.run_id),
    st.dictionaries(st.sampled_from("rst"), st.builds(Look, states, seconds, st.booleans()), min_size=3),
    st.lists(st.sampled_from("rst")),
    st.dictionaries(st.sampled_from("rst"), seconds),
    seconds,
    seconds,
)
def test_no_pod_outlives_all_its_deadlines_and_what_has_ended_stays_ended(
    claims: list[Claim], looks: dict[str, Look], fetched: list[str], holds: dict[str, float], at_s: float, more_s: float
) -> None:
    now = decide(BOOT, claims, looks, fetched, holds, at_s)
    assert now.end in ("", STOP, TERMINATE)
    assert bool(now.end) == (at_s >= now.until_s)
    assert now.until_s <= max([c.deadline_s for c in claims], default=BOOT.grace_s)
    if now.end:
        assert now.why
        assert decide(BOOT, claims, looks, fetched, holds, at_s + more_s).end
    assert all(looks[run_id].state in (LIVES, UNKNOWN) for run_id in now.save)


WRITTEN: dict[str, Any] = {
    "schema": 1,
    "run_id": "r",
    "run_dir": "/v/runs/r",
    "disk": "/d",
    "tool_dir": "/t",
    "deadline_s": 7200,
    "grace_s": 60,
    "fetch_grace_s": 600,
    "on_success": "terminate",
    "on_failure": "stop",
}


def test_a_claim_reads_as_it_was_written() -> None:
    assert parse_claim(WRITTEN) == CLAIM
    assert parse_claim(WRITTEN | {"on_failure": {"hold_s": 60}, "news": 1}).on_failure == Ending(hold_s=60.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_id": "../../etc"}, "run_id"),
        ({"run_id": "r\n"}, "run_id"),
        ({"run_dir": ""}, "run_dir"),
        ({"deadline_s": math.inf}, "deadline_s"),
        ({"deadline_s": math.nan}, "deadline_s"),
        ({"deadline_s": "3600"}, "deadline_s"),
        ({"grace_s": -1}, "grace_s"),
        ({"fetch_grace_s": True}, "fetch_grace_s"),
        ({"on_success": "explode"}, "on_success"),
        ({"on_failure": {"hold_s": -5}}, "on_failure|hold_s"),
        ({"on_failure": ["stop"]}, "on_failure"),
        ({"schema": 2}, "schema 2"),
    ],
)
def test_a_claim_that_cannot_be_kept_says_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadClaim, match=said):
        parse_claim(WRITTEN | change)


def test_every_mistake_in_a_claim_is_told_at_once() -> None:
    with pytest.raises(BadClaim, match=r"run_id.*deadline_s.*on_failure"):
        parse_claim(
            {"on_success": "stop", "run_dir": "/r", "disk": "", "tool_dir": "", "grace_s": 1, "fetch_grace_s": 1}
        )


@pytest.mark.parametrize("value", [None, [], "x", {}, {"boot": "a", "uptime_s": "x", "grace_s": 1}])
def test_what_is_no_boot_is_none(value: object) -> None:
    assert parse_boot(value) is None
