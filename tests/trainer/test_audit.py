"""An audit finds what was planted, says what it is, and leaves a file that is whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech import RATE, ctc_dict, make_corpus, recipe_dict, tone, write_experiment, write_manifest

from trainer.__main__ import main
from trainer.audit.measures import clipped_share, measure_sound
from trainer.audit.rates import FASTEST, SLOWEST, limits_of
from trainer.audit.scripts import scripts_in, scripts_of
from trainer.audit.texts import odd_in
from trainer.data.levels import frame_levels_db
from trainer.errors import AudioError
from trainer.recipe.flags import FLAGS


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def audited(path: Path, *more: str, name: str | None = None) -> dict[str, dict[str, Any]]:
    assert main(["audit", str(path), *more]) == 0
    return {r["id"]: r for r in rows_of(path.with_name(f"{name or path.stem}.audit.jsonl"))}


def summary_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_name(f"{path.stem}.audit.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Thirty good utterances, and one of each fault."""
    path, dev = make_corpus(tmp_path, 30, name="train"), make_corpus(tmp_path, 4, seed=9, name="dev")
    rows = rows_of(path)
    rng = np.random.default_rng(0)

    def plant(id: str, wave: np.ndarray | None, text: str = "low high", ext: str = "wav", **more: Any) -> None:
        if wave is not None:
            soundfile.write(tmp_path / f"{id}.{ext}", wave, RATE)
        rows.append({"id": id, "audio": f"{id}.{ext}", "text": text, "age": "old", "language": "en", **more})

    again, _ = soundfile.read(tmp_path / rows[3]["audio"], dtype="int16")
    plant("copied", again, rows[3]["text"])
    plant("reencoded", again, rows[3]["text"], ext="flac")
    plant("clipped", np.clip(8 * tone(["low", "mid"]), -1, 1))
    plant("quiet", np.zeros(RATE))
    plant("nearly quiet", rng.normal(0, 2e-4, RATE))
    plant("foreign", tone(["low", "low"], 90), "привет")
    plant("fast", tone(["low"], 91), "low high " * 20)
    plant("long", tone(["low"] * 60, 92), "low high mid " * 16)
    plant("leak", soundfile.read(tmp_path / rows_of(dev)[1]["audio"], dtype="int16")[0], "high low")
    plant(rows_of(dev)[2]["id"], tone(["mid", "low"], 93))
    plant("laughs", tone(["mid"] * 6, 94), "low (laughs) xxx")
    plant("empty", tone(["high"], 95), "")
    plant("wrong", tone(["high"] * 6, 96), "something else entirely")
    (tmp_path / "broken.wav").write_text("no sound")
    plant("broken", None)
    plant("short", tone(["low"], 97), duration_s=3.0)
    plant("gone", None)
    return write_manifest(path, rows)


def test_what_was_planted_is_found_and_nothing_else_is(planted: Path, tmp_path: Path, capsys) -> None:
    heard = [{"id": r["id"], "text": "low high" if r["id"] == "wrong" else r["text"]} for r in rows_of(planted)]
    write_manifest(tmp_path / "heard.rows.jsonl", heard)
    dev = str(tmp_path / "dev.jsonl")
    rows = audited(planted, "--rows", str(tmp_path / "heard.rows.jsonl"), "--against", dev, "--language", "en")
    expected = {
        "copied": ["duplicate_sound"],
        "reencoded": ["duplicate_sound"],
        "clipped": ["clipped"],
        "quiet": ["silent"],
        "nearly quiet": ["silent"],
        "foreign": ["script"],
        "fast": ["fast"],
        "long": ["long_text"],
        "leak": ["in_other_set"],
        "dev-2": ["in_other_set"],
        "laughs": ["odd_text"],
        "empty": ["no_text"],
        "wrong": ["disagrees"],
        "broken": ["unreadable"],
        "short": ["unreadable"],
        "gone": ["unreadable"],
    }
    assert {i: r["flags"] for i, r in rows.items() if r["flags"]} == expected
    assert set(rows) == {r["id"] for r in rows_of(planted)}, "every row has its line"
    assert rows["copied"]["duplicate_of"] == rows["reencoded"]["duplicate_of"] == "train-3"
    assert rows["leak"]["also_in"] == f"{dev}: dev-1"
    assert rows["laughs"]["odd"] == ["annotation", "brackets"]
    assert rows["foreign"]["scripts"] == ["CYRILLIC"]
    assert "ends at" in rows["short"]["reason"]
    assert (rows["wrong"]["wer"], rows["train-0"]["wer"]) == (1.0, 0.0)
    said = capsys.readouterr().out
    assert "WER 0.9 or CER 0.5: leaves" in said
    assert "duplicate_sound 2" in said


