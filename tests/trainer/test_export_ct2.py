"""`trainer export`: what faster-whisper writes is what we write, or nobody gets the model."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.speech import ctc_dict, make_corpus, recipe_dict, write_experiment
from support.whispers import many_tongued, talkative
from transformers import WhisperForConditionalGeneration

from remote.files import read_json, write_json
from trainer.__main__ import main
from trainer.errors import TrainerError
from trainer.evaluate import predict
from trainer.exporting.ct2 import NEEDED, QUANTISATIONS, convert
from trainer.exporting.faster import Faster
from trainer.exporting.gate import check_set, compare, open_ours
from trainer.recipe.load import parse_recipe
from trainer.task import make_task

pytest.importorskip("faster_whisper")
DIGITS = os.environ.get("SPOKEN_DIGITS_DIR", "")
EXPORT = os.environ.get("SPOKEN_DIGITS_EXPORT", "")  # a Whisper of configs/spoken_digits.yaml, to save its training


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a Whisper with a window of two seconds that says something else of every sound."""
    folder = tmp_path_factory.mktemp("export")
    for name, n in (("train", 4), ("dev", 4), ("test", 12)):
        make_corpus(folder, n, seed=n, name=name)
    talkative(
        folder / "hub", recipe_dict(folder, eval={**recipe_dict(folder)["eval"], "decode": {"max_new_tokens": 8}})
    )
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_tongued(tmp_path_factory.mktemp("many") / "many")


def export(place: Path, out: Path, *more: str, model: str = "hub", how: str = "ct2") -> int:
    return main(["export", "--model", str(place / model), "--format", how, "--out", str(out), *more])


def quiet(*_: object) -> None:
    pass


def test_in_float32_it_writes_the_same_and_is_published_with_all_that_is_needed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert export(place, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "0 of 12 texts differ" in told
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {*NEEDED, "parity.json", "provenance.json", "recipe.json"}
    found = read_json(tmp_path / "out/parity.json")
    assert (found["holds"], found["differing"], found["differences"]) == (True, 0, [])
    assert found["wer_ours"] == found["wer_theirs"]
    assert found["empty"] == 0
    kept = read_json(tmp_path / "out/provenance.json")
    assert (kept["run"], kept["format"], kept["quantisation"]) == ("talkative", "ct2", "float32")
    assert kept["parity"]["normaliser_sha256"]
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "out"}


def test_sound_that_is_not_padded_is_heard_otherwise_and_that_is_said(place: Path, tmp_path: Path) -> None:
    """Zeros behind features are not the features of zeros."""
    assert export(place, tmp_path / "out") == 0
    assert read_json(tmp_path / "out/parity.json")["unpadded"]["differing"] > 0


def test_a_window_of_thirty_seconds_needs_nothing_of_ours(place: Path, tmp_path: Path) -> None:
    """With `decode.json` alone a server writes what we do: no class and no import of this project."""
    from faster_whisper import WhisperModel

    scratch = {**recipe_dict(place)["model"]["from_scratch"], "window_s": 30}
    talkative(tmp_path / "hub", recipe_dict(place, model={"from_scratch": scratch}))
    ours = open_ours(tmp_path / "hub", [])
    some = check_set(ours, None, 3)
    convert(tmp_path / "hub", tmp_path / "ct2", "float32")
    found = compare(ours, tmp_path / "ct2", some, "float32", quiet)
    assert found.differing == []
    how = ours.asking.as_json()
    model = WhisperModel(str(tmp_path / "ct2"), device="cpu")
    (item,) = ours.task.load([some[0]], [None])
    wave = np.pad(item.wave_T, (0, how["pad_to_samples"] - len(item.wave_T)))
    text = "".join(s.text for s in model.transcribe(wave, **how["transcribe"])[0]).strip()
    assert text == Faster(tmp_path / "ct2", ours.asking, "cpu", 1).text_of(item.wave_T)


def test_the_last_token_that_fits_the_decoder_is_still_written_and_none_more(tmp_path: Path, place: Path) -> None:
    """The faster one halves the length that it is told; a decoder of 32 places must not be asked for a 33rd."""
    ours = open_ours(place / "hub", ["eval.decode.max_new_tokens=400"])
    assert ours.asking.max_new_tokens == 32 - len(ours.task.prompt)
    convert(place / "hub", tmp_path / "ct2", "float32")
    found = compare(ours, tmp_path / "ct2", check_set(ours, None, 6), "float32", quiet)
    assert found.differing == []


