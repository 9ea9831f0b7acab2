"""Alignment by CTC: the best path is its definition, windows are the whole, and no word is lost where sound is cut."""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech import RATE, ctc_dict, make_corpus, tone, write_manifest

from remote.rundir import RunDir
from trainer.__main__ import main
from trainer.align import Path as AlignedPath
from trainer.align import best_path, words_of
from trainer.aligned import Alignment, Spoken
from trainer.aligner import Aligner, open_aligner, words_in
from trainer.apply import Trained
from trainer.data.manifest import REPEATED
from trainer.machine import Machine, placed
from trainer.pauses import with_pauses
from trainer.recipe.load import parse_recipe
from trainer.splitting import EDGE_SCORE, split
from trainer.task import Example, make_task
from trainer.tasks.ctc import CtcTask, collapsed
from trainer.train import train

ROOT = Path(__file__).resolve().parents[2]

BLANK = 0


def by_definition(log_probs: np.ndarray, tokens: list[int]) -> float | None:
    """The best of all paths that collapse to the tokens, each of them written out."""
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    fitting = [p for p in paths if collapsed(p, BLANK) == tokens]
    return max((sum(log_probs[f, t] for f, t in enumerate(p)) for p in fitting), default=None)


def spelt(path: AlignedPath, log_probs: np.ndarray, tokens: list[int]) -> list[int]:
    """The path as a token a frame, blanks where no token has its span."""
    said = [BLANK] * len(log_probs)
    for token, first, last in zip(tokens, path.first_L, path.last_L, strict=True):
        said[first : last + 1] = [token] * int(last - first + 1)
    return said


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5), st.lists(st.integers(1, 2), max_size=3), st.integers(0, 10_000), st.sampled_from([1, 9, 1000])
)
def test_the_best_path_is_the_best_of_all_paths_however_much_of_it_is_held(
    n_frames: int, tokens: list[int], seed: int, held: int
) -> None:
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), size=n_frames))
    path = best_path(log_probs, tokens, BLANK, held)
    best = by_definition(log_probs, tokens)
    assert (path is None) == (best is None)
    if path is not None:
        assert path.frame_scores_P.sum() == pytest.approx(best)
        assert path.score == pytest.approx(best / n_frames)
        said = spelt(path, log_probs, tokens)
        assert collapsed(said, BLANK) == tokens
        assert sum(log_probs[f, t] for f, t in enumerate(said)) == pytest.approx(best)


def test_frames_that_can_not_hold_the_tokens_have_no_path() -> None:
    flat = np.full((3, 4), np.log(0.25))
    assert best_path(flat, [1, 2, 3], BLANK) is not None
    assert best_path(flat, [1, 1, 1], BLANK) is None, "equal neighbours need a blank between them"
    assert best_path(flat[:0], [1], BLANK) is None
    assert best_path(flat, [], BLANK) is not None, "silence may be said"


def test_words_are_found_between_separators_and_where_they_begin() -> None:
    assert words_in(["a", "b", "|", "c"]) == [[0, 1], [3]]
    assert words_in(["▁th", "ree", "▁", "▁four", "s"]) == [[0, 1], [3, 4]]
    assert words_in(["|", "a", "|", "|"]) == [[1]]
    assert words_in([]) == []
    peaks = np.log(np.eye(3)[[0, 1, 0, 2, 0]] * 0.97 + 0.01)
    path = best_path(peaks, [1, 2], BLANK)
    assert path is not None
    assert [(w.first, w.last) for w in words_of(path, [[0], [1]])] == [(1, 1), (3, 3)]


# ---- a model hears in windows


def near_sighted(folder: Path, family: str, **sections: dict) -> Aligner:
    """A CTC model that hears no further than its convolutions: attention adds nothing, levels are as they come."""
    recipe = ctc_dict(folder, family, **sections)
    recipe["model"]["from_scratch"]["norm"] = "layer"
    torch.manual_seed(0)
    task = make_task(parse_recipe(recipe))
    assert isinstance(task, CtcTask)
    task.extractor.do_normalize = False
    parts = placed(task.build(), Machine(torch.device("cpu"), "fp32"))
    with torch.no_grad():
        for name, p in parts.module.named_parameters():
            p.mul_(3.0 if p.ndim > 1 else 1.0)
            if "out_proj" in name:
                p.zero_()
    trained = Trained("tiny", task.recipe, task, parts, Machine(torch.device("cpu"), "fp32"), None, {})
    return Aligner(trained, window_s=4.0, overlap_s=2.0)