def test_the_summary_counts_what_the_rows_say_and_names_what_it_came_from(planted: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "h.jsonl", [{"id": r["id"], "text": "low"} for r in rows_of(planted)])
    rows = audited(planted, "--rows", str(tmp_path / "h.jsonl"), "--normaliser", "none")
    summary = summary_of(planted)
    whole, *parts = summary["buckets"]
    usable = [r for r in rows.values() if "chars" in r]
    assert whole["utterances"] == len(usable) == summary["utterances"]
    for flag in FLAGS:
        assert whole["flags"].get(flag, 0) == sum(flag in r["flags"] for r in usable)
    assert whole["wer_median"] == pytest.approx(np.median([r["wer"] for r in usable if "wer" in r]), abs=1e-4)
    assert whole["rules"]["WER 0.7"]["utterances"] == sum(r.get("wer", 9) <= 0.7 for r in usable)
    for field in ("age", "duration"):
        mine = [p for p in parts if p["set"].startswith(f"{field}=")]
        assert sum(p["utterances"] for p in mine) == whole["utterances"]
        assert sum(p["hours"] for p in mine) == pytest.approx(whole["hours"], abs=1e-3)
    assert summary["quarantined"]["utterances"] == 2, "broken and gone: what has no length"
    assert summary["same_text_and_length"] >= 2
    told = summary["provenance"]
    assert told["manifest_sha256"] == hashlib.sha256(planted.read_bytes()).hexdigest()
    assert summary["audit_sha256"] == hashlib.sha256((tmp_path / "train.audit.jsonl").read_bytes()).hexdigest()
    assert (told["normaliser"], told["first_model"]["rows"]) == ("none", "h.jsonl")
    assert "in_other_set" not in told["flags_looked_for"]
    assert told["thresholds"]["disagrees_wer"] == 0.9


