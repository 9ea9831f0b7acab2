"""Others' data becomes our manifest: what is kept, what is refused and why."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.speech import RATE, recipe_dict, tone

from trainer.__main__ import main
from trainer.data.audio import read_audio
from trainer.data.manifest import Manifest, open_manifests
from trainer.data.pcm import PcmCache
from trainer.data.store import Store
from trainer.errors import AudioError
from trainer.recipe.load import parse_recipe


def sound(path: Path, words: list[str], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(words, seed), RATE)
    return path


def opened(manifest: Path) -> Manifest:
    recipe = parse_recipe(recipe_dict(manifest.parent, data={**recipe_dict(manifest.parent)["data"], "max_s": 2}))
    return open_manifests([manifest], recipe.data, manifest.parent, manifest.parent / "cache")


def rows(manifest: Path) -> dict[str, dict[str, Any]]:
    return {r["id"]: r for r in map(json.loads, manifest.read_text().splitlines())}


def reasons(out: Path) -> dict[str, str]:
    return {i: r["reason"] for i, r in rows(out / "quarantine.jsonl").items()}


def lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def test_nemo_manifests_become_ours_spans_and_all(tmp_path: Path, capsys) -> None:
    sound(tmp_path / "wav" / "it's a.wav", ["low", "high", "mid"])
    manifest = lines(
        tmp_path / "train_manifest.json",
        [
            {"audio_filepath": "wav/it's a.wav", "duration": 0.6, "text": "low high mid", "lang": "en", "mic": 3},
            {"audio_filepath": "wav/it's a.wav", "duration": 0.2, "offset": 0.2, "text": "high", "speaker": "s1"},
            {"audio_filepath": "audio_0.tar", "duration": 1, "text": "x"},
            {"audio_filepath": "a.wav", "duration": 1, "text": "x", "shard_id": 3},
            {"text": "x"},
            "{not json",
            "[]",
        ],
    )
    assert main(["prepare", "from", "nemo", str(manifest), "--out", str(tmp_path / "out")]) == 0
    ours = opened(tmp_path / "out" / "train_manifest.jsonl")
    assert [(e.text, e.start_s, e.duration_s) for e in (ours[0], ours[1])] == [
        ("low high mid", 0, 0.6),
        ("high", 0.2, 0.2),
    ]
    assert (ours[0].language, ours[0].meta["mic"], ours[1].speaker) == ("en", 3, "s1")
    assert len(reasons(tmp_path / "out")) == 5
    assert "tar archive" in reasons(tmp_path / "out")["train_manifest.json:3"]
    assert "2 utterances" in capsys.readouterr().out


def cut(id: str, source: dict[str, Any], **more: Any) -> dict[str, Any]:
    recording = {"id": "r", "sources": [source], "sampling_rate": RATE, "num_samples": 16000, "duration": 1.0}
    supervision = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 0.4, "channel": 0, "text": "low high"}
    base = {"id": id, "start": 0.2, "duration": 0.5, "channel": 0, "supervisions": [supervision], "type": "MonoCut"}
    return {**base, "recording": recording, **more}


def test_lhotse_cuts_become_ours_and_what_is_not_one_file_is_told(tmp_path: Path) -> None:
    wave = sound(tmp_path / "a.wav", ["low", "mid", "high", "low"])
    here = {"type": "file", "channels": [0], "source": str(wave)}
    two = [
        {
            "id": "x",
            "start": -0.1,
            "duration": 0.3,
            "text": "low",
            "speaker": "p",
            "language": "he",
            "custom": {"age": 4},
        },
        {"id": "y", "start": 0.3, "duration": 9.0, "text": "high"},
    ]
    cuts = [
        cut("plain", here),
        cut("two", here, supervisions=two, custom={"room": "b"}),
        cut("silent", here, supervisions=[]),
        cut("piped", {"type": "command", "channels": [0], "source": "rm -rf /"}),
        cut("mixed", here, type="MixedCut"),
        {**cut("faster", here), "recording": {**cut("faster", here)["recording"], "transforms": [{"name": "Speed"}]}},
    ]
    (tmp_path / "train_cuts.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in cuts).encode()))
    assert main(["prepare", "from", "lhotse", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    found = rows(tmp_path / "out" / "train_cuts.jsonl")
    assert (found["plain"]["start_s"], found["plain"]["duration_s"]) == (0.2, 0.4)
    assert (found["two-x"]["start_s"], found["two-x"]["duration_s"]) == (0.2, 0.2), "cut off where the cut begins"
    assert (found["two-y"]["start_s"], found["two-y"]["duration_s"]) == (0.5, 0.2), "and where it ends"
    assert found["two-x"]["meta"] == {"room": "b", "age": 4}
    assert (found["two-x"]["speaker"], found["two-x"]["language"]) == ("p", "he")
    why = reasons(tmp_path / "out")
    assert set(why) == {"silent", "piped", "mixed", "faster"}
    assert "no supervision" in why["silent"]
    assert "not one file (sources: command)" in why["piped"]
    assert "transformed on the way (Speed)" in why["faster"]
    assert len(opened(tmp_path / "out" / "train_cuts.jsonl")) == 3


def test_a_damaged_archive_of_cuts_is_one_sentence(tmp_path: Path, capsys) -> None:
    whole = gzip.compress(b'{"id": "x"}\n' * 5000)
    (tmp_path / "cuts.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert main(["prepare", "from", "lhotse", str(tmp_path / "cuts.jsonl.gz"), "--out", str(tmp_path / "out")]) == 2
    assert "can't be read" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == [], "half a manifest is none"


def test_kaldi_folders_become_ours_and_no_pipe_is_run(tmp_path: Path) -> None:
    sound(tmp_path / "wav" / "r1.wav", ["low", "mid", "high"])
    data = tmp_path / "data" / "train"
    data.mkdir(parents=True)
    marker = tmp_path / "ran"
    wav = ["r1 wav/r1.wav", f"r2 touch {marker} |", "r3 /x/y.ark:17", "r4 gone.wav"]
    (data / "wav.scp").write_text("\n".join(wav) + "\n")
    (data / "segments").write_text(
        "u1 r1 0.0 0.2\nu2 r1 0.2 0.6\nu3 r2 0 1\nu4 r3 0 1\nu5 r9 0 1\nu6 r1 0.5 0.5\nu7 r1 x y\n"
    )
    (data / "text").write_text("u1 low\nu2 mid  high\nu3 x\n")
    (data / "utt2spk").write_text("u1 anna\nu2 ben\n")
    (data / "utt2lang").write_text("u1 en\n")
    assert main(["prepare", "from", "kaldi", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    ours = opened(tmp_path / "out" / "train.jsonl")
    assert [(e.id, e.speaker, e.text, e.start_s, round(e.duration_s, 3)) for e in (ours[0], ours[1])] == [
        ("u1", "anna", "low", 0.0, 0.2),
        ("u2", "ben", "mid  high", 0.2, 0.4),
    ]
    why = reasons(tmp_path / "out")
    assert set(why) == {"u3", "u4", "u5", "u6", "u7"}
    assert "pipes it out of touch: no command of a data file is run here" in why["u3"]
    assert "archive (.ark)" in why["u4"]
    assert "not in wav.scp" in why["u5"]
    assert "ends at 0.5 s" in why["u6"]
    assert not marker.exists()


def test_kaldi_without_segments_takes_whole_recordings(tmp_path: Path) -> None:
    wave = sound(tmp_path / "a.wav", ["low"])
    (tmp_path / "wav.scp").write_text(f"a {wave}\n")
    (tmp_path / "text").write_text("a low\n")
    assert main(["prepare", "from", "kaldi", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert opened(next((tmp_path / "out").glob("*.jsonl")))[0].duration_s == pytest.approx(0.2)


def encoded(words: list[str], seed: int = 0) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(words, seed), RATE, format="FLAC")
    return out.getvalue()


def hub_parquet(path: Path, n: int = 7, text: str = "sentence", **more: Any) -> Path:
    table = pa.table(
        {
            "audio": [{"bytes": encoded(["low", "high"], i), "path": f"{i}.flac"} for i in range(n)],
            text: ["low high"] * n,
            "age": [3 + i % 2 for i in range(n)],
            **more,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def test_a_hub_data_set_stays_in_its_parquet_and_every_row_is_heard(tmp_path: Path) -> None:
    hub_parquet(tmp_path / "set" / "data" / "train-00000-of-00002.parquet")
    hub_parquet(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", n=2)
    hub_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", n=1)
    assert main(["prepare", "from", "hf", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    ours = opened(tmp_path / "out" / "train.jsonl")
    assert (len(ours), len(opened(tmp_path / "out" / "test.jsonl"))) == (9, 1)
    assert len(set(ours.column("id"))) == 9
    cache = PcmCache(Store(tmp_path / "pcm", 1, "audio"))
    for i in range(9):
        e = ours[i]
        assert (e.text, e.duration_s, e.meta["age"]) == ("low high", 0.4, 3 + i % 7 % 2)
        theirs, _ = soundfile.read(io.BytesIO(encoded(["low", "high"], i % 7)), dtype="float32")
        assert np.array_equal(read_audio(e.audio, e.start_s, e.duration_s), theirs)
        assert np.array_equal(cache.read(e.audio, e.start_s, e.duration_s), theirs)


def test_columns_of_other_names_are_named_and_their_absence_is_one_sentence(tmp_path: Path, capsys) -> None:
    table = pa.table({"sound": [encoded(["low"])], "said": ["low"], "who": ["anna"], "secs": [0.2]})
    pq.write_table(table, tmp_path / "train.parquet")
    argv = ["prepare", "from", "hf", str(tmp_path / "train.parquet"), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "say text=COLUMN (--set, or columns), one of sound, said, who, secs" in capsys.readouterr().err
    assert main([*argv, "--set", "text=said", "--set", "speaker=who", "--set", "duration_s=secs"]) == 0
    (row,) = rows(tmp_path / "out" / "train.jsonl").values()
    assert (row["text"], row["speaker"], row["duration_s"]) == ("low", "anna", 0.2)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "train.parquet")
    assert main(argv) == 2
    assert "no column with sound" in capsys.readouterr().err
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    assert main(argv) == 2
    assert "is not Parquet" in capsys.readouterr().err


def test_a_row_without_sound_and_a_row_that_is_not_there_say_so(tmp_path: Path) -> None:
    table = pa.table(
        {"audio": pa.array([{"bytes": b"", "path": "x"}, {"bytes": b"noise", "path": "y"}]), "text": ["a", "b"]}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    for row, says in ((0, "its bytes are empty"), (1, "not audio"), (5, "it has 2 rows")):
        with pytest.raises(AudioError, match=says):
            read_audio(f"{path}#audio/{row}", 0.0, 1.0)
    with pytest.raises(AudioError, match="can't be read"):
        read_audio(f"{tmp_path}/gone.parquet#audio/0", 0.0, 1.0)
    with pytest.raises(AudioError, match="can't be read"):
        read_audio(f"{path}#other/0", 0.0, 1.0)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_audio_folder_with_metadata_becomes_ours(tmp_path: Path, kind: str) -> None:
    sound(tmp_path / "set" / "train" / "deep" / "a, b.wav", ["low"])
    if kind == "csv":
        (tmp_path / "set" / "train" / "metadata.csv").write_text(
            'file_name,transcription,age\n"deep/a, b.wav",low,4\n,x,\n'
        )
    else:
        row = {"file_name": "deep/a, b.wav", "transcription": "low", "age": "4"}
        lines(tmp_path / "set" / "train" / "metadata.jsonl", [row, {"transcription": "x"}])
    assert main(["prepare", "from", "hf", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    (example,) = [opened(tmp_path / "out" / "train.jsonl")[0]]
    assert (example.text, example.meta["age"]) == ("low", "4")
    assert len(reasons(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["from", "webdataset", ".", "--out", "o"], "no reader for 'webdataset'"),
        (["from", "nemo"], "say which format"),
        (["from", "nemo", "x"], "say which format"),
        (["from", "nemo", "gone.json", "--out", "o"], "does not exist"),
        (["from", "kaldi", ".", "--out", "o"], "holds no wav.scp"),
        (["from", "lhotse", ".", "--out", "o"], "holds no cuts"),
        (["from", "hf", ".", "--out", "o"], "neither Parquet nor an audio folder"),
        (["from", "hf", ".", "--out", "o", "--set", "text"], "is not FIELD=COLUMN"),
        (["demo", "more"], "one word too many"),
    ],
)
def test_what_can_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch, capsys, argv: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *argv]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_cuts_that_lhotse_itself_wrote_become_ours(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    wave = sound(tmp_path / "a.wav", ["low", "mid", "high", "low"])
    recording = lhotse.Recording.from_file(wave)
    supervisions = [
        lhotse.SupervisionSegment(
            id=f"u{i}", recording_id=recording.id, start=0.2 * i, duration=0.2, text=t, speaker="p"
        )
        for i, t in enumerate(["low", "mid", "high", "low"])
    ]
    cuts = lhotse.CutSet.from_manifests(
        recordings=lhotse.RecordingSet.from_recordings([recording]),
        supervisions=lhotse.SupervisionSet.from_segments(supervisions),
    )
    cuts.to_file(tmp_path / "whole_cuts.jsonl.gz")
    cuts.trim_to_supervisions().to_eager().to_file(tmp_path / "trimmed_cuts.jsonl")
    assert main(["prepare", "from", "lhotse", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    for name in ("whole_cuts", "trimmed_cuts"):
        ours = opened(tmp_path / "out" / f"{name}.jsonl")
        assert [e.text for e in (ours[i] for i in range(4))] == ["low", "mid", "high", "low"]
        for i, c in enumerate(cuts.trim_to_supervisions()):
            e = ours[i]
            theirs = c.load_audio()[0]
            assert np.allclose(read_audio(e.audio, e.start_s, e.duration_s), theirs, atol=1e-6)
