"""Error rates against jiwer, normalisers, intervals."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics.normalise import NORMALISERS, basic, none
from trainer.metrics.transcripts import score_transcripts
from trainer.metrics.wer import Errors, count_errors, interval, percentiles, pooled
from trainer.recipe.eval import Eval

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "e"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_pooled_errors_are_those_of_jiwer(pairs: list[tuple[list[str], list[str]]]) -> None:
    ours = pooled([count_errors(r, h) for r, h in pairs])
    theirs = jiwer.process_words([" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    assert ours.rate == pytest.approx(theirs.wer)
    assert ours.total == theirs.substitutions + theirs.deletions + theirs.insertions


def test_an_empty_side_is_all_deletions_or_all_insertions() -> None:
    assert count_errors(["a", "b"], []) == Errors(deletions=2, length=2)
    assert count_errors([], ["a", "b"]) == Errors(insertions=2, length=0)
    assert count_errors([], ["a", "b"]).rate == 2
    assert pooled([]).rate == 0


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Don't  STOP!", "dont stop"),
        ("one, two; three.", "one two three"),
        ("  ", ""),
        ("ﬁne – Straße", "fine straße"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("well-known 5%", "well known 5"),
    ],
)
def test_basic_is_lower_case_without_punctuation(text: str, plain: str) -> None:
    assert basic(text) == plain
    assert basic(basic(text)) == basic(text)


def test_none_leaves_all_but_the_spaces() -> None:
    assert none(" A,  b ") == "A, b"


def test_normalisers_are_told_apart_by_their_hash() -> None:
    assert len({n.sha256 for n in NORMALISERS.values()}) == len(NORMALISERS)


def rows() -> list[dict]:
    return [
        {"id": "1", "reference": "One two.", "text": "one too", "speaker": "a", "buckets": {"age": "3-4"}},
        {"id": "2", "reference": "three", "text": "", "speaker": "b", "buckets": {"age": "12+"}, "reason": "silent"},
        {"id": "3", "reference": "four five", "text": "four five six", "speaker": "a", "buckets": {"age": "12+"}},
    ]


def test_a_report_pools_over_the_corpus_and_by_bucket_and_counts_the_unusable() -> None:
    report = score_transcripts(rows(), Eval(normaliser="basic", every_steps=1, bootstrap=200))
    m = report.metrics
    assert m["wer"] == pytest.approx(3 / 5)
    assert m["wer_raw"] == pytest.approx(4 / 5)  # "One two." and "one too" share nothing as they are
    assert (m["wer/age=3-4"], m["wer/age=12+"]) == (pytest.approx(1 / 2), pytest.approx(2 / 3))
    assert (m["unusable"], m["utterances"], m["words"]) == (1, 3, 5)
    assert m["wer_low"] <= m["wer"] <= m["wer_high"]
    assert report.provenance["normaliser"] == "basic"
    assert [line["set"] for line in report.table] == ["all", "age=12+", "age=3-4"]


def test_the_interval_resamples_speakers_where_there_are_enough_of_them() -> None:
    errors = [Errors(substitutions=i % 2, length=2) for i in range(60)]
    few = interval(errors, ["a", "b"] * 30, 100)
    many = interval(errors, [str(i // 2) for i in range(60)], 100)
    assert (few[2], many[2]) == ("utterances", "speakers")
    assert interval(errors, ["a"] * 60, 100) == interval(errors, ["a"] * 60, 100)
    assert interval([], [], 100) == (0, 0, "nothing")


def test_a_space_at_an_end_is_no_error_of_characters() -> None:
    said = [{"id": "1", "reference": "What?", "text": "what %"}]  # english leaves "what "
    metrics = score_transcripts(said, Eval(normaliser="english", every_steps=1, bootstrap=0)).metrics
    assert (metrics["wer"], metrics["cer"]) == (0, 0)


def test_utterances_that_name_no_speaker_are_not_one_person() -> None:
    rng = np.random.default_rng(0)
    errors = [Errors(substitutions=int(n), length=8) for n in rng.binomial(8, rng.beta(2, 8, 1000))]
    named = [f"s{i // 10}" for i in range(200)]
    alone = [f"u{i}" for i in range(800)]
    assert interval(errors, [*named, *[""] * 800], 200) == interval(errors, [*named, *alone], 200)
    assert interval(errors, ["a"] * 190 + [""] * 810, 50)[2] == "utterances"
    assert interval(errors, [*named[:190], *[""] * 810], 50)[2] == "utterances", "19 people, and who knows whom"


def test_an_interval_of_few_is_wider_than_the_plain_one_and_of_many_the_same() -> None:
    low, high = percentiles(10)
    assert (low, high) == (pytest.approx(0.9, abs=0.15), pytest.approx(100 - low))
    assert percentiles(100_000)[0] == pytest.approx(2.5, abs=1e-3)
    assert percentiles(1) == (0, 100)
    assert all(percentiles(n)[0] <= percentiles(n + 1)[0] for n in range(1, 50))