def test_an_experiment_s_training_sets_are_audited_against_dev_and_test(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PODCTL_VOLUME", str(tmp_path))
    folder = tmp_path / "data"
    folder.mkdir()
    for name, n, seed in (("train", 8, 0), ("more", 6, 3), ("dev", 3, 0), ("test", 3, 5)):
        path = make_corpus(folder, n, seed=seed, name=name)
        rows = [{("words" if k == "text" else k): v for k, v in r.items()} for r in rows_of(path)]
        write_manifest(path, rows)
    write_manifest(
        folder / "test.jsonl", [*rows_of(folder / "test.jsonl"), {**rows_of(folder / "more.jsonl")[2], "id": "t"}]
    )
    data = {"train": ["train.jsonl", {"manifest": "more.jsonl", "weight": 0.5}], "dev": ["dev.jsonl"]}
    data |= {"test": ["test.jsonl"], "fields": {"text": "words"}, "max_s": 2}
    train = recipe_dict(folder)
    experiment = write_experiment(tmp_path / "e.yaml", {**train, "data": data})
    assert main(["audit", str(experiment)]) == 0
    train_rows, more_rows = (rows_of(folder / f"{n}.audit.jsonl") for n in ("train", "more"))
    assert all("no_text" not in r["flags"] for r in [*train_rows, *more_rows])
    assert [r["also_in"] for r in more_rows if "in_other_set" in r["flags"]] == ["test.jsonl: t"]
    assert summary_of(folder / "train.jsonl")["provenance"]["beside"] == ["more.jsonl"]
    assert any(b["set"] == "age=old" for b in summary_of(folder / "more.jsonl")["buckets"])


def test_a_copy_in_another_manifest_is_found_and_all_manifests_have_their_own_audit(tmp_path: Path) -> None:
    one, two = make_corpus(tmp_path, 3, name="one"), make_corpus(tmp_path, 3, seed=1, name="two")
    write_manifest(two, [*rows_of(two), {**rows_of(one)[1], "id": "again"}])
    assert main(["audit", str(one), str(two)]) == 0
    (again,) = [r for r in rows_of(tmp_path / "two.audit.jsonl") if r["flags"]]
    assert (again["id"], again["duplicate_of"]) == ("again", "one-1")
    assert len(rows_of(tmp_path / "one.audit.jsonl")) == 3


def test_a_model_listens_and_aligns_by_itself_and_what_it_heard_is_kept(tmp_path: Path, capsys) -> None:
    from trainer.recipe.load import parse_recipe
    from trainer.task import make_task

    task = make_task(parse_recipe(ctc_dict(tmp_path)))
    task.export(task.build().module, tmp_path / "model")
    path = make_corpus(tmp_path, 5)
    rows = rows_of(path)
    soundfile.write(tmp_path / "long.wav", tone(["low"] * 170), RATE)
    write_manifest(path, [*rows, {**rows[0], "id": "long", "audio": "long.wav", "duration_s": 34.0, "text": "low low"}])
    model = str(tmp_path / "model")
    found = audited(path, "--model", model, "--align", model, "--json")
    assert {r["id"]: r["text"] for r in rows_of(tmp_path / "train.heard.jsonl")} == {
        i: r["heard"] for i, r in found.items() if "heard" in r
    }
    assert "heard" not in found["long"], "what is too long for the model was not heard by it"
    assert all(r["align"] < 0 for r in found.values())
    printed = json.loads(capsys.readouterr().out)
    assert printed["buckets"][0]["align_median"] < 0
    told = printed["provenance"]
    assert told["first_model"]["weights_sha256"] == told["align_model"]["weights_sha256"]
    again = audited(path, "--rows", str(tmp_path / "train.heard.jsonl"))
    assert {i: r.get("wer") for i, r in again.items()} == {i: r.get("wer") for i, r in found.items()}


def test_a_model_listens_to_manifests_that_share_ids_one_by_one(tmp_path: Path) -> None:
    from trainer.recipe.load import parse_recipe
    from trainer.task import make_task

    task = make_task(parse_recipe(ctc_dict(tmp_path)))
    task.export(task.build().module, tmp_path / "model")
    paths = [make_corpus(tmp_path / folder, n, seed=n) for folder, n in (("a", 3), ("b", 4))]
    assert main(["audit", *map(str, paths), "--model", str(tmp_path / "model")]) == 0
    for path in paths:
        rows = {r["id"]: r["heard"] for r in rows_of(path.with_name("train.audit.jsonl"))}
        assert rows == {r["id"]: r["text"] for r in rows_of(path.with_name("train.heard.jsonl"))}
        assert len(rows) == len(rows_of(path))


def test_the_same_audit_twice_is_the_same_file_however_many_threads_hear(planted: Path) -> None:
    files = []
    for workers in (0, 1, 4):
        audited(planted, "--set", f"data.workers={workers}")
        files.append(planted.with_name("train.audit.jsonl").read_bytes())
    assert files[0] == files[1] == files[2]


def test_the_rules_of_a_recipe_read_what_the_audit_wrote(planted: Path, tmp_path: Path) -> None:
    from trainer.data.sets import open_data
    from trainer.recipe.load import parse_recipe

    audited(planted, "--against", str(tmp_path / "dev.jsonl"))
    rules = [{"drop": ["duplicate_sound", "silent", "clipped", "in_other_set", "unreadable", "script", "fast"]}]
    source = {"manifest": str(planted), "audit": str(planted.with_name("train.audit.jsonl")), "keep": rules}
    section = {**recipe_dict(tmp_path)["data"], "train": [source], "test": [], "max_s": 30, "max_bad_share": 1}
    ids = set(open_data(parse_recipe(ctc_dict(tmp_path, data=section))).train.column("id"))
    assert {f"train-{i}" for i in range(30)} <= ids
    assert ids - {f"train-{i}" for i in range(30)} == {"long", "laughs", "wrong"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["a.wav"], "is not a manifest"),
        (["gone.jsonl"], "No such file"),
        (["ONE", "--rows", "gone.jsonl"], "there are no rows"),
        (["ONE", "--rows", "ONE"], ""),
        (["ONE", "--out", "x.txt"], "is not a .jsonl file"),
        (["ONE", "--out", "ONE"], "would write over it"),
        (["ONE", "--against", "TWO", "--out", "TWO"], "would write over it"),
        (["ONE", "TWO", "--out", "x.jsonl"], "--out is for one manifest"),
        (["ONE", "--normaliser", "bassic"], "did you mean basic"),
        (["ONE", "--set", "data.fileds={a: b}"], "did you mean fields"),
        (["ONE", "--model", "MODEL", "--normaliser", "bassic"], "did you mean basic"),
        (["ONE", "--model", "MODEL", "--align", "gone"], "gone"),
        (["ONE", "--rows", "TWICE"], "twice"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys, argv: list[str], says: str
) -> None:
    names = {"ONE": str(make_corpus(tmp_path, 2, name="one")), "TWO": str(make_corpus(tmp_path, 2, name="two"))}
    names["TWICE"] = str(write_manifest(tmp_path / "twice.jsonl", [{"id": "a", "text": "x"}] * 2))
    before = {name: Path(path).read_bytes() for name, path in names.items()}
    if "MODEL" in argv:
        from trainer.recipe.load import parse_recipe
        from trainer.task import make_task

        names["MODEL"] = str(tmp_path / "model")
        task = make_task(parse_recipe(ctc_dict(tmp_path)))
        task.export(task.build().module, tmp_path / "model")
    code = main(["audit", *(names.get(a, a) for a in argv)])
    said = capsys.readouterr().err
    assert (code == 2 and says in said and ("→" in said or "did you mean" in said)) if says else code == 0
    assert says == "" or not [*tmp_path.glob("*.audit.*"), *tmp_path.glob("*.heard.*")]
    assert {name: Path(names[name]).read_bytes() for name in before} == before


def test_an_audit_that_is_cut_short_leaves_the_old_one(planted: Path, tmp_path: Path) -> None:
    from trainer.audit.written import lines_into

    audited(planted)
    path = planted.with_name("train.audit.jsonl")
    before = path.read_bytes()

    def cut_short() -> None:
        with lines_into(path) as lines:
            lines.add({"id": "x"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*part"))


# ---- sound


def sound(folder: Path, wave: np.ndarray, name: str = "a.wav", rate: int = RATE, **how: Any) -> str:
    soundfile.write(folder / name, wave, rate, **how)
    return str(folder / name)


def test_a_copy_has_the_same_hash_in_any_lossless_form_and_another_sound_another(tmp_path: Path) -> None:
    wave = np.round(tone(["low", "mid"]) * 32768).astype(np.int16)  # what is exact in all of them
    other = np.round(tone(["high"]) * 32768).astype(np.int16)
    hashes = [
        measure_sound(sound(tmp_path, wave, "a.wav"), 0, 0.4).sha256,
        measure_sound(sound(tmp_path, wave, "a.flac"), 0, 0.4).sha256,
        measure_sound(sound(tmp_path, wave / 32768, "b.wav", subtype="FLOAT"), 0, 0.4).sha256,
        measure_sound(sound(tmp_path, np.concatenate([other, wave]), "c.wav"), 0.2, 0.4).sha256,
    ]
    assert len(set(hashes)) == 1
    assert measure_sound(sound(tmp_path, tone(["low", "mid"], 1), "d.wav"), 0, 0.4).sha256 != hashes[0]


def test_levels_and_shares_are_what_they_are_called(tmp_path: Path) -> None:
    t = np.arange(RATE) / RATE
    half = 0.5 * np.sin(2 * np.pi * 200 * t)
    found = measure_sound(sound(tmp_path, half), 0, 1.0)
    assert found.peak_db == pytest.approx(-6.02, abs=0.01)
    assert found.rms_db == pytest.approx(-9.03, abs=0.01)
    assert (found.silence, found.clipping, found.is_silent) == (0, 0, False)
    rng = np.random.default_rng(0)
    noisy = np.concatenate([half, np.zeros(RATE)]) + rng.normal(0, 0.5 / np.sqrt(2) / 10**2, 2 * RATE)  # 40 dB below
    found = measure_sound(sound(tmp_path, noisy), 0, 2.0)
    assert found.snr_db == pytest.approx(40, abs=1)
    assert found.silence == pytest.approx(0.5, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=20))
def test_clipping_counts_samples_of_runs_and_no_single_peak(runs: list[tuple[int, bool]]) -> None:
    wave = np.concatenate(
        [np.full(n, -1.0 if i % 2 else 1.0) if full else np.full(n, 0.5) for i, (n, full) in enumerate(runs)]
    )
    joined: list[list[Any]] = []
    for n, full in runs:
        if joined and joined[-1][1] == full:
            joined[-1][0] += n
        else:
            joined.append([n, full])
    expected = sum(n for n, full in joined if full and n >= 3) / len(wave)
    assert clipped_share(wave[:, None].astype(np.float32)) == pytest.approx(expected)
    assert clipped_share(np.stack([np.zeros_like(wave), wave], axis=1)) == pytest.approx(expected), "the worst channel"


def test_a_sound_of_any_length_has_levels(tmp_path: Path) -> None:
    assert len(frame_levels_db(np.zeros(1, np.float32), RATE)) == 1
    for n in (1, 319, 320, 321, 700):
        measure_sound(sound(tmp_path, np.full(n, 0.1)), 0, n / RATE)
    with pytest.raises(AudioError, match="is empty"):
        measure_sound(sound(tmp_path, np.zeros(0)), 0, 1.0)


# ---- text


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("I want my mommy", []),
        ("Don't, it's o'clock – well-known!", []),
        ("no no no no", []),
        ("no no no no no", ["repeated words"]),
        ("sooo", []),
        ("soooo big", ["repeated letters"]),
        ("I have 2 dogs", ["digits"]),
        ("STOP IT NOW", ["capitals"]),
        ("the USA", []),
        ("TV", []),
        ("xxx went home", ["annotation"]),
        ("Roxxxy", []),
        ("&=laughs yes", ["annotation", "symbols"]),
        ("&-um the dog", ["annotation", "symbols"]),
        ("go (laughs) home", ["annotation", "brackets"]),
        ("(be)cause", ["brackets"]),
        ("woof@o", ["annotation", "symbols"]),
        ("*CHI: hello", ["annotation", "symbols"]),
        ("the dog [/] the dog", ["annotation", "brackets", "symbols"]),
        ("hello +...", ["annotation", "symbols"]),
        ("[inaudible]", ["annotation", "brackets"]),
        ("<unk> no", ["annotation", "brackets"]),
        ("a\x15bc", ["control characters"]),
        ("a\u200bbc", ["control characters"]),
        ("caf\u0435", ["two scripts in a word"]),
        ("日本のテスト", []),
        ("一 二", []),
        ("שלום", []),
        ("می\u200cخواهم", []),
        ("5 €", ["digits", "symbols"]),
    ],
)
def test_what_no_person_said_is_odd(text: str, odd: list[str]) -> None:
    assert odd_in(text) == odd


