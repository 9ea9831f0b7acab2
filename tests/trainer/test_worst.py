"""The worst utterances and their sound: which they are, and that keeping them never costs an evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from support.speech import make_corpus

from trainer.data.manifest import Manifest, open_manifests
from trainer.metrics.wer import count_errors
from trainer.recipe.data import Data
from trainer.recipe.eval import Eval
from trainer.results import sound_name
from trainer.worst import keep_sounds, worst_rows

HOW = Eval(normaliser="basic", every_steps=1, worst=3)
TEXTS = st.lists(st.sampled_from(["one", "Two,", "three"]), max_size=5).map(" ".join)


def row(id: str, reference: str, text: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "reference": reference, "text": text, **more}


def test_most_errors_come_first_then_the_highest_rate_and_the_unusable_last() -> None:
    rows = [
        row("right", "One two.", "one two"),
        row("gone", "a b c d e f", "", reason="silent"),
        row("rate", "a", "b c"),
        row("many", "a b c d e f", "x y z d e f"),
        row("long", "a b c d e f", "x y c d e f"),
    ]
    assert [r["id"] for r in worst_rows(rows, HOW.model_copy(update={"worst": 9}))] == ["many", "rate", "long", "gone"]
    assert [r["id"] for r in worst_rows(rows, HOW)] == ["many", "rate", "long"]
    assert worst_rows(rows, HOW.model_copy(update={"worst": 0})) == []
    assert worst_rows([], HOW) == []


def test_errors_are_those_of_the_recipe_s_normaliser() -> None:
    rows = [row("1", "twenty one", "21")]
    assert worst_rows(rows, HOW) == rows
    assert worst_rows(rows, Eval(normaliser="english", every_steps=1)) == []


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), st.randoms())
def test_whatever_the_order_of_rows_the_worst_are_the_same(pairs: Any, random: Any) -> None:
    rows = [row(str(i), a, b) for i, (a, b) in enumerate(pairs)]
    shuffled = [*rows]
    random.shuffle(shuffled)
    found = worst_rows(rows, HOW)
    assert found == worst_rows(shuffled, HOW)

    def errors(r: dict[str, Any]) -> int:
        return count_errors(*(r[k].lower().replace(",", "").split() for k in ("reference", "text"))).total

    totals = [errors(r) for r in found]
    assert totals == sorted(totals, reverse=True)
    assert all(errors(r) <= min(totals, default=0) for r in rows if r not in found) or len(found) < HOW.worst


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    path = make_corpus(tmp_path, 6)
    return open_manifests([path], Data(train=["-"], dev=["-"]), tmp_path, tmp_path / "cache")


def rows_of(manifest: Manifest) -> list[dict[str, Any]]:
    return [row(str(i), "a", "b") for i in manifest.column("id")]


def sounds(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("*.flac")}


def test_the_sound_is_what_was_heard_at_sixteen_kilohertz(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "audio"
    assert keep_sounds(rows_of(manifest), manifest, folder, 2, "a.rows.jsonl") == 2
    assert sounds(folder) == {sound_name("train-0"), sound_name("train-1")}
    wave, rate = soundfile.read(folder / sound_name("train-0"), dtype="float32")
    said, _ = soundfile.read(manifest[0].audio, dtype="float32")
    assert rate == 16_000
    assert np.abs(wave - said).max() < 1e-3
    assert not [p for p in folder.iterdir() if p.name.startswith(".")], "nothing half-written is left"


def test_what_can_not_be_read_is_left_out_and_the_rest_is_kept(manifest: Manifest, tmp_path: Path, caplog: Any) -> None:
    Path(manifest[0].audio).write_bytes(b"no sound")
    Path(manifest[1].audio).unlink()
    rows = [row("of another manifest", "a", "b"), *rows_of(manifest)]
    rows[3]["reason"] = "silent"
    assert keep_sounds(rows, manifest, tmp_path / "audio", 9, "a.rows.jsonl") == 3
    assert sounds(tmp_path / "audio") == {sound_name(f"train-{i}") for i in (3, 4, 5)}
    assert "train-0 has no sound to listen to" in caplog.text


def test_a_folder_that_can_not_be_written_costs_a_warning(manifest: Manifest, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "audio").write_text("a file, where a folder should be")
    assert keep_sounds(rows_of(manifest), manifest, tmp_path / "audio", 9, "a.rows.jsonl") == 0
    assert "could not be kept" in caplog.text


def test_sounds_go_when_the_rows_that_named_them_go(manifest: Manifest, tmp_path: Path) -> None:
    folder, rows = tmp_path / "reports" / "audio", rows_of(manifest)
    for name, some in (("a", rows[:2]), ("b", rows[1:3])):
        keep_sounds(some, manifest, folder, 9, f"{name}.rows.jsonl")
        (folder.parent / f"{name}.rows.jsonl").write_text("")
    assert sounds(folder) == {sound_name(f"train-{i}") for i in range(3)}
    (folder.parent / "a.rows.jsonl").unlink()
    keep_sounds(rows[5:], manifest, folder, 9, "c.rows.jsonl")
    assert sounds(folder) == {sound_name(f"train-{i}") for i in (1, 2, 5)}


@pytest.mark.parametrize("index", ["", "[1, 2]", '{"a": 3}', "{"])
def test_an_index_that_lies_loses_no_sound_of_this_report(manifest: Manifest, tmp_path: Path, index: str) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "index.json").write_text(index)
    keep_sounds(rows_of(manifest)[:1], manifest, folder, 9, "a.rows.jsonl")
    assert sounds(folder) == {sound_name("train-0")}
