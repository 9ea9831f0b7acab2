"""From the competition's files to sets that share no speaker: nothing is lost, nothing is believed."""

import json
import math
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.children import NOISES, Children, make_children
from support.speech import recipe_dict, write_experiment

from trainer.__main__ import main
from trainer.data.audio import RATE, read_audio
from trainer.data.children import Row, group_rows, row_of
from trainer.data.manifest import open_manifests
from trainer.data.sounds import noise_of, snr_db
from trainer.recipe.data import Data

SETS = ("train", "dev", "test")


def prepare(source: Path, out: Path, *more: object, code: int = 0) -> dict[str, Any]:
    assert main(["prepare", "children", str(source), "--out", str(out), *map(str, more)]) == code
    return json.loads((out / "split.json").read_text()) if code == 0 else {}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Children, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("children")
    children = make_children(folder / "raw", n=360, talkbank=60, archives=("zip", "tar", "tar.gz"))
    return children, folder / "out", prepare(folder / "raw", folder / "out", "--dev", 0.1, "--test", 0.1)


def test_every_row_is_in_a_set_or_in_quarantine_and_nowhere_twice(made: Any) -> None:
    children, out, _ = made
    seen = Counter(r["id"] for name in (*SETS, "long", "quarantine") for r in rows_of(out / f"{name}.jsonl"))
    assert seen == Counter(r["utterance_id"] for r in children.rows)


def test_what_is_broken_is_in_quarantine_with_its_reason_and_nothing_else(made: Any) -> None:
    children, out, _ = made
    reasons = {r["id"]: r["reason"] for r in rows_of(out / "quarantine.jsonl")}
    assert set(reasons) == children.broken
    for id, word in (
        (children.truncated, "can't be decoded"),
        (children.wrong_md5, "another md5"),
        (children.missing, "no such file"),
        (children.empty_text, "empty transcript"),
        (children.silent, "silent"),
    ):
        assert reasons[id].startswith(word)
    assert str(out.parent) not in "".join(reasons.values()), "the same words wherever it lies"


def test_no_child_session_or_sound_stands_on_two_sides(made: Any) -> None:
    children, out, _ = made
    raw = {r["utterance_id"]: r for r in children.rows}
    sides: dict[str, set[str]] = defaultdict(set)
    for name in SETS:
        for row in rows_of(out / f"{name}.jsonl"):
            if raw[row["id"]].get("child_id"):
                sides[f"child {raw[row['id']]['child_id']}"].add(name)
            sides[f"group {row['meta']['group']}"].add(name)
            sides[f"sound {row['sha256']}"].add(name)
    for row in rows_of(out / "long.jsonl"):
        sides[f"child {row['speaker']}"].add(row["meta"]["set"])
    assert {n: s for n, s in sides.items() if len(s) > 1} == {}
    assert sum(n.startswith("child ") for n in sides) > 30


def test_shares_of_ages_are_those_of_the_whole_or_it_is_said(made: Any) -> None:
    _, out, told = made
    ages = {name: Counter(r["meta"]["age_bucket"] for r in rows_of(out / f"{name}.jsonl")) for name in SETS}
    whole = sum(ages.values(), Counter())
    for name in ("dev", "test"):
        for age in whole:
            off = abs(ages[name][age] / ages[name].total() - whole[age] / whole.total())
            assert off <= 0.01 or any(m.startswith(name) and f" {age} " in m for m in told["misses"])


def test_rows_hold_what_the_sound_is_and_not_what_was_claimed(made: Any) -> None:
    children, out, told = made
    rows = {r["id"]: r for name in SETS for r in rows_of(out / f"{name}.jsonl")}
    wrong = rows[children.lying_duration]
    claimed = next(r for r in children.rows if r["utterance_id"] == children.lying_duration)["audio_duration_sec"]
    assert wrong["duration_s"] == pytest.approx(claimed - 3, abs=0.01)
    assert told["wrong_durations"] == 1
    for row in list(rows.values())[:40]:
        wave_T = read_audio(str(out / row["audio"]))
        assert len(wave_T) / RATE == pytest.approx(row["duration_s"], abs=1e-6)
        assert set(row["meta"]) >= {"age_bucket", "noise", "group"}
    assert rows[children.duplicate[0]]["sha256"] == rows[children.duplicate[1]]["sha256"]
    assert {r["source"] for r in rows.values()} == {"train_word_transcripts", "talkbank_word_transcripts"}