def test_capitals_are_odd_only_where_they_are_rare(tmp_path: Path) -> None:
    path = make_corpus(tmp_path, 6)
    rows = rows_of(path)
    write_manifest(path, [{**r, "text": r["text"].upper()} for r in rows])
    assert not any(r["flags"] for r in audited(path).values())
    write_manifest(
        path, [{**r, "text": f"{r['text']} mid".upper() if n == 2 else r["text"]} for n, r in enumerate(rows)]
    )
    assert [i for i, r in audited(path).items() if "odd_text" in r["flags"]] == ["train-2"]


@pytest.mark.parametrize(
    ("language", "text", "foreign"),
    [
        ("en", "café naïve", False),
        ("en", "привет", True),
        ("he", "שלום", False),
        ("heb", "hello", True),
        ("iw-unknown", "hello", False),
        ("ja", "日本のテスト", False),
        ("Russian", "привет", False),
        ("zh_CN", "你好", False),
        ("sr", "Beograd Београд", False),
        ("en", "日本", True),
        ("en", "２ ＡＢＣ ｡", False),
    ],
)
def test_letters_of_another_script_than_the_language_s_are_told(language: str, text: str, foreign: bool) -> None:
    allowed = scripts_of(language)
    assert bool(allowed and scripts_in(text) - set(allowed)) == foreign


