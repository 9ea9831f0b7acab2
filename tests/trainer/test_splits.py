"""Nobody stands on two sides, each side is like the whole, and it is the same split again."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.splits import TOLERANCE, Split, ranked, split, subset
from trainer.errors import BadData

AGES = ("3-4", "5-7", "8-11", "12+", "unknown")
Counts = dict[str, dict[str, int]]

groups_of = st.dictionaries(
    st.text(min_size=1, max_size=6),
    st.dictionaries(st.sampled_from(AGES), st.integers(0, 40), min_size=1, max_size=3),
    min_size=4,
    max_size=60,
).filter(lambda g: sum(1 for c in g.values() if sum(c.values())) >= 3)


def children(n: int, seed: int, mean: float = 30.0, mixed: float = 0.1) -> Counts:
    """Many children with as few or many utterances as children have; some grow older while they are recorded."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(n):
        age = int(rng.choice(len(AGES), p=[0.15, 0.3, 0.3, 0.15, 0.1]))
        size = 1 + int(rng.exponential(mean))
        counts = {AGES[age]: size}
        if rng.random() < mixed and age < 3:
            counts[AGES[age + 1]] = 1 + int(rng.exponential(mean / 2))
        found[f"child {i}"] = counts
    return found


def sums(groups: Counts, made: Split, name: str) -> dict[str, int]:
    return {b: sum(groups[g].get(b, 0) for g in made.groups(name)) for b in AGES}


def furthest(groups: Counts, made: Split, name: str) -> float:
    """The largest difference of a bucket's share, in points."""
    mine, whole = sums(groups, made, name), {b: sum(c.get(b, 0) for c in groups.values()) for b in AGES}
    of_mine, of_whole = sum(mine.values()), sum(whole.values())
    return max(100 * abs(mine[b] / of_mine - whole[b] / of_whole) for b in AGES)


@given(groups_of, st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_every_group_is_on_one_side_and_no_side_is_empty(groups: Counts, seed: int) -> None:
    made = split(groups, dev=0.1, test=0.1, seed=seed)
    assert set(made.of) == set(groups)
    for name in ("train", "dev", "test"):
        assert sum(sums(groups, made, name).values()) > 0, name
    for name in ("dev", "test"):
        told = {m.bucket for m in made.misses if m.set == name}
        size = sum(sums(groups, made, name).values())
        for bucket, n in sums(groups, made, name).items():
            whole = sum(c.get(bucket, 0) for c in groups.values()) / sum(sum(c.values()) for c in groups.values())
            assert (abs(n / size - whole) > TOLERANCE + 1e-9) <= (bucket in told), "what misses is told"


@given(groups_of, st.integers(0, 5), st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_order_in_which_groups_come_changes_nothing(groups: Counts, seed: int, shuffle: random.Random) -> None:
    names = list(groups)
    shuffle.shuffle(names)
    other = {g: dict(reversed(groups[g].items())) for g in names}
    first, second = (split(g, dev=0.1, test=0.1, seed=seed) for g in (groups, other))
    assert first.of == second.of
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [8.0, 60.0])
def test_shares_of_ages_are_those_of_the_whole_to_a_point(seed: int, mean: float) -> None:
    groups = children(1500, seed, mean)
    made = split(groups, dev=0.05, test=0.05, seed=seed)
    assert made.misses == []
    total = sum(sum(c.values()) for c in groups.values())
    for name in ("dev", "test"):
        assert furthest(groups, made, name) <= 1.0
        assert sum(sums(groups, made, name).values()) == pytest.approx(0.05 * total, rel=0.1)


def test_another_seed_is_another_split_and_the_same_one_the_same() -> None:
    groups = {f"child {i}": {AGES[i % 5]: 1 + 7 * i % 40} for i in range(300)}
    hashes = [split(groups, dev=0.05, test=0.05, seed=s).sha256 for s in (0, 1, 2, 0)]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]
    assert hashes[0] == "b46d4468957051f4c8922591002efd745d72e15bc7620cb20404e06dae74d916"


@pytest.mark.parametrize("seed", range(3))
def test_a_child_more_moves_few_others(seed: int) -> None:
    """An utterance more for one, a new child, a tenth more children: mostly who was taken stays taken."""
    groups = children(1000, seed)
    before = split(groups, dev=0.05, test=0.05, seed=0)
    taken = sum(1 for g in groups if before.of[g] != "train")
    grown = {**groups, "child 7": {**groups["child 7"], "3-4": groups["child 7"].get("3-4", 0) + 1}}
    for more, allowed in (({}, 0.0), (grown, 0.2), ({"new": {"5-7": 30}}, 0.2), (children(1100, seed), 0.7)):
        after = split({**groups, **more}, dev=0.05, test=0.05, seed=0)
        moved = sum(1 for g in groups if after.of[g] != before.of[g])
        assert moved <= allowed * taken, (moved, taken)