def test_what_is_long_is_apart_and_says_on_which_side_its_speaker_is(made: Any) -> None:
    children, out, _ = made
    long = rows_of(out / "long.jsonl")
    assert {r["id"] for r in long} == set(children.long)
    sides = {r["meta"]["group"]: name for name in SETS for r in rows_of(out / f"{name}.jsonl")}
    for row in long:
        assert row["meta"]["set"] == sides.get(row["meta"]["group"], "train")


def test_the_manifests_open_where_they_lie_and_after_the_volume_moved(made: Any, tmp_path: Path) -> None:
    _, out, _ = made
    shutil.copytree(out, tmp_path / "moved" / "data" / "children")
    there = tmp_path / "moved" / "data"
    for name in (*SETS, "dev_small"):
        manifest = open_manifests(
            [there / "children" / f"{name}.jsonl"], Data(train=["-"], dev=["-"]), there, tmp_path / "cache"
        )
        assert manifest.bad == []
        assert manifest[0].audio.startswith(str(there))
    test = Data(train=["-"], dev=["-"], max_bad_share=0)
    submission = open_manifests([there / "children/submission.jsonl"], test, there, tmp_path / "c", need_text=False)
    assert len(submission) == 20


def test_dev_small_is_part_of_dev(made: Any, tmp_path: Path) -> None:
    children, out, _ = made
    dev = {r["id"] for r in rows_of(out / "dev.jsonl")}
    assert {r["id"] for r in rows_of(out / "dev_small.jsonl")} == dev, "dev has fewer than 500"
    prepare(children.source, tmp_path, "--dev", 0.1, "--test", 0.1, "--dev-small", 20)
    assert len(rows_of(tmp_path / "dev_small.jsonl")) == 20
    assert {r["id"] for r in rows_of(tmp_path / "dev_small.jsonl")} < dev


def test_again_is_the_same_to_the_byte_whatever_the_order_and_the_packing(tmp_path: Path) -> None:
    zips = make_children(tmp_path / "a", n=120)
    make_children(tmp_path / "b", n=120, archives=False)
    file = tmp_path / "b" / "train_word_transcripts.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    first = prepare(zips.source, tmp_path / "out a")
    again = prepare(zips.source, tmp_path / "out a")
    other = prepare(tmp_path / "b", tmp_path / "out b")
    assert first == again
    assert first["split_sha256"] == other["split_sha256"]
    for name in SETS:
        ids = [[r["id"] for r in rows_of(tmp_path / out / f"{name}.jsonl")] for out in ("out a", "out b")]
        assert ids[0] == ids[1]


def test_killed_while_files_appear_no_split_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    children = make_children(tmp_path / "raw", n=60, n_long=0, broken=False)
    (tmp_path / "out" / "train.jsonl").mkdir(parents=True)  # cannot be replaced by a file
    prepare(children.source, tmp_path / "out", code=2)
    assert f"{str(tmp_path / 'out' / 'train.jsonl')!r}: Is a directory" in capsys.readouterr().err
    assert not (tmp_path / "out" / "split.json").exists()
    assert not list((tmp_path / "out").glob(".*.part"))


def test_too_much_that_is_broken_is_refused_with_counts_and_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children = make_children(tmp_path / "raw", n=60, n_long=0, n_test=0)
    prepare(children.source, tmp_path / "out", code=2)
    said = capsys.readouterr().err
    assert "5 of 60 utterances can't be used (8.3 %)" in said
    assert "1 × another md5" in said
    assert {r["id"] for r in rows_of(tmp_path / "out" / "refused.jsonl")} == children.broken
    assert not (tmp_path / "out" / "train.jsonl").exists()
    prepare(children.source, tmp_path / "out", "--max-bad-share", 0.1)
    assert not (tmp_path / "out" / "refused.jsonl").exists()


def test_a_sound_in_two_folders_is_an_error_that_names_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_children(tmp_path / "raw", n=60, archives=False, n_test=0)
    one = next((tmp_path / "raw/audio_part_0/audio").iterdir())
    shutil.copy(one, tmp_path / "raw/audio_part_1/audio" / one.name)
    prepare(tmp_path / "raw", tmp_path / "out", code=2)
    assert f"audio_part_0/audio/{one.name} and" in capsys.readouterr().err


def test_folders_without_audio_in_their_path_and_half_unpacked_archives_do(tmp_path: Path) -> None:
    """`audio_0/ID.flac`, a folder within the archive's folder, an archive left beside its folder."""
    make_children(tmp_path / "raw", n=150, archives=False, n_test=0, broken=False)
    raw = tmp_path / "raw"
    (raw / "audio_part_0" / "audio").rename(raw / "audio_0")
    (raw / "audio_part_0").rmdir()
    (raw / "more").mkdir()
    (raw / "audio_part_1").rename(raw / "more" / "audio_part_1")
    (raw / "audio_part_2.zip").write_bytes(b"not looked at")
    assert prepare(raw, tmp_path / "out")["quarantined"] == {}


