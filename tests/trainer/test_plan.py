"""Which utterances a step holds and how it is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.plan import Plan, cut, seed_of
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


WEIGHTS = [(np.arange(0, 40), 0.3), (np.arange(40, 90), 1.0), (np.arange(90, 101), 2.5)]


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
            assert [sum(epoch.get(p, 0) for p in part) for part, _ in WEIGHTS] == [12, 50, 28]  # 27.5 rounds to even
        for part, weight in WEIGHTS:
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


def test_weights_of_one_are_the_plan_without_weights() -> None:
    plain, ones = Plan(DURATIONS, loops()[0]), Plan(DURATIONS, loops()[0], [(np.arange(101), 1.0)])
    assert all(np.array_equal(plain.at(s).positions, ones.at(s).positions) for s in range(40))
    assert plain.at(20).passes.tolist() == [plain.at(20).epoch] * 7


def test_steps_of_seconds_hold_about_so_many_seconds() -> None:
    plan = Plan(DURATIONS, Loop(epochs=1, step_s=60))
    sums = [DURATIONS[plan.at(s).positions].sum() for s in range(plan.max_steps - 1)]
    assert all(60 - 9 < s < 60 + 9 for s in sums)


def test_parts_of_an_epoch_count() -> None:
    assert Plan(DURATIONS, Loop(epochs=0.5, step_utts=10)).max_steps == 6
    assert Plan(DURATIONS, Loop(epochs=1.5, step_utts=10)).max_steps == 17
    assert Plan(DURATIONS, Loop(epochs=1, step_utts=10)).epoch_at(11) == 1.0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.floats(1, 100))
def test_micro_batches_are_homogeneous_within_memory_and_hold_everyone_once(halves: list[int], micro_s: float) -> None:
    sizes = [Size(h / 2, h / 2, 1) for h in halves]
    micros = cut(sizes, micro_s)
    assert sorted(i for m in micros for i in m) == list(range(len(sizes)))
    for m in micros:
        assert len({sizes[i].padded_s for i in m}) == 1
        assert len(m) == 1 or len(m) * sizes[m[0]].padded_s <= micro_s


def test_seeds_are_the_same_everywhere_for_ever() -> None:
    assert seed_of(1, 2, "utterance") == 42528751959179815