def test_windows_say_what_the_whole_says(tmp_path: Path) -> None:
    aligner = near_sighted(tmp_path, "wav2vec2")
    words = list(np.random.default_rng(1).choice(["low", "mid", "high"], size=52))
    wave = tone([str(w) for w in words], seed=1)[: round(10.237 * RATE)]
    whole = with_window(aligner, 60.0).log_probs(wave)
    stitched = aligner.log_probs(wave)
    assert stitched.shape == whole.shape, "no frame is lost or doubled at a seam"
    assert np.abs(stitched - whole).max() < 1e-4
    assert whole.std(axis=0).max() > 0.01, "a model that says one thing everywhere would pass"
    for n in (400, 16_000, 63_999, 64_000, 64_001, 96_123, 128_000):
        assert len(aligner.log_probs(wave[:n])) == aligner._task.n_frames(n)


def with_window(aligner: Aligner, window_s: float) -> Aligner:
    return Aligner(aligner.trained, window_s=window_s, overlap_s=2.0)


def test_a_parakeet_s_windows_lie_on_the_frames_of_the_whole(tmp_path: Path) -> None:
    recipe = parse_recipe(ctc_dict(tmp_path))
    task = make_task(recipe)
    machine = Machine(torch.device("cpu"), "fp32")
    aligner = Aligner(Trained("tiny", recipe, task, placed(task.build(), machine), machine, None, {}), 4.0, 2.0)
    for n in (16_000, 64_001, 96_123, 160_000):
        assert len(aligner.log_probs(tone(["low"] * 50)[:n])) == task.n_frames(n)


# ---- cutting, without a model


@st.composite
def recordings(draw) -> tuple[Alignment, float]:
    n = draw(st.integers(1, 40))
    at, words = draw(st.floats(0, 3)), []
    for i in range(n):
        length = draw(st.floats(0.04, 3))
        score = draw(st.sampled_from([-0.1, -0.5, EDGE_SCORE - 0.1]))
        words.append(Spoken(f"w{i}", at, at + length, score))
        at += length + draw(st.sampled_from([0.0, 0.0, 0.2, 1.0, 6.0]))
    duration_s = at + draw(st.floats(0, 2))
    frames = np.full(max(1, round(duration_s / 0.04)), -0.3)
    return Alignment("r", -0.3, words, 0.04, frames), duration_s


@settings(max_examples=150, deadline=None)
@given(recordings(), st.floats(0.5, 12), st.sampled_from([None, -0.2, -1.0]))
def test_words_in_are_words_out_in_their_order_and_no_piece_is_too_long(
    recording: tuple[Alignment, float], longest_s: float, min_score: float | None
) -> None:
    alignment, duration_s = recording
    pieces = split(alignment, duration_s, longest_s, min_score)
    assert [w for p in pieces for w in p.words] == [w.word for w in alignment.words]
    spans = {w.word: w for w in alignment.words}
    for before, piece in itertools.pairwise([None, *pieces]):
        assert piece.words
        assert 0 <= piece.start_s <= piece.end_s <= duration_s + 1e-9
        assert before is None or before.end_s <= piece.start_s + 1e-9, "no sound is in two pieces"
        assert piece.start_s <= spans[piece.words[0]].start_s
        assert piece.end_s >= spans[piece.words[-1]].end_s - 1e-9
        is_poor = min(spans[piece.words[0]].score, spans[piece.words[-1]].score) < EDGE_SCORE
        is_low = min_score is not None and piece.score < min_score
        assert bool(piece.reason) == (piece.duration_s > longest_s or is_poor or is_low), piece
        assert piece.duration_s <= longest_s or len(piece.words) == 1


def test_the_longest_pauses_are_cut() -> None:
    starts = [0.5, 2.0, 6.0, 7.5, 9.0, 14.0]  # pauses of 1, 3.5, 1, 1, 4.5
    words = [Spoken(str(i), s, s + 0.5, -0.1) for i, s in enumerate(starts)]
    alignment = Alignment("r", -0.1, words, 0.04, np.full(375, -0.1))
    assert [list(p.words) for p in split(alignment, 15.0, 6.0)] == [["0", "1"], ["2", "3", "4"], ["5"]]
    assert [list(p.words) for p in split(alignment, 15.0, 10.0)] == [["0", "1", "2", "3", "4"], ["5"]]
    assert len(split(alignment, 15.0, 15.0)) == 1