def test_unkind_rows_are_quarantined_one_by_one(tmp_path: Path) -> None:
    make_children(tmp_path / "raw", n=200, n_test=0, broken=False)
    file = tmp_path / "raw" / "train_word_transcripts.jsonl"
    rows = rows_of(file)
    unkind = [
        "not json",
        "[1, 2]",
        json.dumps({**rows[0], "utterance_id": None}),
        json.dumps({**rows[1], "utterance_id": "a'; rm -rf /", "audio_path": None}),
        json.dumps({**rows[2], "utterance_id": "no text", "orthographic_text": 5.5}),
        json.dumps(rows[3]),
        json.dumps({**rows[4], "orthographic_text": "something else"}),
        json.dumps({**rows[5], "utterance_id": "size", "filesize_bytes": "17"}),
        json.dumps({**rows[7], "utterance_id": "half", "orthographic_text": "low \ud83d"}),
        json.dumps({**rows[8], "utterance_id": "half \ud83d", "child_id": "\udc00"}),
    ]
    strange = {**rows[6], "utterance_id": "fine", "audio_duration_sec": "long", "age_bucket": None, "child_id": 7}
    strange |= {"md5_hash": strange["md5_hash"].upper(), "session_id": ["x"]}
    file.write_text("\n".join([*map(json.dumps, rows), *unkind, "", json.dumps(strange)]), encoding="utf-8")
    told = prepare(tmp_path / "raw", tmp_path / "out", "--max-bad-share", 0.1)
    assert told["quarantined"] == {
        "its line is not a JSON object": 2,
        "its id stands on rows that differ": 2,
        "no utterance_id": 1,
        "no audio_path": 1,
        "empty transcript": 1,
        "its row stands twice": 1,
        "holds half a character": 2,
        "another size": 1,
    }
    found = {r["id"]: r for name in SETS for r in rows_of(tmp_path / "out" / f"{name}.jsonl")}
    assert found["fine"]["meta"]["age_bucket"] == "unknown"
    assert found["fine"]["speaker"] == "7"


