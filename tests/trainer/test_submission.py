"""What is handed in has the format's ids, order and fields; what is empty is told, what is wrong is told at once."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.children import Children, make_children
from support.speech import make_corpus, make_teacher, recipe_dict

from trainer.__main__ import main
from trainer.pace import Pace
from trainer.submission import read_format


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    return make_children(tmp_path_factory.mktemp("raw"), n=40, archives=False, n_test=12, broken=False, n_long=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper that never learnt anything, in the Hub's layout."""
    folder = tmp_path_factory.mktemp("model")
    make_corpus(folder, 2)
    return make_teacher(folder / "whisper", recipe_dict(folder))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    return path


def predict(model: Path, manifest: Path, form: Path, out: Path, code: int) -> None:
    sets = ["--set", "eval.decode.max_new_tokens=4", "--set", "loop.threads=1", "--ranks", "1"]
    argv = ["predict", "--model", model, manifest, "--format", form, "--out", out, *sets]
    assert main(list(map(str, argv))) == code


def check(file: Path, form: Path) -> int:
    return main(["predict", "--check", str(file), "--format", str(form)])


def test_the_competitions_own_files_become_a_submission(
    children: Children, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its metadata is read as it is: no field has to be named."""
    test = children.source / "test"
    form = write(
        tmp_path / "format.jsonl",
        [{"utterance_id": i, "site": f"s{n}", "orthographic_text": ""} for n, i in enumerate(children.test)],
    )
    predict(model, test / "utterance_metadata.jsonl", form, tmp_path / "sub.jsonl", 0)
    said = capsys.readouterr()
    rows = lines(tmp_path / "sub.jsonl")
    assert [r["utterance_id"] for r in rows] == list(children.test)
    assert [list(r) for r in rows] == [["utterance_id", "site", "orthographic_text"]] * 12
    assert [r["site"] for r in rows] == [f"s{n}" for n in range(12)]
    assert all(isinstance(r["orthographic_text"], str) for r in rows)
    assert "times real time (RTFx)" in said.err
    assert said.out.count("{") == 0
    assert check(tmp_path / "sub.jsonl", form) == 0


def test_audio_that_cannot_be_used_is_an_empty_text_that_is_told(
    children: Children, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test"
    shutil.copytree(children.source / "test", test)
    broken, gone = list(children.test)[:2]
    sound = test / "audio" / f"{broken}.flac"
    sound.write_bytes(sound.read_bytes()[:200])
    (test / "audio" / f"{gone}.flac").unlink()
    form, out = test / "submission_format.jsonl", tmp_path / "sub.jsonl"
    predict(model, test / "utterance_metadata.jsonl", form, out, 1)
    said = capsys.readouterr().err
    texts = {r["utterance_id"]: r["orthographic_text"] for r in lines(out)}
    assert list(texts) == list(children.test), "it is whole in ids, so it is there"
    assert texts[broken] == texts[gone] == ""
    assert f"{gone}.flac is in none of" in said
    assert broken in said
    assert "2 of 12 could not be transcribed" in said


def test_ids_that_nobody_can_say_are_found_before_anything_is_decoded(
    children: Children, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = children.source / "test"
    form = write(
        tmp_path / "f.jsonl", [*lines(test / "submission_format.jsonl"), {"utterance_id": "T_more", "text": ""}]
    )
    form.write_text(form.read_text().replace('"text"', '"orthographic_text"'))
    predict(model, test / "utterance_metadata.jsonl", form, tmp_path / "sub.jsonl", 2)
    assert "asks for 1 utterances" in capsys.readouterr().err
    assert not (tmp_path / "sub.jsonl").exists()
    fewer = write(tmp_path / "fewer.jsonl", lines(test / "submission_format.jsonl")[3:])
    predict(model, test / "utterance_metadata.jsonl", fewer, tmp_path / "sub.jsonl", 0)
    assert "3 utterances are not asked for" in capsys.readouterr().err
    assert len(lines(tmp_path / "sub.jsonl")) == 9


FORM = [{"utterance_id": f"u{n}", "split": "a", "orthographic_text": ""} for n in range(6)]


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = write(tmp_path / "format.jsonl", FORM)
    good = [{**r, "orthographic_text": "hello"} for r in FORM]
    bad: list[Mapping[str, Any] | str] = [
        good[0],
        {**good[1], "orthographic_text": None},
        {**good[2], "split": "b"},
        {"orthographic_text": "no id"},
        "not json",
        {**good[3], "orthographic_text": "  "},
        good[4],
        good[4],
        {**good[0], "utterance_id": "u9"},
    ]
    assert check(write(tmp_path / "sub.jsonl", bad), form) == 1
    said = capsys.readouterr().err
    for words in (
        "2 lines are no JSON objects",
        "1 ids are missing: u5",
        "1 ids are not asked for: u9",
        "1 ids stand twice: u4",
        "1 rows have other fields than the format, beside orthographic_text: u2",
        "1 rows have no orthographic_text that is a text: u1",
        "1 of 7 texts are empty: u3",
    ):
        assert words in said, words


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda rows: rows, 0, ""),
        (lambda rows: rows[::-1], 1, "the order differs from line 1"),
        (lambda rows: [*rows[:3], rows[4], rows[3], *rows[5:]], 1, "line 4 on: 'u4', the format has 'u3'"),
        (lambda rows: [{**r, "orthographic_text": ""} for r in rows], 0, "6 of 6 texts are empty"),
        (lambda rows: [{k: v for k, v in r.items() if k != "split"} for r in rows], 1, "6 rows have other fields"),
        (lambda rows: [{**r, "more": 1} for r in rows], 1, "6 rows have other fields"),
        (lambda rows: [], 1, "6 ids are missing"),
        (lambda rows: [{**r, "orthographic_text": "a'; rm -rf / \n ü"} for r in rows], 0, ""),
    ],
)
def test_a_file_is_what_the_format_asks_for_or_it_is_said(
    change: Any, code: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = change([{**r, "orthographic_text": "hello"} for r in FORM])
    assert check(write(tmp_path / "sub.jsonl", rows), write(tmp_path / "format.jsonl", FORM)) == code
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows", [[], ["no json"], [{"x": 1}], [{"utterance_id": "a"}], [FORM[0], FORM[0]], [FORM[0], {"utterance_id": 3}]]
)
def test_what_is_no_format_is_one_sentence(rows: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "any.jsonl", write(tmp_path / "format.jsonl", rows)) == 2
    said = capsys.readouterr().err
    assert "→" in said
    assert len(said.splitlines()) == 2
    assert check(tmp_path / "any.jsonl", tmp_path / "absent.jsonl") == 2


def test_other_names_of_fields_are_those_of_the_format(tmp_path: Path) -> None:
    form = read_format(write(tmp_path / "f.jsonl", [{"text": "", "id": "a"}]))
    assert (form.id, form.text, form.ids) == ("id", "text", ["a"])


def test_a_check_without_a_format_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--check", str(tmp_path / "x.jsonl")]) == 2
    assert "--format" in capsys.readouterr().err


def test_the_pace_is_seconds_of_audio_a_second() -> None:
    now = [100.0]
    pace = Pace(7200.0, lambda: now[0])
    assert pace.left(1, 10) == "", "too early to say"
    now[0] += 60
    assert pace.left(5, 20) == ", about 3 m left"
    assert pace.line(20) == "20 utterances, 2 h of audio in 1 m: 120.0 times real time (RTFx)"


def test_predictions_stand_in_the_order_of_what_was_asked_also_what_could_not_be_used(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(tmp_path, 4, name="some")
    rows = lines(tmp_path / "some.jsonl")
    rows[1]["audio"] = "nowhere.wav"
    del rows[2]["id"]
    sets = ["--set", "eval.decode.max_new_tokens=4", "--set", "loop.threads=1", "--ranks", "1"]
    manifest = write(tmp_path / "gone.jsonl", [*rows, rows[0]])
    assert main(["predict", "--model", str(model), str(manifest), "--out", str(tmp_path / "a.jsonl"), *sets]) == 1
    assert [r["id"] for r in lines(tmp_path / "a.jsonl")] == [
        rows[0]["id"],
        rows[1]["id"],
        "gone.jsonl:3",
        rows[3]["id"],
    ]
    said = capsys.readouterr().err
    assert "2 of 4 could not be transcribed" in said
    assert "1 rows repeat an id" in said
    sounds = [str(tmp_path / rows[0]["audio"]), str(tmp_path / "nowhere.wav"), str(tmp_path / rows[3]["audio"])]
    assert main(["predict", "--model", str(model), *sounds, "--out", str(tmp_path / "b.jsonl"), *sets]) == 1
    assert [r["id"] for r in lines(tmp_path / "b.jsonl")] == sounds


def test_a_row_that_stands_twice_is_no_failure_and_one_that_is_not_asked_for_is_none_on_any_rank(
    model: Path, tmp_path: Path
) -> None:
    make_corpus(tmp_path, 4, name="some")
    rows = lines(tmp_path / "some.jsonl")
    manifest = write(tmp_path / "twice.jsonl", [*rows, rows[0]])
    sets = ["--set", "eval.decode.max_new_tokens=4", "--set", "loop.threads=1"]
    argv = ["predict", "--model", str(model), str(manifest), "--out", str(tmp_path / "a.jsonl"), *sets]
    assert main([*argv, "--ranks", "1"]) == 0
    rows[1]["audio"] = "nowhere.wav"
    write(manifest, rows)
    form = write(tmp_path / "form.jsonl", [{"id": r["id"], "text": ""} for r in (rows[3], rows[0])])
    assert [main([*argv, "--format", str(form), "--ranks", n]) for n in ("1", "2")] == [0, 0]