def test_a_dash_at_an_edge_vouches_for_nothing() -> None:
    words = [Spoken("a", 1.0, 1.5, -0.1), Spoken("b", 3.0, 3.5, EDGE_SCORE - 1), Spoken("—", 3.5, 3.5, 0.0)]
    frames = np.full(125, -0.1)
    (piece,) = split(Alignment("r", -0.1, words, 0.04, frames), 5.0, 30.0)
    assert "its edge 'b' is hardly heard" in piece.reason
    (piece,) = split(Alignment("r", -0.1, words[::2], 0.04, frames), 5.0, 30.0)
    assert not piece.reason
    first, second = split(Alignment("r", -0.1, [words[2], Spoken("c", 4.0, 4.2, -0.1)], 0.04, frames), 5.0, 1.0)
    assert "none of its words is heard" in first.reason
    assert not second.reason


# ---- where words end


def test_words_end_where_it_becomes_quiet_and_stay_where_it_does_not() -> None:
    quiet = np.random.default_rng(0).normal(0, 1e-3, round(0.5 * RATE)).astype(np.float32)
    wave = np.concatenate([quiet, tone(["low", "mid"]), quiet, tone(["high"]), tone(["low"]), quiet])
    # sound: 0.5-0.9, 1.4-1.8; CTC says each token somewhere within its word
    words = [Spoken("a", 0.6, 0.65, -0.1), Spoken("—", 0.65, 0.65, 0.0), Spoken("b", 1.5, 1.55, -0.1)]
    words.append(Spoken("c", 1.7, 1.75, -0.1))
    found = with_pauses(words, wave)
    times = [found[0].start_s, found[0].end_s, found[2].start_s, found[3].end_s]
    assert times == pytest.approx([0.5, 0.9, 1.4, 1.8], abs=0.03)
    assert (found[2].end_s, found[3].start_s) == (1.55, 1.7), "there is no pause between them"
    assert found[1].start_s == found[1].end_s == found[0].end_s
    noise = np.random.default_rng(1).normal(0, 0.1, len(wave)).astype(np.float32)
    assert with_pauses(words, noise) == words, "in noise nothing is known better than by the tokens"
    assert with_pauses(words, wave[:0]) == words
    assert with_pauses([], wave) == []
    dash = Spoken("—", 0.0, 0.0, 0.0)
    led = with_pauses([dash, *words], wave)
    assert led[0].start_s == led[0].end_s == led[1].start_s == found[0].start_s, "no silence comes with it"


# ---- the command, on an untrained model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    task = make_task(parse_recipe(ctc_dict(tmp_path)))
    torch.manual_seed(0)
    task.export(task.build().module, tmp_path / "model")
    return tmp_path / "model"


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_gets_its_line_and_what_can_not_be_aligned_says_why(tmp_path: Path, model: Path, capsys) -> None:
    path = make_corpus(tmp_path, 4)
    rows = rows_of(path)
    rows += [
        {**rows[0], "id": "a'; rm -rf /", "text": "low 7 high"},
        {**rows[0], "id": "nothing", "text": " "},
        {**rows[0], "id": "much", "text": "high " * 200},
        {**rows[0], "id": "punctuated", "text": "Low — high, mid!"},
    ]
    write_manifest(path, rows)
    assert main(["align", str(path), "--model", str(model)]) == 0
    found = {r["id"]: r for r in rows_of(tmp_path / "train.align.jsonl")}
    assert list(found) == [r["id"] for r in rows]
    assert "lacks '7'" in found["a'; rm -rf /"]["reason"]
    assert "nothing is left" in found["nothing"]["reason"]
    assert "needs" in found["much"]["reason"]
    assert [w[0] for w in found["punctuated"]["words"]] == ["Low", "—", "high,", "mid!"]
    for row in rows[:4]:
        mine = found[row["id"]]
        assert [w[0] for w in mine["words"]] == row["text"].split()
        assert mine["align"] < 0
        times = [t for w in mine["words"] for t in w[1:3]]
        assert times == sorted(times)
        assert times[-1] <= row["duration_s"]
    facts = json.loads((tmp_path / "train.align.json").read_text())
    assert facts["model"]["writing"] == "basic"
    assert len(facts["model"]["weights_sha256"]) == 64
    assert "mean log-probability a frame" in capsys.readouterr().out


