"""Two results on the same recordings: what is said of their difference is so, and chance is not taken for news."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.compare import comparison_of, differing, sides_of
from trainer.errors import BadData
from trainer.metrics.normalise import normaliser_named
from trainer.metrics.paired import Difference, compare_rows, holm, most_changed, pairs_of
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.eval import Eval
from trainer.reporting import write_rows as write_all
from trainer.results import read_scored, told_in
from trainer.tables import report_json

HOW = Eval(normaliser="basic", every_steps=1, bootstrap=300)
WORDS = ["one", "two", "three", "four"]


def row(id: str, reference: str, text: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "reference": reference, "text": text, "speaker": "", "buckets": {}, **more}


def heard(errors: Sequence[int], n_words: int = 6, **more: Any) -> list[dict[str, Any]]:
    """Utterances of `n_words` words, so many of them heard wrong."""
    reference = " ".join(WORDS[i % 4] for i in range(n_words))
    return [row(f"u{i}", reference, " ".join(["no"] * e + reference.split()[e:]), **more) for i, e in enumerate(errors)]


def whole(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], how: Eval = HOW) -> Difference:
    return compare_rows(a, b, how).differences[0]


ROWS = st.lists(st.integers(0, 6), min_size=1, max_size=25)


@given(ROWS)
@settings(max_examples=30, deadline=None)
def test_what_is_identical_does_not_differ(errors: list[int]) -> None:
    d = whole(heard(errors), heard(errors))
    assert (d.difference, d.low, d.high, d.p, d.better, d.worse) == (0, 0, 0, 1, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25), st.randoms())
@settings(max_examples=30, deadline=None)
def test_swapped_it_is_the_same_the_other_way_round_and_the_order_of_rows_is_nothing(pairs: Any, random: Any) -> None:
    a, b = heard([x for x, _ in pairs]), heard([y for _, y in pairs])
    there = whole(a, b)
    shuffled = [*b]
    random.shuffle(shuffled)
    back = whole(shuffled, a)
    assert (back.wer_a, back.wer_b, back.better, back.worse) == (there.wer_b, there.wer_a, there.worse, there.better)
    assert back.p == there.p
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_an_error_more_in_every_utterance_is_found_exactly() -> None:
    d = whole(heard([0, 1, 2] * 20), heard([1, 2, 3] * 20))
    assert d.difference == pytest.approx(1 / 6)
    assert (d.low, d.high) == pytest.approx((1 / 6, 1 / 6))
    assert d.p <= 2 / 300
    assert (d.better, d.worse, d.words, d.utterances) == (0, 60, 360, 60)


def test_few_utterances_that_all_moved_one_way_are_not_yet_news() -> None:
    assert whole(heard([1] * 5), heard([0] * 5)).p == pytest.approx(2 / 2**5)
    assert whole(heard([1]), heard([0])).p == 1


def null(n: int, seed: int, of_speakers: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two systems that are equally good: each utterance's difficulty is its own, their errors are chance alone."""
    rng = np.random.default_rng(seed)
    hard = rng.beta(1, 5, of_speakers or n)
    hard = np.repeat(hard, n // of_speakers) if of_speakers else hard
    a, b = heard(rng.binomial(6, hard).tolist()), heard(rng.binomial(6, hard).tolist())
    if of_speakers:
        for rows in (a, b):
            for i, r in enumerate(rows):
                r["speaker"] = f"s{i * of_speakers // n}"
    return a, b


@pytest.mark.slow
@pytest.mark.parametrize(("n", "of_speakers"), [(12, 0), (60, 0), (200, 0), (150, 30)])
def test_of_twenty_comparisons_of_equals_one_is_called_a_difference(n: int, of_speakers: int) -> None:
    found = [whole(*null(n, seed, of_speakers)) for seed in range(600)]
    false = sum(d.p < 0.05 for d in found) / len(found)
    missed = sum(not d.low <= 0 <= d.high for d in found) / len(found)
    assert false <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5, "the test's level is what it says"
    assert false >= (0.02 if n > 12 else 0), "and it is not asleep"
    assert missed <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5, "and so is the interval's"


def test_equals_are_rarely_told_apart() -> None:
    found = [whole(*null(40, seed), HOW.model_copy(update={"bootstrap": 100})) for seed in range(60)]
    assert sum(d.p < 0.05 for d in found) <= 8


def test_the_interval_holds_a_true_difference_and_more_speakers_are_what_is_drawn() -> None:
    a, b = null(400, 1, of_speakers=40)
    worse = [{**r, "text": r["text"] + (" oh" if i % 2 else "")} for i, r in enumerate(b)]
    d = whole(a, worse)
    assert d.unit == "speakers"
    assert d.low < d.difference < d.high
    assert d.p < 0.01


def test_a_difference_among_utterances_that_name_no_speaker_is_seen() -> None:
    """As one speaker they would be one coin that falls one way."""
    a, b = heard([1] * 400), heard([1] * 20 + [0] * 380)
    for rows in (a, b):
        for i, r in enumerate(rows[:20]):
            r["speaker"] = f"s{i}"
    d = whole(a, b)
    assert (d.unit, d.better) == ("speakers", 380)
    assert d.p < 0.01


def test_every_bucket_is_compared_and_its_p_is_one_among_all_of_them() -> None:
    a = [{**r, "buckets": {"age": "3-4" if i % 2 else "12+"}} for i, r in enumerate(heard([1] * 24))]
    b = [{**r, "buckets": {"age": "3-4" if i % 2 else "12+"}} for i, r in enumerate(heard([1, 0] * 12))]
    found = {d.set: d for d in compare_rows(a, b, HOW).differences}
    assert list(found) == ["all", "age=12+", "age=3-4"]
    assert (found["age=12+"].difference, found["age=12+"].p_holm) == (0, 1)
    young = found["age=3-4"]
    assert (young.p, young.p_holm) == (pytest.approx(2 / 2**12), pytest.approx(4 / 2**12))


def test_among_many_buckets_what_is_plain_can_still_be_seen() -> None:
    """Holm multiplies by their number: a p that no flip can bring below 1 in 300 would never be small."""
    a, b = ([{**r, "buckets": {"by": str(i // 15)}} for i, r in enumerate(heard([n] * 1500))] for n in (1, 0))
    found = compare_rows(a, b, HOW).differences
    assert max(d.p_holm for d in found[1:]) < 0.05
    assert len(found) == 101


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_corrects_upwards_in_order_and_at_most_to_one(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, found, strict=True))
    order = sorted(range(len(ps)), key=ps.__getitem__)
    assert [found[i] for i in order] == sorted(found)
    if ps:
        assert min(found) == min(1, len(ps) * min(ps))


def test_what_changed_most_comes_first_both_ways() -> None:
    pairs = pairs_of(heard([0, 5, 1, 2]), heard([3, 0, 2, 2]), normaliser_named("basic"))
    better, worse = most_changed(pairs, 5)
    assert ([p.id for p in better], [p.id for p in worse]) == (["u1"], ["u0", "u2"])
    assert [p.gained for p in worse] == [3, 1]
    assert most_changed(pairs, 1)[1] == worse[:1]
    assert most_changed(pairs, -1) == ([], [])


def test_what_only_one_has_is_counted_and_left_out() -> None:
    c = compare_rows(heard([0, 1, 2, 3]), heard([0, 1]), HOW)
    assert (c.only_a, c.only_b, c.differences[0].utterances) == (2, 0, 2)


@pytest.mark.parametrize(
    ("b", "said"),
    [
        ([row("else", "one", "one")], "no utterance in common"),
        ([row("u0", "another text", "one")], "1 of 1 utterances have two references: u0"),
        ([row("u0", "one", "one"), row("u0", "one", "two")], "u0 stands in the second rows file twice"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_a_sentence(b: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(BadData, match=said) as e:
        compare_rows(heard([0]), b, HOW)
    assert e.value.hint


# ---- on disk


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def make_run(folder: Path, errors: Sequence[int], what: str = "greedy", **provenance: Any) -> Path:
    reports = folder / "reports"
    told = {"normaliser": "basic", "normaliser_sha256": "0" * 64, "data_sha256": "a" * 64, "precision": "fp32"}
    told |= {"decode": {"beams": 1, "window": "own"}, "run": folder.name, **provenance}
    write_rows(reports / f"test-{what}.rows.jsonl", heard(errors))
    write_rows(reports / "test-before-training.rows.jsonl", heard([6] * len(errors)))
    lines = [{"what": w, "metrics": {"wer": 0.5}, "table": [], "provenance": told} for w in ("before training", what)]
    write_rows(reports / "test.jsonl", lines)
    write_rows(reports / "dev.jsonl", [{"step": s, "metrics": {"wer": 0.5}, "provenance": told} for s in (0, 9)])
    write_rows(reports / "dev.rows.jsonl", heard([1, 1]))
    return folder


def test_two_runs_are_compared_by_their_headlines_and_what_they_were_measured_with_is_told(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [1] * 20)
    b = make_run(tmp_path / "b", [0] * 20, decode={"beams": 5, "window": "own"}, precision="bf16")
    comparison, rows_a, rows_b = comparison_of(a, b)
    assert (comparison.a, comparison.b, len(rows_a), len(rows_b)) == ("a", "b", 20, 20)
    assert comparison.differences[0].difference == pytest.approx(-1 / 6)
    said = {d.what: (d.a, d.b) for d in differing(*sides_of(a, b))}
    assert said == {"decode.beams": ("1", "5"), "precision": ("fp32", "bf16"), "run": ("a", "b")}
    assert len(comparison_of(a, b, set="dev")[1]) == 2


def test_a_rows_file_a_report_and_its_run_are_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [1, 2, 0])
    for path in (run, run / "reports" / "test.jsonl", run / "reports" / "test-greedy.rows.jsonl"):
        one, other = sides_of(run, path)
        assert (one.rows, one.provenance, one.set) == (other.rows, other.provenance, other.set)
    alone = write_rows(tmp_path / "other.rows.jsonl", heard([1, 2, 0]))
    assert differing(*sides_of(run, alone))[0].b == "unknown"
    assert comparison_of(alone, alone)[0].normaliser == "basic"


def test_both_are_scored_by_one_normaliser(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.rows.jsonl", [row("1", "Don't stop.", "don't stop")])
    b = write_rows(tmp_path / "b.rows.jsonl", [row("1", "don't stop", "Don't stop")])
    assert comparison_of(a, b)[0].differences[0].wer_a == 0
    with pytest.raises(BadData, match="two references"):
        comparison_of(a, b, normaliser="none")
    with pytest.raises(BadData, match="no normaliser 'loud'"):
        comparison_of(a, b, normaliser="loud")


def test_paths_that_hold_nothing_to_compare_are_one_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a'; rm -rf x", [1, 0])
    torn = tmp_path / "torn.rows.jsonl"
    torn.write_text('{"id": "1", "ref')
    silent = write_rows(tmp_path / "no.rows.jsonl", [{"id": "1", "text": "only predicted"}])
    empty = write_rows(tmp_path / "empty.rows.jsonl", [])
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF")
    (tmp_path / "nothing").mkdir()
    cases = [(torn, "not JSON Lines"), (silent, "no id, text and reference"), (empty, "holds no rows")]
    cases += [(sound, "neither a run"), (tmp_path / "gone", "not there"), (tmp_path / "nothing", "measured nothing")]
    for path, said in cases:
        with pytest.raises(BadData, match=said) as e:
            comparison_of(run, path)
        assert e.value.hint
    with pytest.raises(BadData, match="no report on 'tset'") as e:
        comparison_of(run, run, set="tset")
    assert "test, dev" in e.value.hint


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"buckets": None}, "buckets are no names"),
        ({"buckets": {"age": 3}}, "buckets are no names"),
        ({"speaker": None}, "speaker is no text"),
        ({"speaker": ["a"]}, "speaker is no text"),
        ({"duration_s": None}, "duration_s is no number"),
        ({"duration_s": float("nan")}, "duration_s is no number"),
        ({"reason": 7}, "reason is no text"),
    ],
)
def test_rows_of_others_that_can_not_be_read_are_one_sentence(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.rows.jsonl", [row("1", "one", "one"), {**row("2", "two", "too"), **more}])
    with pytest.raises(BadData, match=f"row 2: its {said}"):
        comparison_of(path, path)


def test_one_s_test_is_not_compared_with_the_other_s_dev(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", [1, 0]), make_run(tmp_path / "b", [1, 0])
    (b / "reports" / "test.jsonl").unlink()
    with pytest.raises(BadData, match="a was last measured on test, b on dev") as e:
        comparison_of(a, b)
    assert "--set dev" in e.value.hint
    assert comparison_of(a, b, set="dev")[0].differences[0].utterances == 2


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\r\n"])
def test_a_text_with_an_end_of_line_of_its_own_is_still_one_row(end: str, tmp_path: Path) -> None:
    """JSON leaves U+2028 and its kin as they are: texts from web pages hold them."""
    rows = [row("1", f"one{end}two", f"one{end}three", buckets={"title": f"a{end}b"}), row("2", "four", "four")]
    write_all(tmp_path / "evaluate-1.rows.jsonl", rows)
    report = score_transcripts(rows, HOW)
    path = tmp_path / "evaluate-1.json"
    path.write_text(report_json(report, {}, what="greedy") + "\n", encoding="utf-8")
    assert read_scored(tmp_path / "evaluate-1.rows.jsonl") == rows
    (told,) = told_in(path)
    assert told.metrics == report.metrics
    assert comparison_of(path, path)[0].differences[0].utterances == 2
