"""The comparison of two programs over one model: what differs is named, and counted as the recipe counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics.transcripts import score_transcripts
from trainer.parity import GAP, beneath, compare_texts, difference_lines
from trainer.recipe.eval import Eval

HOW = Eval(normaliser="basic", every_steps=1)


def rows(*pairs: tuple[str, str]) -> list[dict]:
    return [{"id": f"u{n}", "reference": said, "text": heard} for n, (said, heard) in enumerate(pairs)]


def test_equal_texts_are_parity_whatever_they_are_worth() -> None:
    ours = rows(("one two", "three"), ("four", ""))
    found = compare_texts(ours, {r["id"]: r["text"] for r in ours}, HOW)
    assert (found.differing, found.difference, found.empty) == ([], 0.0, 1)
    assert found.holds(0.0)
    assert difference_lines(found) == []


def test_rates_are_pooled_as_everywhere() -> None:
    ours = rows(("one two three four", "one two three four"), ("five", "six"))
    theirs = {"u0": "one two three", "u1": "five"}
    found = compare_texts(ours, theirs, HOW)
    other = [{**r, "text": theirs[r["id"]]} for r in ours]
    assert found.wer_ours == score_transcripts(ours, HOW).metrics["wer"] == pytest.approx(1 / 5)
    assert found.wer_theirs == score_transcripts(other, HOW).metrics["wer"] == pytest.approx(1 / 5)
    assert found.holds(0.0)
    assert len(found.differing) == 2, "the same rate is not the same text"


def test_what_the_normaliser_makes_one_of_is_said_to_differ_in_writing_alone() -> None:
    found = compare_texts(rows(("Don't!", "Don't!"), ("a b", "a b")), {"u0": "dont", "u1": "a c"}, HOW)
    assert [(d.id, d.is_normalised_too) for d in found.differing] == [("u0", False), ("u1", True)]
    assert found.summary["differing"] == 2
    assert found.summary["differing_normalised"] == 1


def test_a_difference_beyond_the_limit_does_not_hold_in_either_direction() -> None:
    good, bad = rows(*[("a b c d e", "a b c d e")] * 10), {f"u{n}": "a b c d e" for n in range(10)}
    worse = compare_texts(good, {**bad, "u3": "a b c d x"}, HOW)
    better = compare_texts([{**r, "text": "a b c d x"} if r["id"] == "u3" else r for r in good], bad, HOW)
    for found in (worse, better):
        assert found.difference == pytest.approx(0.02)
        assert found.holds(0.0201)
        assert not found.holds(0.0199)


def test_all_differences_are_kept_and_the_first_ten_shown() -> None:
    ours = rows(*[("x", "x")] * 14)
    found = compare_texts(ours, {r["id"]: "y" for r in ours}, HOW)
    assert len(found.as_json()["differences"]) == 14
    lines = difference_lines(found)
    assert lines[-1] == "  … and 4 more"
    assert sum(line.startswith("    ours") for line in lines) == 10


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "<|x|>", "日本"]), max_size=8)


@given(WORDS, WORDS)
def test_an_aligned_pair_holds_every_word_of_both_in_order(a: list[str], b: list[str]) -> None:
    one, two = beneath(a, b)
    assert [w for w in one.split() if w != GAP] == a
    assert [w for w in two.split() if w != GAP] == b
    assert len(one.split()) == len(two.split())


def test_equal_words_stand_under_each_other() -> None:
    one, two = beneath(["one", "two", "three"], ["one", "three"])
    assert one == "one two three"
    assert two == "one ·   three"