def test_no_word_is_lost_when_recordings_are_cut(tmp_path: Path, model: Path, capsys) -> None:
    path = make_corpus(tmp_path, 3)
    short = rows_of(path)
    rng = np.random.default_rng(3)
    words = [str(w) for w in rng.choice(["low", "mid", "high"], size=60)]
    soundfile.write(tmp_path / "long.wav", tone(words), RATE)
    (tmp_path / "not.wav").write_text("no sound")
    long = {"id": "long", "audio": "long.wav", "duration_s": 12.0, "start_s": 0.0, "speaker": "s1", "age": "old"}
    rows = [
        short[0],
        {**long, "text": " ".join(words)},
        {**long, "id": "part", "start_s": 4.0, "duration_s": 8.0, "text": " ".join(words[20:])},
        {**long, "id": "strange", "text": "low 7 high"},
        {**long, "id": "unheard", "audio": "not.wav", "text": "low high mid"},
        {**long, "id": "gone", "audio": "gone.wav", "text": "low high"},
        {**short[1], "text": ""},
        short[0],
        short[2],
    ]
    write_manifest(path, rows)
    path.write_text(path.read_text() + "{torn\n")
    assert main(["align", str(path), "--model", str(model), "--split", "3"]) == 0
    out, dropped = rows_of(tmp_path / "train.split.jsonl"), rows_of(tmp_path / "train.split.quarantine.jsonl")
    n_in = sum(len(r["text"].split()) for r in rows)
    assert n_in == sum(len(r.get("text", "").split()) for r in [*out, *dropped])
    assert all(r["reason"] for r in dropped)
    assert {r["id"] for r in dropped} >= {"strange", "unheard", "gone", short[0]["id"]}
    assert [r for r in out if r["id"] == short[2]["id"]] == [short[2]], "what is short stays as it is"
    of_long = [r for r in [*out, *dropped] if r["id"].startswith("long-")]
    assert sorted(r["id"] for r in of_long) == [f"long-{n:03d}" for n in range(len(of_long))]
    assert " ".join(r["text"] for r in sorted(of_long, key=lambda r: r["id"])) == " ".join(words)
    for row in of_long:
        assert (row["speaker"], row["age"], row["audio"]) == ("s1", "old", "long.wav")
    assert all(r["start_s"] >= 4.0 for r in [*out, *dropped] if r["id"].startswith("part-"))
    assert all(r["duration_s"] <= 3 for r in out)
    said = capsys.readouterr().out
    assert f"{n_in} words in" in said


def test_of_equal_ids_the_first_is_kept_and_one_that_may_be_meant_otherwise_is_not_cut(
    tmp_path: Path, model: Path, capsys
) -> None:
    path = make_corpus(tmp_path, 2)
    short = rows_of(path)
    words = ["low", "mid", "high"] * 20
    soundfile.write(tmp_path / "long.wav", tone(words), RATE)
    long = {"id": "long", "audio": "long.wav", "duration_s": 12.0, "text": " ".join(words)}
    gone = {**long, "audio": "gone.wav", "text": "other words of another recording"}
    write_manifest(path, [short[0], short[0], gone, long, short[1], {**long, "id": "fine"}, {**long, "id": "fine"}])
    assert main(["align", str(path), "--model", str(model), "--split", "3"]) == 0
    out, dropped = rows_of(tmp_path / "train.split.jsonl"), rows_of(tmp_path / "train.split.quarantine.jsonl")
    assert [r for r in out if not r["id"].startswith("fine-")] == short
    assert [r["reason"] for r in dropped if r["id"] == short[0]["id"]] == [REPEATED]
    assert [r["text"] for r in dropped if r["id"] == "long"] == [gone["text"], long["text"]]
    assert all("gone.wav" in r["reason"] for r in dropped if r["id"] == "long")
    pieces = sorted((r for r in [*out, *dropped] if r["id"].startswith("fine-")), key=lambda r: r["id"])
    assert " ".join(r["text"] for r in pieces) == long["text"]
    assert "words in" in capsys.readouterr().out


