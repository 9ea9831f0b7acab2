"""What an audit measured decides what is trained on: by the first rule that fits, and never by another's audit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.speech import make_corpus, recipe_dict, write_manifest

from trainer.data.audited import Places, keys_of, read_audit, side_of
from trainer.data.loader import StepLoader
from trainer.data.sets import DataSets, open_data
from trainer.errors import BadData, BadRecipe
from trainer.recipe.load import parse_recipe
from trainer.task import make_task

N = 20


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PODCTL_VOLUME", str(tmp_path))
    (tmp_path / "data").mkdir()
    make_corpus(tmp_path / "data", N, name="a")
    make_corpus(tmp_path / "data", 10, seed=1, name="b")
    make_corpus(tmp_path / "data", 4, seed=2, name="dev")
    return tmp_path / "data"


def write_audit(folder: Path, rows: list[dict[str, Any]], name: str = "a", **provenance: Any) -> Path:
    """As `trainer audit` leaves it."""
    path = folder / f"{name}.audit.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    told = {"manifest_sha256": hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest(), **provenance}
    facts = {"audit_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "provenance": told, "buckets": []}
    side_of(path).write_text(json.dumps(facts))
    return path


def measured(name: str = "a", n: int = N, **of: Any) -> list[dict[str, Any]]:
    """Row i has wer i / 20; `of` gives other fields as functions of i. The audit's order is not the manifest's."""
    rows = [{"id": f"{name}-{i}", "flags": [], "wer": i / 20, **{k: f(i) for k, f in of.items()}} for i in range(n)]
    return rows[::-1]


def recipe_of(folder: Path, keep: list[dict[str, Any]], more: list[Any] | None = None, **source: Any) -> Any:
    first = {"manifest": "a.jsonl", "audit": "a.audit.jsonl", "keep": keep, **source}
    section = {**recipe_dict(folder)["data"], "train": [first, *(more or [])], "dev": ["dev.jsonl"], "test": []}
    return parse_recipe(recipe_dict(folder, data=section))


def kept_of(data: DataSets) -> set[int]:
    return {int(i.split("-")[1]) for i in data.train.column("id") if i.startswith("a-")}


def test_the_first_rule_that_fits_decides_and_what_none_is_for_stays(data: Path) -> None:
    write_audit(data, measured())
    rules = [{"where": {"age": "old"}, "max_wer": 0.3}, {"where": {"speaker": ["s0", "s1"]}, "max_wer": 0.6}]
    kept = kept_of(open_data(recipe_of(data, rules)))
    for i in range(N):
        limit = 0.3 if i % 2 else (0.6 if i % 3 != 2 else 9)
        assert (i in kept) == (i / 20 <= limit), i
    swapped = kept_of(open_data(recipe_of(data, rules[::-1])))
    assert swapped != kept


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({"max_wer": 0.5}, lambda i: i <= 10),
        ({"max_wer": 0.5, "max_cer": 0.2}, lambda i: i <= 4),
        ({"max_wer": 0.5, "max_cer": 0.2, "either": True}, lambda i: i <= 10),
        ({"min_align": -0.5}, lambda i: i >= 15),
        ({"max_chars": 7, "min_snr_db": 3}, lambda i: 3 <= i <= 7),
        ({"drop": ["odd_text", "clipped"]}, lambda i: i % 5 and i % 7),
        ({"min_chars_per_s": 2, "max_chars_per_s": 4}, lambda i: 2 <= i <= 4),
        ({"max_silence": 0.1, "max_clipping": 0.05}, lambda i: i <= 5),
    ],
)
def test_each_limit_is_held(data: Path, keep: dict[str, Any], left: Any) -> None:
    rows = measured(
        cer=lambda i: i / 20,
        align=lambda i: (i - 20) / 10 + 1e-9,
        chars=lambda i: i,
        chars_per_s=lambda i: i,
        snr_db=lambda i: float(i),
        silence=lambda i: i / 50,
        clipping=lambda i: i / 100,
        flags=lambda i: [*(["odd_text"] if i % 5 == 0 else []), *(["clipped", "fast"] if i % 7 == 0 else [])],
    )
    write_audit(data, rows)
    assert kept_of(open_data(recipe_of(data, [keep]))) == {i for i in range(N) if left(i)}


def test_either_differs_from_both(data: Path) -> None:
    write_audit(data, measured(cer=lambda i: 1 - i / 20))
    both = kept_of(open_data(recipe_of(data, [{"max_wer": 0.6, "max_cer": 0.6}])))
    either = kept_of(open_data(recipe_of(data, [{"max_wer": 0.6, "max_cer": 0.6, "either": True}])))
    assert both == set(range(8, 13))
    assert either == set(range(N))


def test_what_was_not_measured_in_an_utterance_holds_no_limit_and_is_counted(data: Path) -> None:
    write_audit(data, measured(wer=lambda i: None if i < 3 else 0.1))
    found = open_data(recipe_of(data, [{"max_wer": 0.5}]))
    assert kept_of(found) == set(range(3, N))
    (rule,) = found.sources[0].keep.rules
    assert (rule.left_out, rule.utterances, rule.by_limit) == (3, N, {"max_wer": 3})
    assert rule.left_out_h > 0


def test_filters_rules_and_limits_come_in_that_order_and_say_so(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_audit(data, measured())
    rules = [{"where": {"age": "old"}, "max_wer": 0.5}]
    found = open_data(recipe_of(data, rules, ["b.jsonl"], where={"speaker": ["s0", "s1"]}, limit=5))
    told = found.sources[0]
    assert (told.utterances, told.used, told.filtered["where.speaker"]) == (N, 5, 6)
    assert len(kept_of(found)) == 5
    assert found.sources[1].used == 10
    assert "rule 1, for age old: 3 of 7 left out" in caplog.text
    assert "(max_wer 3)" in caplog.text


def test_another_audit_is_another_training_and_any_step_comes_again(data: Path) -> None:
    write_audit(data, measured())
    recipe = recipe_of(data, [{"max_wer": 0.5}], ["b.jsonl"])
    first, again = open_data(recipe), open_data(recipe)
    assert first.sha256 == again.sha256
    steps = [StepLoader(make_task(recipe), d.train, recipe).micros_of(9) for d in (first, again)]
    assert str(steps[0]) == str(steps[1])
    write_audit(data, measured(cer=lambda i: 0.0))  # the same rows stay, by another word
    assert open_data(recipe).sha256["train"] != first.sha256["train"]


def test_an_audit_of_another_version_of_the_manifest_is_refused(data: Path) -> None:
    write_audit(data, measured())
    with (data / "a.jsonl").open("a") as f:
        f.write("\n")
    with pytest.raises(BadData, match=r"another version of a\.jsonl") as caught:
        open_data(recipe_of(data, [{"max_wer": 0.5}]))
    assert "trainer audit a.jsonl" in caught.value.hint


def test_an_audit_that_lacks_an_id_is_refused(data: Path) -> None:
    write_audit(data, measured()[1:])
    with pytest.raises(BadData, match=r"lacks 1 of 20 ids of a.jsonl, a-19 among them"):
        open_data(recipe_of(data, [{"max_wer": 0.5}]))


def test_an_audit_that_lacks_what_rules_go_by_is_refused_with_all_that_is_missing(data: Path) -> None:
    write_audit(data, measured(wer=lambda i: None), flags_looked_for=["clipped"])
    rules = [{"where": {"age": "old"}, "max_wer": 0.5}, {"min_align": -1, "drop": ["in_other_set", "clipped"]}]
    with pytest.raises(BadData) as caught:
        open_data(recipe_of(data, rules))
    for words in ("rule 1 goes by max_wer", "no wer", "rule 2 goes by min_align", "rule 2 drops in_other_set"):
        assert words in caught.value.message
    for words in ("--rows", "--align", "--against"):
        assert words in caught.value.hint


def test_a_file_that_is_not_what_its_summary_is_about_is_refused(data: Path) -> None:
    recipe = recipe_of(data, [{"max_wer": 0.5}])
    with pytest.raises(BadData, match="there is no audit"):
        open_data(recipe)
    path = write_audit(data, measured())
    path.write_text(path.read_text() + '{"id": "a-99", "flags": []}\n')
    with pytest.raises(BadData, match="is not the file"):
        open_data(recipe)
    side_of(path).write_text("{half")
    with pytest.raises(BadData, match="absent or not whole"):
        open_data(recipe)
    write_audit(data, measured())
    path.write_text("no JSON at all\n")
    side_of(path).write_text(
        json.dumps(
            {**json.loads(side_of(path).read_text()), "audit_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        )
    )
    with pytest.raises(BadData, match="is not what it should be"):
        open_data(recipe)


def test_rules_that_leave_nothing_are_refused(data: Path) -> None:
    write_audit(data, measured())
    with pytest.raises(BadData, match="its filters leave none of 20") as caught:
        open_data(recipe_of(data, [{"max_wer": 0}], where={"speaker": "s1"}))
    assert "keep" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"keep": [{"drop": ["duplicat_sound"]}]}, "did you mean duplicate_sound"),
        ({"keep": [{"either": True, "max_wer": 0.5}]}, "needs both"),
        ({"audit": None}, "keep goes by an audit"),
        ({"manifest": None, "hub": "a/b"}, "audit is about a manifest"),
    ],
)
def test_rules_that_can_not_be_are_mistakes_of_the_recipe(data: Path, source: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRecipe, match=says):
        recipe_of(data, [{"max_wer": 0.5}], **source) if "keep" not in source else recipe_of(data, source["keep"])


def test_ids_of_any_kind_meet_their_rows(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "a.jsonl").read_text().splitlines()]
    unkind = ["a'; rm -rf /", "émile", "2024-01-01", "12", "null", "\u2028x", "a b\tc"]
    for row, id in zip(rows, unkind, strict=False):
        row["id"] = id
    write_manifest(data / "a.jsonl", rows)
    write_audit(data, [{"id": r["id"], "flags": [], "wer": float(n)} for n, r in enumerate(rows)])
    found = open_data(recipe_of(data, [{"max_wer": 4.0}]))
    assert list(found.train.column("id")) == unkind[:5]


def test_rows_are_read_as_columns(tmp_path: Path) -> None:
    n = 20_000
    make_corpus(tmp_path, 1, name="a")
    path = write_audit(
        tmp_path, [{"id": f"utterance-{i}", "flags": ["fast"] if i % 10 == 0 else [], "wer": i / n} for i in range(n)]
    )
    audit = read_audit(path, "a.jsonl", ["wer", "align"], ["fast", "slow"])
    assert audit.measures["wer"].dtype == np.float64
    assert audit.flags["fast"].sum() == n // 10
    assert not audit.flags["slow"].any()
    assert np.isnan(audit.measures["align"]).all()
    wanted = keys_of(["utterance-7", "nobody", "utterance-19999"])
    assert Places(audit.keys).of(wanted).tolist() == [7, -1, 19_999]