def test_what_cannot_be_even_is_named_with_its_reason() -> None:
    groups = {**{f"c{i}": {"5-7": 10} for i in range(50)}, "the only old one": {"12+": 60}}
    made = split(groups, dev=0.1, test=0.1, seed=0)
    assert {(m.set, m.bucket) for m in made.misses} >= {("dev", "12+"), ("test", "12+")}
    assert any("1 groups of 60 to 60" in str(m) or "it lies in 1 groups" in str(m) for m in made.misses)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3, 0.45])
def test_few_groups_leave_no_set_empty(share: float) -> None:
    made = split({"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 8}}, dev=0.1, test=share, seed=0)
    assert sorted(made.of.values()) == ["dev", "test", "train"]
    for seed in range(30):
        rng = random.Random(seed)
        groups = {f"g{i}": {"x": rng.randint(1, 9), "y": rng.randint(0, 9)} for i in range(3 + seed % 4)}
        made = split(groups, dev=share, test=share, seed=seed)
        assert set(made.of.values()) == {"dev", "test", "train"}, groups


def test_few_large_groups_still_make_three_sets() -> None:
    made = split({"a": {"x": 100}, "b": {"x": 90}, "c": {"x": 110}}, dev=0.05, test=0.05, seed=3)
    assert sorted(made.of.values()) == ["dev", "test", "train"]
    assert made.of["c"] == "train", "the sets that want little get the small ones"


@pytest.mark.parametrize(
    ("groups", "dev", "test"),
    [({}, 0.1, 0.1), ({"a": {"x": 1}, "b": {"x": 1}}, 0.1, 0.1), (children(9, 0), 0.5, 0.5), (children(9, 0), -1, 0.1)],
)
def test_too_little_for_a_split_is_one_sentence(groups: Counts, dev: float, test: float) -> None:
    with pytest.raises(BadData):
        split(groups, dev=dev, test=test, seed=0)


def test_no_dev_is_asked_for_and_none_is_made() -> None:
    assert set(split(children(40, 1), dev=0, test=0.1, seed=0).of.values()) == {"train", "test"}


def test_a_group_without_an_utterance_to_train_on_is_on_no_side_that_measures() -> None:
    groups = {**children(40, 1), "only long ones": {}}
    assert split(groups, dev=0.3, test=0.3, seed=0).of["only long ones"] == "train"


def test_ninety_five_thousand_utterances_are_split_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Every one a group of its own is the most work: nothing is known of who speaks."""
    rng = np.random.default_rng(0)
    ages = rng.choice(AGES, size=95_000, p=[0.15, 0.3, 0.3, 0.15, 0.1])
    groups = {f"utterance {i}": {str(a): 1} for i, a in enumerate(ages)}
    began = time.perf_counter()
    made = split(groups, dev=0.05, test=0.05, seed=0)
    took_s = time.perf_counter() - began
    with capsys.disabled():
        print(f" [95,000 groups in {took_s:.2f} s]", end="")
    assert made.misses == []
    assert took_s < 20


@given(st.integers(1, 120), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_a_small_dev_is_like_dev_and_of_many_children(n: int, seed: int) -> None:
    groups = children(40, 5, mean=6)
    keys = {f"{g}/{b}/{i}": (b, g) for g, c in groups.items() for b, k in c.items() for i in range(k)}
    small = subset(keys, n, seed)
    assert len(small) == min(n, len(keys)) == len(set(small))
    assert small == subset(dict(reversed(keys.items())), n, seed)
    for bucket in AGES:
        share = sum(1 for i in keys if keys[i][0] == bucket) / len(keys)
        mine = [keys[i][1] for i in small if keys[i][0] == bucket]
        assert abs(len(mine) - n * share) < 1 or n > len(keys)
        there = {g for b, g in keys.values() if b == bucket}
        assert len(set(mine)) == min(len(mine), len(there)), "nobody speaks twice before all have spoken"


def test_the_order_of_a_hash_is_not_that_of_names() -> None:
    assert ranked("abcdef", "0") != sorted("abcdef")
    assert ranked("abcdef", "0") == ranked("fedcba", "0")