def test_a_piece_s_name_that_is_taken_is_refused_and_nothing_is_written(tmp_path: Path, model: Path, capsys) -> None:
    path = make_corpus(tmp_path, 2)
    rows = rows_of(path)
    rows = [{**rows[0], "id": "x"}, {**rows[1], "id": "x-000"}]
    write_manifest(path, rows)
    assert main(["align", str(path), "--model", str(model), "--split", "0.1"]) == 2
    assert "holds x-000 already" in capsys.readouterr().err
    assert not (tmp_path / "train.split.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--split", "0"], "is no length"),
        (["--min-align", "1"], "above 0"),
        (["--set", "data.feilds=1"], "did you mean"),
        (["--out", "x.json"], "is not a .jsonl file"),
        (["--out", "train.jsonl"], "would write over it"),
        (["--split", "3", "--out", "train.split.jsonl"], "would write over it"),
    ],
)
def test_what_is_asked_wrongly_is_named(
    tmp_path: Path, model: Path, capsys, monkeypatch, more: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_corpus(tmp_path, 1)
    before = path.read_bytes()
    assert main(["align", str(path), "--model", str(model), *more]) == 2
    assert says in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_model_without_ctc_is_refused(tmp_path: Path, capsys) -> None:
    from support.speech import recipe_dict

    task = make_task(parse_recipe(recipe_dict(tmp_path)))
    task.export(task.build().module, tmp_path / "whisper")
    assert main(["align", str(make_corpus(tmp_path, 1)), "--model", str(tmp_path / "whisper")]) == 2
    assert "only CTC says when" in capsys.readouterr().err


# ---- real speech


DIGITS = os.environ.get("SPOKEN_DIGITS_DIR", "")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not DIGITS, reason="SPOKEN_DIGITS_DIR is not set")
def test_a_small_model_tells_true_transcripts_from_others_and_finds_the_words(tmp_path: Path) -> None:
    """A few minutes of training on real people's digits: what an untrained model can't show."""
    digits = Path(DIGITS)
    experiment = yaml.safe_load((ROOT / "configs" / "spoken_digits_ctc.yaml").read_text())
    experiment["train"]["loop"] |= {"steps": 300}
    experiment["train"]["augment"] |= {"join_p": 0.0}
    experiment["train"]["eval"] |= {"every_steps": 300, "before_training": False}
    experiment["train"]["log"] = {"every_steps": 50, "tensorboard": False}
    file = tmp_path / "digits.yaml"
    file.write_text(yaml.safe_dump(experiment))
    began = time.monotonic()
    run = RunDir(tmp_path / "run")
    train(file, run, stop=lambda: False)
    print(f"trained {time.monotonic() - began:.0f} s; {json.loads(run.summary.read_text())['headline']}")
    model = str(tmp_path / "run" / "export")
    fields = {"id": "utterance_id", "audio": "audio_path", "duration_s": "audio_duration_sec"}
    fields |= {"text": "orthographic_text", "speaker": "speaker_id"}
    folders = [str(digits), *(str(digits / f"audio_{n}") for n in range(3))]
    sets = ["--set", f"data.fields={json.dumps(fields)}", "--set", f"data.audio_dirs={json.dumps(folders)}"]

    rows = [r for r in rows_of(digits / "strings_test.jsonl") if len(r["orthographic_text"].split()) > 2]
    texts = [r["orthographic_text"] for r in rows]
    turned = [texts[(i + 7) % len(texts)] for i in range(len(texts))]
    others = [
        {**r, "utterance_id": f"x-{r['utterance_id']}", "orthographic_text": t}
        for r, t in zip(rows, turned, strict=True)
    ]
    path = write_manifest(tmp_path / "both.jsonl", [*rows, *others])
    assert main(["audit", str(path), "--align", model, *sets]) == 0
    scores = {r["id"]: r.get("align") for r in rows_of(tmp_path / "both.audit.jsonl")}
    true = [scores[r["utterance_id"]] for r in rows]
    false = [
        -99.0 if scores[r["utterance_id"]] is None else scores[r["utterance_id"]]
        for r, t, own in zip(others, turned, texts, strict=True)
        if t != own
    ]
    auc = np.mean([(t > f) + 0.5 * (t == f) for t in true for f in false])
    print(f"align of true transcripts: median {np.median(true):.3f}, 10 % {np.quantile(true, 0.1):.3f}")
    print(f"of others: median {np.median(false):.3f}, 90 % {np.quantile(false, 0.9):.3f}; AUC {auc:.4f}")
    assert auc > 0.9

    waves, spans, at = [], [], 0.0  # where each string begins and ends in the long recording
    rng = np.random.default_rng(0)
    for row in rows[:10]:
        name = Path(row["audio_path"]).name
        (found,) = [p for d in folders[1:] if (p := Path(d) / name).exists()]
        wave, rate = soundfile.read(found, dtype="float32")
        pause = rng.normal(0, 1e-3, round(0.5 * rate)).astype(np.float32)
        waves += [wave, pause]
        spans.append((at, at + len(wave) / rate))
        at += (len(wave) + len(pause)) / rate
    soundfile.write(tmp_path / "long.wav", np.concatenate(waves), rate)
    long = {"utterance_id": "long", "audio_path": "long.wav", "audio_duration_sec": at, "speaker_id": "many"}
    long |= {"orthographic_text": " ".join(texts[:10]), "accent": "kept"}
    path = write_manifest(tmp_path / "long.jsonl", [long])
    where = ["--set", f"data.fields={json.dumps(fields)}"]
    assert main(["align", str(path), "--model", model, *where]) == 0
    (row,) = rows_of(tmp_path / "long.align.jsonl")
    ends = np.cumsum([len(t.split()) for t in texts[:10]])
    first, last = [row["words"][n] for n in [0, *ends[:-1]]], [row["words"][n - 1] for n in ends]
    starts = np.abs([w[1] - start_s for w, (start_s, _) in zip(first, spans, strict=True)])
    joints = [((last[n][2] + first[n + 1][1]) / 2, spans[n][1], spans[n + 1][0]) for n in range(9)]
    late = [round(end_s - w[2], 2) for w, (_, end_s) in zip(last, spans, strict=True)]  # the strings fade out
    print(f"{at:.1f} s, {len(row['words'])} words; strings begin within {starts.max():.3f} s of where they do")
    print(f"their last words end so much before them: {late}")
    assert starts.max() < 0.15
    assert all(end_s - 0.15 < cut_s < start_s for cut_s, end_s, start_s in joints), "a cut lies in the pause"

    longest_s = 6.0
    assert main(["align", str(path), "--model", model, "--split", str(longest_s), *where]) == 0
    pieces, dropped = rows_of(tmp_path / "long.split.jsonl"), rows_of(tmp_path / "long.split.quarantine.jsonl")
    print(f"{len(pieces)} pieces, {len(dropped)} in quarantine: {[d['reason'] for d in dropped]}")
    assert sum(len(p["orthographic_text"].split()) for p in [*pieces, *dropped]) == len(row["words"])
    assert all(p["audio_duration_sec"] <= longest_s and p["accent"] == "kept" for p in pieces)
    assert sum(len(p["orthographic_text"].split()) for p in pieces) > 0.6 * len(row["words"])
    plain = [*where, "--set", "data.audio_dirs=[]", "--out", str(tmp_path / "ev")]
    assert main(["evaluate", "--model", model, str(tmp_path / "long.split.jsonl"), *plain]) == 0
    told = json.loads(next((tmp_path / "ev").glob("evaluate-*.json")).read_text())
    print(f"WER of the pieces {100 * told['metrics']['wer']:.1f} %")
    assert told["metrics"]["wer"] < 0.5, "a text beside another's sound would have 1"

    # a level taken over the recording is another one in each window: words stay where they are
    trained = open_aligner(Path(model)).trained
    example = Example("long", str(tmp_path / "long.wav"), 0.0, at, " ".join(texts[:10]))
    (windows,), (whole,) = (list(Aligner(trained, s, 2.0).align([example])) for s in (6.0, 60.0))
    assert isinstance(windows, Alignment)
    assert isinstance(whole, Alignment)
    apart = np.abs([v.start_s - w.start_s for v, w in zip(windows.words, whole.words, strict=True)])
    print(f"words by windows of 6 s and by the whole lie apart {np.quantile(apart, [0.5, 0.9])} s (median, 90 %)")
    assert np.quantile(apart, 0.9) < 0.15
