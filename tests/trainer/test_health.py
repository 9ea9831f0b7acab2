"""What a run's data is like is written down as it begins: from columns, with what was left out and why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.speech import recipe_dict, write_experiment, write_manifest

from remote.rundir import RunDir
from trainer.__main__ import main
from trainer.data.buckets import codes_of, rows_with, text_lengths
from trainer.data.health import EDGES_S, health, kind_of
from trainer.data.sets import open_data
from trainer.recipe.load import parse_recipe
from trainer.train import train


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def spoilt(corpus: Path) -> Path:
    rows = rows_of(corpus / "train.jsonl")
    rows += [{**rows[0], "id": f"gone-{i}", "audio": f"gone-{i}.wav"} for i in range(3)]
    rows += [{**rows[0], "id": "long", "duration_s": 60}]
    write_manifest(corpus / "train.jsonl", rows)
    return corpus


def recipe_of(corpus: Path, **data: Any) -> Any:
    section = {**recipe_dict(corpus)["data"], "max_bad_share": 0.5, **data}
    return parse_recipe(
        recipe_dict(corpus, data=section, eval={**recipe_dict(corpus)["eval"], "buckets": ["age", "duration"]})
    )


def test_sets_are_counted_by_bucket_length_speed_and_what_is_unusable(spoilt: Path) -> None:
    recipe = recipe_of(spoilt)
    data = open_data(recipe)
    told = health(recipe, data)
    train_set, dev, test = told["sets"]
    assert [s["set"] for s in told["sets"]] == ["train", "dev", "test"]
    assert (train_set["utterances"], train_set["speakers"], dev["utterances"], test["utterances"]) == (20, 3, 4, 4)
    assert train_set["hours"] == pytest.approx(data.train.hours, abs=1e-4)
    for field in ("age", "duration"):
        mine = [b for b in train_set["buckets"] if b["set"].startswith(f"{field}=")]
        assert sum(b["utterances"] for b in mine) == 20
        assert sum(b["hours"] for b in mine) == pytest.approx(data.train.hours, abs=1e-3)
    assert sum(train_set["durations_s"]["utterances"]) == 20
    assert len(train_set["durations_s"]["utterances"]) == len(EDGES_S)
    quantiles = list(train_set["chars_per_s"].values())
    assert quantiles == sorted(quantiles)
    assert train_set["quarantined"]["utterances"] == 4
    assert sorted(train_set["quarantined"]["reasons"].values()) == [1, 3], "reasons are kinds, not rows"
    assert told["sources"] == []


def test_what_filters_and_rules_left_out_is_told_with_the_audit(spoilt: Path) -> None:
    assert main(["audit", str(spoilt / "train.jsonl")]) == 0
    rules = [{"where": {"age": "old"}, "max_chars": 7}, {"drop": ["silent"]}]
    source = {"manifest": str(spoilt / "train.jsonl"), "audit": str(spoilt / "train.audit.jsonl"), "keep": rules}
    recipe = recipe_of(spoilt, train=[{**source, "where": {"speaker": ["s0", "s1"]}}])
    data = open_data(recipe)
    (told,) = health(recipe, data)["sources"]
    texts = [r for r in rows_of(spoilt / "train.jsonl")[:20] if r["speaker"] != "s2"]
    too_long = [r for r in texts if r["age"] == "old" and len(r["text"]) > 7]
    assert too_long
    assert told["filtered"] == {"where.speaker": 6}
    assert [(r["utterances"], r["left_out"]) for r in told["rules"]] == [(7, len(too_long)), (7, 0)]
    assert told["rules"][0]["by_limit"] == {"max_chars": len(too_long)}
    assert told["rules"][0]["left_out_h"] == pytest.approx(sum(r["duration_s"] for r in too_long) / 3600, abs=1e-4)
    assert told["used"] == len(texts) - len(too_long) == len(data.train)
    assert told["audit"]["buckets"][0]["set"] == "all"
    assert "provenance" not in told["audit"]


def test_a_training_leaves_it_in_its_reports(spoilt: Path, tmp_path: Path) -> None:
    section = {**recipe_dict(spoilt)["data"], "max_bad_share": 0.5}
    file = write_experiment(
        tmp_path / "e.yaml", recipe_dict(spoilt, data=section, loop={**recipe_dict(spoilt)["loop"], "steps": 1})
    )
    run = RunDir(tmp_path / "run")
    train(file, run, stop=lambda: False)
    told = json.loads(run.data_health.read_text())
    assert told["sets"][0]["utterances"] == 20
    assert told["sets"][0]["buckets"][0]["set"] == "age=old"


def test_codes_are_the_buckets_of_every_row_whatever_subset(spoilt: Path) -> None:
    manifest = open_data(recipe_of(spoilt)).train.subset(np.array([7, 3, 11, 0]))
    for name in ("speaker", "language", "source", "age", "duration", "nothing"):
        codes, values = codes_of(manifest, name)
        assert [values[c] for c in codes] == [manifest[i].bucket(name) for i in range(4)]
    assert rows_with(manifest, "age", {"old"}).tolist() == [manifest[i].bucket("age") == "old" for i in range(4)]
    assert text_lengths(manifest).tolist() == [len(manifest[i].text) for i in range(4)]
    empty = manifest.subset(np.zeros(0, int))
    assert len(rows_with(empty, "age", {"old"})) == 0


def test_kinds_of_reasons_hold_no_name_and_no_number() -> None:
    assert kind_of("a/b.wav ends at 1.20 s, not 3.00 s") == kind_of("c.wav ends at 0.10 s, not 9.99 s")
    assert kind_of("empty transcript") == "empty transcript"