def test_a_corpus_of_no_named_language_is_held_against_its_own_majority(tmp_path: Path) -> None:
    path = make_corpus(tmp_path, 5)
    rows = rows_of(path)
    write_manifest(path, [*rows[:4], {**rows[4], "text": "λόγος"}])
    assert [i for i, r in audited(path).items() if r["flags"]] == ["train-4"]


# ---- speed


def test_limits_of_speed_are_a_bucket_s_own_and_never_beyond_what_anyone_speaks() -> None:
    rng = np.random.default_rng(0)
    young, old = np.exp(rng.normal(np.log(5), 0.2, 1000)), np.exp(rng.normal(np.log(15), 0.2, 1000))
    few = np.array([50.0, 60.0])
    rates = np.concatenate([young, old, few, np.zeros(10)])
    codes = np.repeat([0, 1, 2, 0], [1000, 1000, 2, 10])
    of_young, of_old, of_few = limits_of(rates, codes, 3)
    assert of_young.high < 15 < of_old.high <= FASTEST
    assert (of_few.low, of_few.high) == (SLOWEST, FASTEST)
    assert of_young.flag(14.0) == "fast"
    assert of_old.flag(14.0) == ""
    assert of_old.flag(1.0) == "slow"
    same = limits_of(np.full(500, 8.0), np.zeros(500, int), 1)[0]
    assert same.flag(9.0) == "", "a bucket whose members are all alike does not flag the next one"


def test_every_flag_can_be_raised_and_is_named_for_the_recipe(planted: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "h.jsonl", [{"id": r["id"], "text": "x y z"} for r in rows_of(planted)])
    rows = audited(
        planted, "--rows", str(tmp_path / "h.jsonl"), "--against", str(tmp_path / "dev.jsonl"), "--language", "en"
    )
    slow = tmp_path / "slow.jsonl"
    soundfile.write(tmp_path / "slow.wav", tone(["low"] * 60), RATE)
    write_manifest(slow, [{"id": "slow", "audio": "slow.wav", "text": "a"}])
    raised = {f for r in [*rows.values(), *audited(slow).values()] for f in r["flags"]}
    assert raised == set(FLAGS)


def test_a_place_that_can_not_be_is_one_sentence(tmp_path: Path, capsys) -> None:
    manifest = make_corpus(tmp_path, 2)
    (tmp_path / "file").write_text("not a folder")
    assert main(["audit", str(manifest), "--out", str(tmp_path / "file" / "rows.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"{tmp_path / 'file'}" in said
    assert said.splitlines()[-1].startswith("→ name another place")
