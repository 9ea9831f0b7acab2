"""`trainer evaluate` and `compare` at the command line: what they say, what they keep, what they refuse."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import lines
from support.speech import make_corpus, recipe_dict, write_experiment, write_manifest

from remote.rundir import RunDir
from trainer.__main__ import main
from trainer.metrics.wer import aligned
from trainer.recipe.eval import Eval
from trainer.results import BEFORE, read_results, read_rows, sound_name
from trainer.tables import table_lines, worst_lines
from trainer.task import Report
from trainer.train import train

HOW = Eval(normaliser="basic", every_steps=1, bootstrap=50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with corpus/ and run/: what a training of six steps left."""
    folder = tmp_path_factory.mktemp("trained")
    for name, n in (("train", 20), ("dev", 4), ("test", 4)):
        make_corpus(folder / "corpus", n, seed=n, name=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train(write_experiment(folder / "a.yaml", recipe_dict(folder / "corpus")), RunDir(folder / "run"))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunDir:
    """A run of its own, as that training left it."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return RunDir(tmp_path / "run")


def reports(run: RunDir) -> list[Path]:
    return sorted(run.reports.glob("evaluate-*.json"))


def test_a_folder_of_its_own_gets_a_last_word_and_that_of_a_training_stays(run: RunDir, tmp_path: Path) -> None:
    of_training = run.summary.read_bytes()
    for out in (tmp_path / "own", run.reports):
        assert main(["evaluate", "--run", str(run.root), "--no-before", "--out", str(out)]) == 0
    said = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert said["headline"].startswith("WER ")
    assert said["metrics"]["wer"] == json.loads(of_training)["metrics"]["test/wer"]
    assert run.summary.read_bytes() == of_training


def test_the_first_row_is_the_model_before_training_as_it_was_measured(run: RunDir, capsys: Any) -> None:
    known = lines(run.reports / "test.jsonl")
    assert main(["evaluate", "--run", str(run)]) == 0
    before, after = lines(reports(run)[0])
    assert [before["what"], after["what"]] == [BEFORE, "padded to its own length"]
    assert before["metrics"] == known[0]["metrics"]
    assert after["metrics"] == known[1]["metrics"]
    assert before["measured_in"] == "test.jsonl", "it was not decoded again"
    assert "wall_s" not in before
    assert after["rtfx"] == pytest.approx(after["audio_s"] / after["wall_s"], rel=0.01)
    said = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(said) if "WER %" in line)
    assert said[head + 1].split()[:3] == ["before", "training", f"{100 * known[0]['metrics']['wer']:.2f}"]
    assert any("RTFx" in line for line in said)
    told = read_results(run).evaluated
    assert [t.what for t in told] == [BEFORE, after["what"]]
    assert [len(t.read_rows()) for t in told] == [4, 4]
    assert told[0].rows != told[1].rows


def test_on_other_data_it_is_decoded_too_and_is_the_same_before_as_the_training_saw(
    trained: Path, run: RunDir, capsys: Any
) -> None:
    known = lines(run.reports / "dev.jsonl")[0]["metrics"]
    (run.reports / "dev.jsonl").unlink()
    assert main(["evaluate", "--run", str(run), str(trained / "corpus/dev.jsonl")]) == 0
    before, _ = lines(reports(run)[0])
    assert before["metrics"] == known, "fresh networks are those that training began with"
    assert before["wall_s"] > 0
    assert main(["evaluate", "--run", str(run), str(trained / "corpus/dev.jsonl"), "--set", "eval.buckets=[]"]) == 0
    assert "wall_s" in lines(reports(run)[1])[0], "measured in other buckets it is measured anew"
    assert main(["evaluate", "--run", str(run), "--no-before"]) == 0
    assert [line["what"] for line in lines(reports(run)[2])] == ["padded to its own length"]


def test_where_the_weights_of_its_base_are_gone_the_rest_is_reported(
    trained: Path, run: RunDir, tmp_path: Path, caplog: Any
) -> None:
    base = tmp_path / "base"
    shutil.copytree(run.export, base)
    (base / "model.safetensors").unlink()
    sets = ["--set", "model.from_scratch=null", "--set", f"model.name={base}", "--set", "eval.buckets=[]"]
    assert main(["evaluate", "--run", str(run), str(trained / "corpus/dev.jsonl"), *sets]) == 0
    assert [line["what"] for line in lines(reports(run)[0])] == ["padded to its own length"]
    assert "the model before training can't be had here" in caplog.text


def test_json_is_all_that_stands_on_stdout(trained: Path, run: RunDir, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["what"] for line in out.splitlines()] == [BEFORE, "padded to its own length"]
    assert "report: " in err
    assert main(["evaluate", "--model", str(run.export), str(trained / "corpus/test.jsonl"), "--json"]) == 0
    (only,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {"metrics", "table", "provenance", "audio_s", "wall_s", "rtfx"} <= only.keys()


def test_any_field_of_the_manifest_and_duration_make_buckets(trained: Path, run: RunDir, capsys: Any) -> None:
    rows = lines(trained / "corpus/test.jsonl")
    fields: list[dict[str, Any]] = [{"noise": "quiet"}, {"noise": "loud", "source": "b"}, {"noise": 3}, {}]
    made = [{**r, **f, "age_bucket": "3-4"} for r, f in zip(rows, fields, strict=True)]
    manifest = write_manifest(trained / "corpus/buckets.jsonl", made)
    sets = ["--set", "eval.buckets=[duration, noise, source, age_bucket]"]
    assert main(["evaluate", "--run", str(run), str(manifest), "--no-before", *sets]) == 0
    names = [line["set"] for line in lines(reports(run)[0])[0]["table"]]
    assert {"noise=quiet", "noise=loud", "noise=3", "noise=", "source=b", "age_bucket=3-4"} <= set(names)
    assert any(n.startswith("duration=under ") for n in names)
    said = capsys.readouterr().out
    assert "\n  noise\n" in said
    assert "    (none) " in said


def test_the_sound_of_the_worst_is_kept_and_goes_with_its_report(trained: Path, run: RunDir) -> None:
    worst = [r["id"] for r in read_rows(run.reports / "test-padded-to-its-own-length.rows.jsonl") if r["text"]]
    sounds = {p.name for p in run.sounds.glob("*.flac")}
    assert sounds, "the training kept those of the test set"
    assert sounds <= {sound_name(f"test-{i}") for i in range(4)}
    assert worst or sounds
    assert main(["evaluate", "--run", str(run), str(trained / "corpus/dev.jsonl"), "--no-before"]) == 0
    more = {p.name for p in run.sounds.glob("*.flac")} - sounds
    assert more <= {sound_name(f"dev-{i}") for i in range(4)}
    assert more
    reports(run)[0].with_suffix(".rows.jsonl").unlink()
    assert main(["evaluate", "--run", str(run), "--no-before"]) == 0
    assert {p.name for p in run.sounds.glob("*.flac")} == sounds


def test_shuffled_audio_is_a_control_that_keeps_no_sound_and_says_so(run: RunDir, capsys: Any) -> None:
    before = {p: p.read_bytes() for p in run.sounds.iterdir()}
    assert main(["evaluate", "--run", str(run), "--shuffle-audio", "--no-before"]) == 0
    assert lines(reports(run)[0])[0]["provenance"]["shuffled_audio"] is True
    assert {p: p.read_bytes() for p in run.sounds.iterdir()} == before
    assert capsys.readouterr().out.count("shuffled audio, ") == 1


# ---- rows, again


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def spoken(id: str, reference: str, text: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "reference": reference, "text": text, "speaker": "x", "duration_s": 2.0, "buckets": {}, **more}


def test_saved_rows_are_scored_again_by_another_normaliser_and_into_other_buckets(tmp_path: Path, capsys: Any) -> None:
    rows = [spoken("1", "twenty one", "21", buckets={"age": "3-4"}), spoken("2", "two", "two", duration_s=20.0)]
    file = saved(tmp_path / "a'; x.rows.jsonl", rows)
    assert main(["evaluate", "--rows", str(file), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["metrics"]["wer"], plain["provenance"]["normaliser"]) == (pytest.approx(2 / 3), "basic")
    assert [t["set"] for t in plain["table"]] == ["all", "age=3-4"]
    sets = ["--set", "eval.normaliser=english", "--set", "eval.buckets=[duration]"]
    assert main(["evaluate", "--json", *sets, "--out", str(tmp_path / "out"), "--rows", str(file)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"]["wer"] == 0
    assert [t["set"] for t in again["table"]] == ["all", "duration=under 3 s", "duration=under 30 s"]
    assert json.loads((tmp_path / "out" / "a'; x.english.json").read_text()) == again


def test_rows_of_a_report_keep_its_normaliser_and_its_numbers(run: RunDir, capsys: Any) -> None:
    reported = lines(run.reports / "test.jsonl")[1]
    capsys.readouterr()
    sets = ["--set", "eval.bootstrap=50"]
    rows = run.reports / "test-padded-to-its-own-length.rows.jsonl"
    assert main(["evaluate", "--json", *sets, "--rows", str(rows)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == reported["metrics"]
    assert again["provenance"] == reported["provenance"]


def test_a_report_on_rows_takes_no_other_s_place(tmp_path: Path, capsys: Any) -> None:
    """Every run calls its rows the same."""
    for name, text in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "test-greedy.rows.jsonl", [spoken("1", "one", text)])
    files = [str(tmp_path / name / "test-greedy.rows.jsonl") for name in "ab"]
    assert main(["evaluate", "--out", str(tmp_path / "out"), "--rows", *files]) == 2
    assert "would both be test-greedy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "--rows", *files]) == 0, "nothing is kept, nothing is lost"


def test_scoring_rows_and_comparing_them_needs_no_torch(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.rows.jsonl", [spoken("1", "one two", "one three")])
    for argv in (["evaluate", "--rows", str(file)], ["compare", str(file), str(file)]):
        program = f"import sys; from trainer.__main__ import main; main({argv!r}); sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["evaluate", "--rows", "nowhere.rows.jsonl"], "is not there"),
        (["evaluate", "--rows", "FILE", "--set", "data.max_s=3"], "says nothing to saved rows"),
        (["evaluate", "--rows", "FILE", "--set", "eval.normaliser=englsh"], "english"),
        (["compare", "FILE", "nowhere"], "is not there"),
        (["compare", "FILE", "FILE", "--normaliser", "loud"], "no normaliser 'loud'"),
        (["compare", "FILE", "FILE", "--out", "FOLDER"], "can't be written: Is a directory"),
        (["compare", "FILE", "FILE", "--out", "FILE/x.json"], "x.json can't be written"),
        (["evaluate", "--rows", "FILE", "--out", "FILE"], "can't be written"),
        (["evaluate", "--model", "FOLDER", "FILE", "--out", "FILE"], "can't be written"),
        (["predict", "--model", "FOLDER", "a\udcff.wav"], "not UTF-8"),
        (["predict", "--model", "FOLDER", "FILE", "--out", "FOLDER"], "can't be written: Is a directory"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_code_two(argv: list[str], says: str, tmp_path: Path, capsys: Any) -> None:
    file = saved(tmp_path / "a.rows.jsonl", [spoken("1", "one", "one")])
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    places = {"FILE": str(file), "FOLDER": str(tmp_path), "FILE/x.json": str(file / "x.json")}
    assert main([places.get(a, a) for a in argv]) == 2
    assert says in capsys.readouterr().err


def test_rows_that_never_became_utterances_are_told_with_their_number(trained: Path, run: RunDir, capsys: Any) -> None:
    path = trained / "corpus" / "test.jsonl"
    rows = lines(path)
    rows[1]["audio"] = "nowhere.wav"
    saved(path.with_name("gone.jsonl"), rows)
    argv = ["evaluate", "--run", str(run.root), "--no-before", "--set", "data.max_bad_share=0.5"]
    for name, left_out in (("gone.jsonl", 1), ("test.jsonl", None)):
        capsys.readouterr()
        assert main([*argv, "--json", str(path.with_name(name))]) == 0
        said = capsys.readouterr()
        told = json.loads(said.out)
        assert (told.get("left_out"), told["metrics"]["utterances"]) == (left_out, 4 - (left_out or 0))
        assert (f"1 of 4 rows: {rows[1]['id']}: nowhere.wav" in said.err) == bool(left_out)


# ---- how it looks


def report(sets: dict[str, int]) -> Report:
    line = {
        "wer": 0.1234,
        "cer": 0.05,
        "S": 1,
        "D": 22,
        "I": 333,
        "N": 4444,
        "low": 0.1,
        "high": 0.2,
        "unit": "speakers",
    }
    return Report({}, [{**line, "set": name, "utterances": n} for name, n in sets.items()], {})


def test_a_table_groups_buckets_marks_the_narrow_and_fits_a_hundred_columns() -> None:
    sets = {"all": 560_000, "age=3-4": 29, "age=12+": 30, "source=" + "x" * 80: 5, "noise=": 400}
    found = table_lines(report(sets), before=report({"all": 560_000, "age=3-4": 29}))
    assert max(map(len, found)) <= 100
    assert [line.split()[0] for line in found[1:]] == [
        "before", "all", "age", "3-4", "12+", "source", "x" * 23 + "…", "noise", "(none)", "*",
    ]  # fmt: skip
    assert [line.endswith(" *") for line in found[3:6]] == [False, True, False]
    rates = [line.index("12.34") for line in found if "12.34" in line]
    assert len(set(rates)) == 1, "columns are aligned"
    assert not any("*" in line for line in table_lines(report({"all": 30})))


def test_a_report_without_resamples_shows_no_interval() -> None:
    from trainer.metrics.transcripts import score_transcripts

    rows = [spoken("1", "one two", "one")]
    found = table_lines(score_transcripts(rows, HOW.model_copy(update={"bootstrap": 0})))
    assert "50.0–50.0" not in found[1]
    assert "–" in found[1]


def test_the_worst_are_shown_word_under_word_with_what_differs_in_brackets() -> None:
    found = worst_lines([spoken("u1", "the cat sat on a mat", "the bat sat a mat red", buckets={"age": "3-4"})], HOW)
    assert found == [
        "  u1  S 1  D 1  I 1  2.0 s  age=3-4",
        "    said   the [cat] sat [on]  a mat [***]",
        "    heard  the [bat] sat [***] a mat [red]",
    ]
    long = worst_lines([spoken("u" * 300, "word " * 100, "")], HOW)
    assert max(map(len, long)) <= 100
    assert worst_lines([spoken("u", "", "", reason="silent")], HOW)[0].endswith("silent")


def test_aligned_words_are_both_sides_in_order() -> None:
    pairs = aligned(["a", "b", "c", "d"], ["b", "x", "c", "e", "f"])
    assert [p for _, p, _ in pairs if p] == ["a", "b", "c", "d"]
    assert [h for _, _, h in pairs if h] == ["b", "x", "c", "e", "f"]
    assert sum(k != "=" for k, _, _ in pairs) == 4
    assert aligned([], []) == []


def test_a_comparison_says_the_verdict_the_buckets_and_what_changed(tmp_path: Path, capsys: Any) -> None:
    def rows(wrong: int) -> list[dict[str, Any]]:
        return [
            spoken(f"u{i}", "one two three", "one two" + " three" * (i >= wrong), buckets={"age": f"{i % 2}"})
            for i in range(60)
        ]

    a, b = saved(tmp_path / "a.rows.jsonl", rows(30)), saved(tmp_path / "b.rows.jsonl", rows(4))
    out = tmp_path / "deep" / "c.json"
    assert main(["compare", str(a), str(b), "--changed", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "B makes fewer errors: 14.44 points, p < 0.001 over utterances" in said
    assert "p of a bucket is one among 2 (Holm)" in said
    assert "better in B:\n  u10  1 → 0 errors of 3 words\n    said  one two three\n    A     one two\n" in said
    assert max(map(len, said.splitlines())) <= 100 + len(str(tmp_path))
    told = json.loads(out.read_text())
    assert (told["differences"][0]["better"], told["differences"][0]["worse"], len(told["better"])) == (26, 0, 2)
    assert main(["compare", str(a), str(a), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][0]["p"] == 1
    assert main(["compare", str(a), str(a)]) == 0
    assert "no utterance has more errors in one than in the other" in capsys.readouterr().out
