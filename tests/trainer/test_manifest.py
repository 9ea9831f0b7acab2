"""Manifests: what is indexed, what is quarantined and why, where audio is found."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.speech import RATE, make_corpus, tone, write_manifest

from trainer.data.manifest import Manifest, open_manifests, split_off
from trainer.errors import BadData
from trainer.recipe.data import Data


def data(**more: object) -> Data:
    return Data(**{"train": ["x"], "dev": ["y"], "max_bad_share": 1.0, **more})


def opened(path: Path, **more: object) -> Manifest:
    need_text = bool(more.pop("need_text", True))
    return open_manifests([path], data(**more), path.parent, path.parent / "cache", need_text=need_text)


def sound(folder: Path, name: str = "a.wav") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, tone(["low", "high"]), RATE)
    return name


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    manifest = opened(make_corpus(tmp_path, 5))
    example = manifest[3]
    assert (example.id, example.speaker, example.bucket("age")) == ("train-3", "s0", "old")
    assert Path(example.audio).is_file()
    assert manifest.column("duration_s").sum() == pytest.approx(manifest.hours * 3600)


def test_an_index_is_built_once_and_again_when_the_manifest_changes(tmp_path: Path) -> None:
    path = make_corpus(tmp_path, 3)
    first = opened(path).sha256
    files = sorted((tmp_path / "cache").rglob("*.arrow"))
    stamp = files[0].stat().st_mtime_ns
    assert opened(path).sha256 == first
    assert files[0].stat().st_mtime_ns == stamp
    with path.open("a") as f:
        f.write(json.dumps({"id": "new", "audio": "train/train-0.wav", "text": "low"}) + "\n")
    assert len(opened(path)) == 4
    assert opened(path).sha256 != first


def test_every_kind_of_bad_row_is_named_with_its_reason(tmp_path: Path) -> None:
    sound(tmp_path)
    (tmp_path / "text.wav").write_text("not audio")
    good = {"id": "good", "audio": "a.wav", "text": "low high"}
    rows = [
        good,
        {"id": "empty", "audio": "a.wav", "text": "  "},
        {"id": "no text", "audio": "a.wav"},
        {"id": "no audio", "text": "x"},
        {"id": "gone", "audio": "gone.wav", "text": "x"},
        {"id": "not audio", "audio": "text.wav", "text": "x"},
        {"id": "long", "audio": "a.wav", "text": "x", "duration_s": 600},
        {"id": "short", "audio": "a.wav", "text": "x", "duration_s": 0.01},
        {"id": "wrong", "audio": "a.wav", "text": "x", "duration_s": "three"},
        {"id": "negative", "audio": "a.wav", "text": "x", "start_s": -1},
        {"audio": "a.wav", "text": "x"},
        good,
    ]
    path = write_manifest(tmp_path / "m.jsonl", rows)
    path.write_text(path.read_text() + "{not json\n[1, 2]\n\n")
    manifest = opened(path)
    assert list(manifest.column("id")) == ["good"]
    reasons = {b.id: b.reason for b in manifest.bad}
    assert len(manifest.bad) == 13
    for id, says in {
        "empty": "empty transcript",
        "no text": "has no 'text'",
        "no audio": "has no 'audio'",
        "gone": "gone.wav is in none of",
        "not audio": "not audio",
        "long": "longer than data.max_s",
        "short": "shorter than data.min_s",
        "wrong": "not seconds",
        "negative": "not seconds",
        "m.jsonl:11": "has no 'id'",
        "good": "twice",
        "m.jsonl:13": "not JSON",
        "m.jsonl:14": "not a JSON object",
    }.items():
        assert says in reasons[id], id


def test_half_a_character_is_a_reason_and_a_whole_one_is_none(tmp_path: Path) -> None:
    """A text that was cut within an emoji; JSON lets it pass, as an escape and as bytes."""
    sound(tmp_path)
    good = {"audio": "a.wav", "text": "low 😀 높다", "meta": {"note": "퟿"}}
    lines = [
        json.dumps({**good, "id": "escaped"}),
        json.dumps({**good, "id": "as it is"}, ensure_ascii=False),
        json.dumps({**good, "id": "cut", "text": "low \ud83d"}),
        json.dumps({**good, "id": "cut \ude00"}),
        json.dumps({**good, "id": "in meta", "meta": {"note": "\ud83d"}}, ensure_ascii=False),
    ]
    path = tmp_path / "m.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    manifest = opened(path)
    assert list(manifest.column("id")) == ["escaped", "as it is"]
    assert manifest[0].text == "low 😀 높다"
    assert {b.id: "half a character" in b.reason for b in manifest.bad} == dict.fromkeys(
        ("m.jsonl:3", "m.jsonl:4", "m.jsonl:5"), True
    )


def test_more_bad_rows_than_allowed_is_a_refusal_with_examples(tmp_path: Path) -> None:
    sound(tmp_path)
    rows = [{"id": str(i), "audio": "a.wav" if i else "gone.wav", "text": "x"} for i in range(10)]
    path = write_manifest(tmp_path / "m.jsonl", rows)
    with pytest.raises(BadData, match=r"1 of 10 utterances can't be used \(10.0 %\)") as caught:
        opened(path, max_bad_share=0.05)
    assert "gone.wav" in caught.value.message
    assert "max_bad_share" in caught.value.hint
    assert len(opened(path, max_bad_share=0.1)) == 9


def test_a_manifest_that_is_absent_or_a_folder_or_empty_is_one_sentence(tmp_path: Path) -> None:
    for name in ("absent.jsonl", "."):
        with pytest.raises(BadData, match=r"No such file|is a folder"):
            opened(tmp_path / name)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(BadData, match="no utterance can be used"):
        opened(tmp_path / "empty.jsonl")


def test_audio_is_found_by_whole_path_then_without_its_first_part_then_by_name(tmp_path: Path) -> None:
    for name in ("one/audio/a.wav", "two/b.wav", "three/c.wav", "two/deep/d.wav"):
        sound(tmp_path, name)
    rows = [{"id": p, "audio": p, "text": "x"} for p in ("audio/a.wav", "audio/b.wav", "x/y/c.wav", "audio/deep/d.wav")]
    manifest = opened(write_manifest(tmp_path / "m.jsonl", rows), audio_dirs=["one", "two", "three"])
    found = [Path(manifest[i].audio).relative_to(tmp_path).as_posix() for i in range(4)]
    assert found == ["one/audio/a.wav", "two/b.wav", "three/c.wav", "two/deep/d.wav"]


def test_an_audio_path_that_fits_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    sound(tmp_path, "one/a.wav")
    sound(tmp_path, "two/a.wav")
    path = write_manifest(tmp_path / "m.jsonl", [{"id": "a", "audio": "audio/a.wav", "text": "x"}])
    with pytest.raises(BadData, match=r"one/a\.wav and .*two/a\.wav"):
        opened(path, audio_dirs=["one", "two"])


def test_paths_with_spaces_quotes_and_newlines_are_paths(tmp_path: Path) -> None:
    name = 'it\'s a "b"\nc é.wav'
    sound(tmp_path, name)
    manifest = opened(write_manifest(tmp_path / "my manifest's.jsonl", [{"id": "a", "audio": name, "text": "x"}]))
    assert Path(manifest[0].audio).name == name


def test_other_names_of_fields_are_understood(tmp_path: Path) -> None:
    sound(tmp_path)
    row = {"utterance_id": "u", "wav": "a.wav", "said": "low", "secs": 0.4, "kind": "k", "meta": {"mic": "m"}}
    fields = {"id": "utterance_id", "audio": "wav", "text": "said", "duration_s": "secs"}
    example = opened(write_manifest(tmp_path / "m.jsonl", [row]), fields=fields)[0]
    assert (example.id, example.text, example.duration_s) == ("u", "low", 0.4)
    assert dict(example.meta) == {"mic": "m", "kind": "k"}


def test_dev_taken_from_train_is_apart_from_it_and_moves_little_when_rows_are_added(tmp_path: Path) -> None:
    manifest = opened(make_corpus(tmp_path, 40))
    train, dev = split_off(manifest, 40, 8, seed=1)
    assert (len(train), len(dev)) == (32, 8)
    assert not set(train.column("id")) & set(dev.column("id"))
    more = opened(make_corpus(tmp_path / "more", 44))
    _, dev_of_more = split_off(more, 44, 8, seed=1)
    assert len(set(dev.column("id")) & set(dev_of_more.column("id"))) >= 6
    with pytest.raises(BadData, match="asks for 40"):
        split_off(manifest, 40, 40, seed=1)


def test_with_shuffled_audio_nobody_has_his_own(tmp_path: Path) -> None:
    manifest = opened(make_corpus(tmp_path, 20))
    mixed = manifest.shuffled_audio(seed=3)
    assert [mixed[i].text for i in range(20)] == [manifest[i].text for i in range(20)]
    assert all(mixed[i].audio != manifest[i].audio for i in range(20))
    assert sorted(mixed.column("audio")) == sorted(manifest.column("audio"))
    assert np.array_equal(mixed.column("duration_s"), [mixed[i].duration_s for i in range(20)])


def test_a_manifest_without_transcripts_can_be_predicted(tmp_path: Path) -> None:
    sound(tmp_path)
    path = write_manifest(tmp_path / "m.jsonl", [{"id": "a", "audio": "a.wav"}])
    assert opened(path, need_text=False)[0].text == ""


def test_a_text_column_as_numbers_is_the_column(tmp_path: Path) -> None:
    one, two = make_corpus(tmp_path, 11), make_corpus(tmp_path, 7, seed=1, name="other")
    whole = open_manifests([one, two], data(), tmp_path, tmp_path / "cache")
    for manifest in (whole, opened(one), whole.subset(np.array([3, 17, 0]))):
        codes, values = manifest.codes("speaker")
        assert [values[c] for c in codes] == list(manifest.column("speaker"))


def test_ids_of_dev_are_found_in_train_wherever_they_stand() -> None:
    from trainer.data.sets import _in_both

    rng = np.random.default_rng(0)
    many = rng.integers(0, 1 << 63, (1 << 20) + 1000).astype(np.uint64)
    few = np.array([5, many[-1], many[0], 7, many[1 << 20], many[-1]], np.uint64)
    assert _in_both(few, many).tolist() == [1, 2, 4, 5]
    assert _in_both(few[:1], many).tolist() == []
    assert _in_both(few[:0], many).tolist() == []
    assert _in_both(few, many[:0]).tolist() == []
