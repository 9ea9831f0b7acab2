"""Which utterances a step holds and how it is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.plan import Cut, Part, Plan, cut, seed_of
from trainer.recipe.loop import Loop
from trainer.task import Size

DURATIONS = np.random.default_rng(0).uniform(0.3, 9.0, 101)


def loops() -> list[Loop]:
    return [Loop(epochs=3, step_utts=7), Loop(epochs=3, step_s=60)]


def test_every_utterance_comes_once_an_epoch() -> None:
    for loop in loops():
        plan = Plan(DURATIONS, loop)
        seen: dict[int, list[int]] = {}
        for step in range(plan.max_steps):
            place = plan.at(step)
            seen.setdefault(place.epoch, []).extend(map(int, place.positions))
        assert [sorted(v) for v in seen.values()] == [list(range(101))] * 3
        assert seen[0] != seen[1]


def test_a_step_is_a_function_of_its_number_alone() -> None:
    for loop in loops():
        forwards = [Plan(DURATIONS, loop).at(s).positions.tolist() for s in range(20)]
        plan = Plan(DURATIONS, loop)
        backwards = [plan.at(s).positions.tolist() for s in reversed(range(20))]
        assert forwards == backwards[::-1]


WEIGHTS = [Part(np.arange(0, 40), 0.3), Part(np.arange(40, 90), 1.0), Part(np.arange(90, 101), 2.5)]


def heard(plan: Plan, epochs: int) -> list[dict[int, int]]:
    """How often each utterance comes in each epoch."""
    counts: list[dict[int, int]] = [{} for _ in range(epochs)]
    for step in range(plan.max_steps):
        place = plan.at(step)
        for p in place.positions.tolist():
            counts[place.epoch][p] = counts[place.epoch].get(p, 0) + 1
    return counts


def test_a_weighted_source_comes_as_often_as_its_weight_and_every_utterance_of_it_equally_often() -> None:
    for loop in (Loop(epochs=10, step_utts=7), Loop(epochs=10, step_s=60)):
        counts = heard(Plan(DURATIONS, loop, WEIGHTS), 10)
        for epoch in counts:
            assert [sum(epoch.get(p, 0) for p in part) for part in (w.positions for w in WEIGHTS)] == [
                12,
                50,
                28,
            ]  # 27.5 rounds to even
        for part, weight in ((w.positions, w.weight) for w in WEIGHTS):
            total = [sum(epoch.get(int(p), 0) for epoch in counts) for p in part]
            assert max(total) - min(total) <= 1
            assert abs(float(np.mean(total)) - 10 * weight) < 0.5


def test_a_weighted_step_is_a_function_of_its_number_alone_and_knows_each_utterance_s_pass() -> None:
    loop = Loop(epochs=4, step_utts=7)
    plan = Plan(DURATIONS, loop, WEIGHTS)
    steps = [plan.at(s) for s in range(plan.max_steps)]
    for s in reversed(range(plan.max_steps)):
        again = Plan(DURATIONS, loop, WEIGHTS).at(s)
        assert np.array_equal(again.positions, steps[s].positions)
        assert np.array_equal(again.passes, steps[s].passes)
    both = [(p, n) for place in steps for p, n in zip(place.positions.tolist(), place.passes.tolist(), strict=True)]
    assert len(set(both)) == len(both), "an utterance that comes twice is drawn anew each time"
    for position in range(101):
        assert sorted(n for p, n in both if p == position) == list(range(sum(p == position for p, _ in both)))


def test_groups_are_heard_window_by_window_and_mixed_within() -> None:
    groups = np.repeat(np.arange(20), 5)
    parts = [Part(np.arange(100), 1.0, groups)]
    plan = Plan(DURATIONS[:100], Loop(epochs=2, step_utts=5), parts, window=4)
    order = [int(p) for s in range(20) for p in plan.at(s).positions]
    assert sorted(order) == list(range(100))
    windows = [set(groups[order[i : i + 20]]) for i in range(0, 100, 20)]
    assert all(len(w) == 4 for w in windows), "so many groups are all that has to be in memory"
    assert len(set(groups[order[:5]])) > 1
    later = [int(p) for s in range(20, 40) for p in plan.at(s).positions]
    assert sorted(later) == list(range(100))
    assert [set(groups[later[i : i + 20]]) for i in range(0, 100, 20)] != windows


def test_a_source_in_groups_keeps_them_together_beside_another_source() -> None:
    groups = np.repeat(np.arange(10), 4)
    parts = [Part(np.arange(40), 1.0, groups), Part(np.arange(40, 101), 1.0)]
    plan = Plan(DURATIONS, Loop(epochs=1, step_utts=7), parts, window=2)
    order = [int(p) for s in range(plan.max_steps) for p in plan.at(s).positions]
    assert sorted(order) == list(range(101))
    mine = [p for p in order if p < 40]
    assert all(len(set(groups[mine[i : i + 8]])) == 2 for i in range(0, 40, 8))
    assert {p < 40 for p in order[:14]} == {True, False}


def test_weights_of_one_are_the_plan_without_weights() -> None:
    plain, ones = Plan(DURATIONS, loops()[0]), Plan(DURATIONS, loops()[0], [Part(np.arange(101))])
    assert all(np.array_equal(plain.at(s).positions, ones.at(s).positions) for s in range(40))
    assert plain.at(20).passes.tolist() == [plain.at(20).epoch] * 7


def test_steps_of_seconds_hold_about_so_many_seconds() -> None:
    plan = Plan(DURATIONS, Loop(epochs=1, step_s=60))
    sums = [DURATIONS[plan.at(s).positions].sum() for s in range(plan.max_steps - 1)]
    assert all(60 - 9 < s < 60 + 9 for s in sums)


def test_steps_of_seconds_are_cut_as_one_sum_says_however_many_there_are() -> None:
    from trainer.data.plan import _cuts_of_seconds

    rng = np.random.default_rng(0)
    n = (1 << 21) + 17
    durations, order = rng.uniform(0.3, 9.0, n), rng.permutation(n)
    before = np.concatenate([[0.0], np.cumsum(durations[order])[:-1]])
    step_of = (before / 60.0).astype(np.int64)
    whole = np.append(np.flatnonzero(np.diff(step_of, prepend=-1)), n)
    assert np.array_equal(_cuts_of_seconds(durations, order, 60.0), whole)


def test_parts_of_an_epoch_count() -> None:
    assert Plan(DURATIONS, Loop(epochs=0.5, step_utts=10)).max_steps == 6
    assert Plan(DURATIONS, Loop(epochs=1.5, step_utts=10)).max_steps == 17
    assert Plan(DURATIONS, Loop(epochs=1, step_utts=10)).epoch_at(11) == 1.0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.floats(1, 100))
def test_micro_batches_are_homogeneous_within_memory_and_hold_everyone_once(halves: list[int], micro_s: float) -> None:
    sizes = [Size(h / 2, h / 2, 1) for h in halves]
    micros = cut(sizes, Cut(micro_s))
    assert sorted(i for m in micros for i in m) == list(range(len(sizes)))
    for m in micros:
        assert len({sizes[i].padded_s for i in m}) == 1
        assert len(m) == 1 or len(m) * sizes[m[0]].padded_s <= micro_s


def test_seeds_are_the_same_everywhere_for_ever() -> None:
    assert seed_of(1, 2, "utterance") == 42528751959179815