def test_options_that_cannot_be_meant_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dev 200` is what `prepare demo` takes."""
    make_children(tmp_path / "raw", n=60, n_test=0, broken=False)
    more = ["--dev", 200, "--test", "nan", "--dev-small", -1, "--max-s", 0, "--max-bad-share", 2, "--workers", -1]
    prepare(tmp_path / "raw", tmp_path / "out", *more, code=2)
    said = capsys.readouterr().err
    for option in more[::2]:
        assert f"{option}: " in said
    prepare(tmp_path / "raw", tmp_path / "out", "--dev", 0.6, "--test", 0.4, code=2)
    assert "leave nothing to train on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was decoded for it"


@pytest.mark.parametrize("argv", [["nowhere", "--out", "o"], ["."], [".", "more", "--out", "o"], [".", "--out", "o"]])
def test_what_is_no_such_folder_is_one_sentence(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "children", *argv]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_test_set_is_a_manifest_in_the_order_of_the_format(made: Any) -> None:
    children, out, _ = made
    assert [r["id"] for r in rows_of(out / "submission.jsonl")] == list(children.test)
    assert (out / "submission_format.jsonl").read_bytes() == (
        children.source / "test/submission_format.jsonl"
    ).read_bytes()
    assert all("text" not in r for r in rows_of(out / "submission.jsonl"))


def test_a_test_recording_that_is_missing_keeps_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    children = make_children(tmp_path / "raw", n=150, archives=False, n_test=5)
    gone = next(iter(children.test))
    (tmp_path / "raw/test/audio" / f"{gone}.flac").unlink()
    prepare(tmp_path / "raw", tmp_path / "out")
    assert "5 utterances, 1 without usable audio" in capsys.readouterr().out
    assert [r["id"] for r in rows_of(tmp_path / "out/submission.jsonl")] == list(children.test)


@pytest.mark.slow
def test_what_is_prepared_trains_a_model_whose_answer_can_be_handed_in(tmp_path: Path) -> None:
    """Words are tones: after some steps a tiny Whisper hears most of the test set, which no child of training spoke."""
    children = make_children(tmp_path / "raw", n=1200, n_test=40)
    prepare(children.source, tmp_path / "children")
    scratch = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn": 64, "mels": 40}
    train = recipe_dict(
        tmp_path / "children",
        model={"from_scratch": {**scratch, "window_s": 2, "max_tokens": 40}, "full_window_share": 0},
        optim={"lr": 4e-3},
        loop={"steps": 250, "step_utts": 24, "micro_s": 60},
        eval={"every_steps": 250, "before_training": False, "decode": {"max_new_tokens": 24}},
    )
    train["data"]["dev"] = [str(tmp_path / "children" / "dev_small.jsonl")]
    file = write_experiment(tmp_path / "e.yaml", train)
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    manifest, form, out = (tmp_path / n for n in ("children/submission.jsonl", "children/submission_format.jsonl", "s"))
    argv = ["predict", "--run", tmp_path / "run", manifest, "--format", form, "--out", out, "--ranks", 1]
    assert main([str(a) for a in argv]) == 0
    assert main(["predict", "--check", str(out), "--format", str(form)]) == 0
    said = {r["utterance_id"]: r["orthographic_text"] for r in rows_of(out)}
    assert list(said) == list(children.test)
    right = sum(said[i] == text for i, text in children.test.items())
    assert right >= 30, f"{right} of 40"


def test_a_child_is_the_same_one_as_a_number_a_float_and_a_text() -> None:
    """A table with gaps in a column of numbers writes 7.0 and NaN."""
    raw = {"utterance_id": "a", "audio_path": "a.wav", "orthographic_text": "low"}
    found = [row_of({**raw, "child_id": c, "session_id": c}, "s", "s:1") for c in (7, 7.0, "7", math.nan, math.inf)]
    assert [(r.child, r.session) for r in found if isinstance(r, Row)] == [("7", "7")] * 3 + [("", "")] * 2


def row(id: str, child: str = "", session: str = "", source: str = "s") -> Row:
    return Row(id, f"audio/{id}.flac", "x", child, session, "5-7", source, 1.0, "", None)


def test_child_wins_over_session_and_nameless_rows_tie_a_session() -> None:
    rows = [row("a", "C1", "S1"), row("b", "C2", "S1"), row("c", "C1", "S2"), row("d", "C3", "S2")]
    apart = group_rows(rows)
    assert apart.of == {"a": "child C1", "b": "child C2", "c": "child C1", "d": "child C3"}
    tied = group_rows([*rows, row("e", "", "S2"), row("f", "", "S9")])
    assert tied.of["c"] == tied.of["d"] == tied.of["e"] == tied.of["a"], "it may be either of them"
    assert tied.of["b"] != tied.of["a"]
    assert tied.of["f"] == "session S9"
    assert dict(tied.by) == {"child": 4, "session": 2, "prefix": 0, "utterance": 0}
    assert "1 sessions" in tied.notes[0]


def test_prefixes_group_where_they_tell_recordings_apart() -> None:
    recordings = [row(f"rec{i // 3:02d}_{i}") for i in range(60)]
    grouped = group_rows(recordings)
    assert len(set(grouped.of.values())) == 20
    assert grouped.by["prefix"] == 60
    kinds = group_rows([row(f"U_{i}") for i in range(60)])
    assert len(set(kinds.of.values())) == 60, "one beginning for all says nothing of who speaks"
    assert kinds.by["utterance"] == 60


@given(st.lists(st.tuples(st.sampled_from(["", "A", "B", "C"]), st.sampled_from(["", "1", "2"])), max_size=30))
@settings(deadline=None, max_examples=60)
def test_whoever_may_be_the_same_is_in_one_group_in_any_order(given_rows: list[tuple[str, str]]) -> None:
    rows = [row(f"u{i}", c, s) for i, (c, s) in enumerate(given_rows)]
    of = group_rows(rows).of
    assert of == group_rows(rows[::-1]).of
    for a in rows:
        for b in rows:
            if a.child and a.child == b.child:
                assert of[a.id] == of[b.id]
            if a.session and a.session == b.session and not (a.child and b.child):
                assert of[a.id] == of[b.id]


def test_the_estimate_of_noise_follows_the_noise() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    speech_T = np.where((t > 0.2) & (t < 0.7), 0.3 * np.sin(2 * np.pi * 300 * t), 0.0)
    found = [snr_db((speech_T + rng.normal(0, s, RATE)).astype(np.float32), RATE) for s in NOISES]
    assert [noise_of(x) for x in found] == ["quiet", "some", "noisy"]
    for sigma, snr in zip(NOISES, found, strict=True):
        assert snr == pytest.approx(10 * np.log10((0.045 + sigma**2) / sigma**2), abs=1.5)
    assert snr_db(speech_T.astype(np.float32), RATE) == pytest.approx(10 * np.log10(0.045) + 96, abs=0.2)
    assert snr_db(speech_T[:900].astype(np.float32), RATE) is None
    assert noise_of(None) == "unknown"
