"""What is rented, whose it is, what may be ended; and the books of what has ended."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
from support.renter import HandClock

from podctl.books import close_unseen
from podctl.errors import BadInput
from podctl.fleet import LATE_S, fleet, named
from podctl.ledger import Event, Ledger
from podctl.place import recorder
from podctl.podname import make_pod_name
from podctl.pods import Can, Pod, Run

NOW = 1_800_000_000.0
RUN = "demo-700101-000000-beef"


def pod(owner: str = "ann", *, run: str = RUN, until: float | None = NOW + 3600, **more) -> Pod:
    name = make_pod_name(owner, run, attempt=1, until=until)
    place = PurePosixPath("/workspace")
    made = Pod("fake", f"id-{owner}-{run[-4:]}", name, "running", 2.0, place, place, started_at=NOW - 1800, volume="v")
    return replace(made, **more)


def of(pods, runs=()):
    return fleet(pods, {r.id: r for r in runs}, "ann", NOW)


def test_a_pod_is_ours_by_the_owner_in_its_name_and_a_colleagues_is_never_a_stray():
    late = NOW - LATE_S - 60
    ours, theirs = of([pod("ann", until=late), pod("bob", until=late)])
    assert (ours.is_ours, theirs.is_ours, theirs.owner) == (True, False, "bob")
    assert ours.why
    assert not theirs.why
    (stranger,) = of([replace(pod(), name="pc-gaming")])
    assert (stranger.is_ours, stranger.why) == (False, "")


def test_what_is_within_its_time_is_left_alone_whoever_knows_of_it():
    assert [m.why for m in of([pod()])] == [""]
    assert [m.why for m in of([pod(until=None)])] == [""]


def test_what_was_given_back_and_is_still_there_has_expired():
    gone = Run(RUN, "p", "demo", "fake", "", 1.0, pod="id-ann-beef", gone_at=NOW - 60, last_event="billed")
    (m,) = of([pod()], [gone])
    assert m.why
    assert m.run == RUN


def test_a_kept_pod_expires_when_its_while_is_over():
    kept = Run(RUN, "p", "demo", "fake", "", 1.0, pod="id-ann-beef", last_event="hold", detail={"until": NOW + 60})
    assert of([pod()], [kept])[0].why == ""
    over = replace(kept, detail={"until": NOW - LATE_S - 1})
    assert of([pod()], [over])[0].why


def test_data_that_lies_on_a_switched_off_pod_alone_is_nobodys_to_throw_away():
    late = NOW - LATE_S - 60
    assert of([pod(until=late, state="stopped", volume="")])[0].why == ""
    assert of([pod(until=late, state="stopped")])[0].why


def test_cost_counts_while_it_is_on_and_a_pod_that_is_gone_is_not_listed():
    on, off = of([pod(), pod(run="demo-700101-000000-dead", state="stopped")])
    assert (on.usd, off.usd) == (1.0, 0.0)
    assert of([pod(state="gone")]) == []


def test_pods_are_named_by_id_name_or_run_and_a_word_that_fits_none_is_a_mistake():
    run = Run(RUN, "p", "demo", "fake", "", 1.0, pod="id-ann-beef")
    machines = of([pod(), pod("bob", run="x-700101-000000-0000")], [run])
    assert named(machines, ["id-ann-beef", RUN]) == [machines[0]]
    with pytest.raises(BadInput, match="there is no pod 'nope'"):
        named(machines, ["nope"])


class Books:
    """A provider that knows what was spent, or does not."""

    def __init__(self, usd: float | None) -> None:
        self.usd = usd

    def billed(self, pod_id: str, since: float) -> float | None:
        return self.usd


@pytest.mark.parametrize(("billed", "usd"), [(0.7, 0.7), (None, 2.0)])
def test_a_pod_that_ended_unseen_is_billed_by_its_provider_or_up_to_its_deadline_and_once(tmp_path: Path, billed, usd):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    detail = {"rents": True, "started_at": NOW - 7200, "deadline_at": NOW - 3600}
    ledger.append(Event(NOW - 7200, "started", RUN, "p", "fake", "demo", "pod1", 2.0, detail=detail))
    run = ledger.runs()[RUN]
    assert close_unseen(run, ledger, Books(billed), NOW)
    assert not close_unseen(ledger.runs()[RUN], ledger, Books(billed), NOW)
    close_unseen(run, ledger, Books(billed), NOW)  # another command that looked before
    after = ledger.runs()[RUN]
    assert (after.usd_billed, after.gone_at) == (pytest.approx(usd), NOW)


def recorded(tmp_path: Path, pod: Pod, event: str, **detail: object) -> float:
    """What the ledger bills for the end of a pod."""
    provider = SimpleNamespace(name="fake", can=Can())
    p = SimpleNamespace(
        provider=provider, plan=SimpleNamespace(run_id=RUN), project=SimpleNamespace(id="p"), lineage="demo"
    )
    ledger, clock = Ledger(tmp_path / "ledger.jsonl"), HandClock()
    clock.t = NOW
    recorder(p, ledger, clock)(event, pod, **detail)  # type: ignore[arg-type]
    return ledger.runs()[RUN].usd_billed


def test_a_pod_that_is_given_back_is_billed_from_its_create_call_if_it_was_new_else_from_its_start(tmp_path: Path):
    on = pod(created_at=NOW - 3600)  # started half an hour ago, $2 an hour
    assert recorded(tmp_path / "new", on, "gone", is_new=True) == pytest.approx(2.0)
    assert recorded(tmp_path / "old", on, "stopped", is_new=False) == pytest.approx(1.0)


def test_a_switched_off_pod_that_is_given_back_was_billed_when_it_was_switched_off(tmp_path: Path):
    assert recorded(tmp_path, pod(state="stopped", created_at=NOW - 3600), "gone") == 0.0