def test_a_model_of_many_languages_is_asked_for_the_one_it_was_trained_in(
    place: Path, many: Path, tmp_path: Path
) -> None:
    sets = ["model.language=Hebrew", "data.max_s=2", "eval.decode.max_new_tokens=6"]
    ours = open_ours(many, sets)
    convert(many, tmp_path / "ct2", "float32")
    asked = ours.asking.transcribe
    assert (asked["language"], asked["task"]) == ("he", "transcribe")
    assert asked["suppress_tokens"] == [5, 60, 300]
    found = compare(ours, tmp_path / "ct2", check_set(ours, str(place / "test.jsonl"), 4), "float32", quiet)
    assert found.differing == []
    languages = read_json(tmp_path / "ct2/config.json")["lang_ids"]
    assert (len(languages), languages[0], languages[-1]) == (99, 50259, 50357)


def test_where_it_would_be_asked_for_something_else_that_is_refused(
    place: Path, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whether a model knows languages CTranslate2 tells by one empty word of the vocabulary."""
    shutil.copytree(many, tmp_path / "many")
    text = (tmp_path / "many/tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "many/tokenizer.json").write_text(text.replace('"": 50256', '"Ġnothing": 50256'), encoding="utf-8")
    more = ("--set", "model.language=he", "--set", "data.max_s=2", "--check", str(place / "test.jsonl"))
    assert export(tmp_path, tmp_path / "out", *more, model="many") == 1
    told = capsys.readouterr().err
    assert "would ask this model with the tokens" in told
    assert "→" in told
    assert not (tmp_path / "out").exists()


def test_beyond_the_limit_nothing_is_published_and_what_differs_is_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A model that transformers forbids some words, which faster-whisper is not told."""
    rows = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    free = open_ours(place / "hub", [])
    heard, _ = predict(free.task, free.parts, check_set(free, None, 99), free.recipe, free.machine)
    shutil.copytree(place / "hub", tmp_path / "hub")
    how = read_json(tmp_path / "hub/generation_config.json")
    write_json(tmp_path / "hub/generation_config.json", {**how, "bad_words_ids": [[t] for t in range(150)]})
    for row, right in zip(rows, heard, strict=True):
        row |= {"audio": str(place / row["audio"]), "text": right["text"]}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    more = ("--check", str(tmp_path / "test.jsonl"), "--max-wer-difference", "0", "--set", "eval.normaliser=none")
    code = export(tmp_path, tmp_path / "out", *more)
    told = capsys.readouterr()
    assert code == 1
    assert not (tmp_path / "out").exists()
    kept = read_json(tmp_path / "out.refused/parity.json")
    assert kept["holds"] is False
    assert len(kept["differences"]) == kept["differing"] > 0
    assert {"id", "ours", "theirs", "reference"} <= kept["differences"][0].keys()
    assert str(tmp_path / "out.refused/parity.json") in told.err
    assert "nothing was published" in told.err
    assert "    theirs " in told.out
    assert export(place, tmp_path / "out", *more) == 0, "what holds is published, and what was refused goes"
    assert not (tmp_path / "out.refused").exists()


def test_without_a_comparison_there_is_a_warning_that_stays_with_the_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert export(place, tmp_path / "out", "--check", "none", "--quantisation", "int8") == 0
    assert "warning" in capsys.readouterr().out
    kept = read_json(tmp_path / "out/provenance.json")
    assert kept["parity"] is None
    assert "not compared" in kept["warning"]
    assert not (tmp_path / "out/parity.json").exists()


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_every_quantisation_opens_on_this_machine(place: Path, tmp_path: Path, quantisation: str) -> None:
    convert(place / "hub", tmp_path / "ct2", quantisation)
    ours = open_ours(place / "hub", [])
    (item,) = ours.task.load([check_set(ours, None, 1)[0]], [None])
    assert Faster(tmp_path / "ct2", ours.asking, "cpu", 1).text_of(item.wave_T)


def test_another_family_is_refused_in_a_sentence(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    task = make_task(parse_recipe(ctc_dict(corpus)))
    task.export(task.build().module, tmp_path / "ctc")
    assert export(tmp_path, tmp_path / "out", model="ctc") == 2
    told = capsys.readouterr().err
    assert "is a model of kind parakeet_ctc, and --format ct2 is for Whisper alone" in told
    assert "--format hf" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-wer-difference", "2"], "is not a share"),
        (["--utterances", "0"], "is not a number from 1"),
        (["--quantisation", "int3"], "invalid choice"),
    ],
)
def test_a_word_that_is_not_understood_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit):
        export(place, tmp_path / "out", *words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--check", "a'; rm -rf .jsonl"], "No such file"),
        (["--set", "data.test=[]"], "names no test set"),
        (["--set", "data.max_s=0.11"], "no utterance can be used"),
    ],
)
def test_a_set_that_can_t_be_compared_on_is_one_sentence_before_anything_is_converted(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], says: str
) -> None:
    assert export(place, tmp_path / "out", *more) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "→" in told
    assert [p for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_what_lies_there_already_is_left_alone(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "else.refused").mkdir()
    assert export(place, tmp_path / "out") == 2
    assert export(place, tmp_path / "else") == 2
    assert capsys.readouterr().err.count("is there already") == 2


def test_only_silence_and_broken_files_are_no_comparison(place: Path, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "still.wav", np.zeros(16_000, np.float32), 16_000)
    row = {"id": "s", "audio": "still.wav", "duration_s": 1.0, "text": "low"}
    (tmp_path / "still.jsonl").write_text(json.dumps(row) + "\n")
    ours = open_ours(place / "hub", [])
    some = check_set(ours, str(tmp_path / "still.jsonl"), 5)
    with pytest.raises(TrainerError, match="no recording of the set could be read"):
        compare(ours, tmp_path / "never", some, "float32", quiet)


# ---- hf


def test_a_run_s_best_is_handed_on_as_transformers_loads_it(corpus: Path, tmp_path: Path) -> None:
    """From the export that the run left, and the same without it, from its checkpoints."""
    experiment = write_experiment(tmp_path / "e.yaml", recipe_dict(corpus))
    run = tmp_path / "run"
    assert main(["train", str(experiment), "--run-dir", str(run)]) == 0
    out = ["--format", "hf", "--out"]
    assert main(["export", "--run", str(run), *out, str(tmp_path / "one")]) == 0
    (run / "export/model.safetensors").unlink()  # as after a fetch that left the weights behind
    assert main(["export", "--run", str(run), *out, str(tmp_path / "two")]) == 0
    one, two = (WhisperForConditionalGeneration.from_pretrained(tmp_path / n).state_dict() for n in ("one", "two"))
    assert all((one[name] == two[name]).all() for name in one)
    assert read_json(tmp_path / "one/provenance.json")["run"] == "run"
    assert (
        read_json(tmp_path / "two/provenance.json")["weights"] == read_json(tmp_path / "one/provenance.json")["weights"]
    )
    write_json(run / "export/provenance.json", {"step": -1})  # made of something else than would be chosen now
    assert main(["export", "--run", str(run), "--format", "ct2", "--out", str(tmp_path / "ct2")]) == 0
    assert read_json(tmp_path / "ct2/provenance.json")["run"] == "run"


def test_a_copy_goes_beside_its_model_and_never_into_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It would be a copy of the copy of the copy, for as long as there is room."""
    shutil.copytree(place / "hub", tmp_path / "hub")
    before = sorted(p.name for p in (tmp_path / "hub").rglob("*"))
    assert export(tmp_path, tmp_path / "hub/hf", how="hf") == 2
    assert "lies within" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "hub").rglob("*")) == before


@pytest.mark.parametrize("out", ["file/out", "file/deeper/out", "dangling", "n" * 250])
def test_a_place_where_no_folder_can_be_is_one_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert export(place, tmp_path / out, how="hf") == 2
    assert "→" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"file", "dangling"}


def test_what_belongs_to_ct2_is_refused_for_hf(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert export(place, tmp_path / "out", "--quantisation", "int8", how="hf") == 2
    assert "--quantisation: belongs to --format ct2" in capsys.readouterr().err


# ---- real speech


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not DIGITS, reason="SPOKEN_DIGITS_DIR is not set")
def test_spoken_digits_are_written_alike(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    which = ["--model", EXPORT] if EXPORT else ["--run", str(trained_on_digits(tmp_path))]
    for quantisation, most in (("float32", "0.002"), ("int8", "0.05")):
        out = tmp_path / quantisation
        argv = ["export", *which, "--format", "ct2", "--quantisation", quantisation, "--max-wer-difference", most]
        assert main([*argv, "--out", str(out)]) == 0
        found = read_json(out / "parity.json")
        print(json.dumps({k: found[k] for k in ("utterances", "differing", "wer_ours", "wer_theirs", "unpadded")}))
        assert found["utterances"] == 200
        assert found["empty"] < 20, "the model speaks"
    assert len(read_json(tmp_path / "float32/parity.json")["differences"]) <= 1
    size = {q: (tmp_path / q / "model.bin").stat().st_size for q in ("float32", "int8")}
    assert size["int8"] < 0.5 * size["float32"]


def trained_on_digits(folder: Path, steps: int = 200) -> Path:
    """A run of configs/spoken_digits.yaml, as far as a few minutes go."""
    config = Path(__file__).parents[2] / "configs/spoken_digits.yaml"
    whole = yaml.safe_load(config.read_text(encoding="utf-8"))
    whole["train"]["loop"]["steps"] = steps
    whole["train"]["eval"]["every_steps"] = steps
    whole["train"]["eval"]["before_training"] = False
    (folder / "digits.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert main(["train", str(folder / "digits.yaml"), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"
