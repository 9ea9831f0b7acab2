"""What is longer than a model hears at once is cut where it is quiet, and comes back as one."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech import RATE, ctc_dict, make_corpus, tone, write_manifest
from support.tones import ToneTask, heard, parts

from trainer.apply import _manifest
from trainer.data.long import EARLIEST, cut_quietly, heard_whole
from trainer.data.sets import open_data
from trainer.evaluate import evaluate, predict
from trainer.machine import Machine
from trainer.recipe.load import parse_recipe

SECONDS = 70.0


def sentence(rng: np.random.Generator, seconds: float) -> tuple[np.ndarray, list[str]]:
    """Four words, a pause, four words, …: float32 (T,) of about so long, and the words."""
    parts_T, words = [], []
    while sum(map(len, parts_T)) < seconds * RATE:
        said = [str(w) for w in rng.choice(["low", "mid", "high"], size=4)]
        quiet_T = rng.normal(0, 0.001, round(rng.uniform(0.5, 0.9) * RATE)).astype(np.float32)
        parts_T += [tone(said, seed=int(rng.integers(1 << 30))), quiet_T]
        words += said
    return np.concatenate(parts_T), words


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five short recordings, three long ones among them, one of these with half a minute of dead microphone."""
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(0)
    for name in ("train", "dev"):
        make_corpus(folder, 5, seed=3, name=name)
    rows = []
    for n, seconds in enumerate([2, SECONDS, 3, 35, 4, 50]):
        wave_T, words = sentence(rng, seconds)
        if n == 5:
            middle = [wave_T[: 9 * RATE], np.zeros(30 * RATE, np.float32), wave_T[9 * RATE :]]
            wave_T = np.concatenate(middle)
        soundfile.write(folder / f"u{n}.wav", wave_T, RATE)
        rows.append({"id": f"u{n}", "audio": f"u{n}.wav", "duration_s": len(wave_T) / RATE, "text": " ".join(words)})
    write_manifest(folder / "test.jsonl", rows)
    return folder


def recipe_of(corpus: Path, long: str = "cut", **data: Any) -> Any:
    sections = {"data": {"max_s": 12, "max_bad_share": 1.0, **data}, "eval": {"decode": {"long": long}, "bootstrap": 0}}
    return parse_recipe(ctc_dict(corpus, **sections))


def test_seventy_seconds_are_cut_in_pauses_and_no_sample_is_lost() -> None:
    wave_T, words = sentence(np.random.default_rng(1), SECONDS)
    spans = cut_quietly(wave_T, 30.0)
    assert (spans[0].first, spans[-1].end) == (0, len(wave_T))
    for a, b in pairwise(spans):
        assert a.end == b.first
        assert 0.6 * 30 <= (a.end - a.first) / RATE <= 30
        assert np.abs(wave_T[a.end - 800 : a.end + 800]).max() < 0.01, "in a pause, 50 ms to each side"
    pieces = [heard(wave_T[s.first : s.end]) for s in spans]
    assert len(pieces) == 3
    assert " ".join(pieces).split() == words


@given(
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 1)), min_size=1, max_size=12),
    st.floats(0.3, 4),
)
@settings(max_examples=60, deadline=None)
def test_whatever_it_holds_pieces_are_all_of_it_and_none_too_long(
    stretches: list[tuple[float, float]], max_s: float
) -> None:
    rng = np.random.default_rng(0)
    wave_T = np.concatenate([rng.normal(0, a, int(s * RATE)).astype(np.float32) for s, a in stretches])
    spans = cut_quietly(wave_T, max_s)
    assert [s.first for s in spans] + [len(wave_T)] == [0, *(s.end for s in spans)]
    for s in spans:
        assert s.end - s.first <= max_s * RATE
        assert s.is_silent == bool(np.abs(wave_T[s.first : s.end]).max() < 1e-4)
    for s in spans[:-1]:
        assert s.end - s.first >= EARLIEST * max_s * RATE - 2 * 160


def test_a_long_recording_is_one_row_with_all_of_its_words(corpus: Path) -> None:
    recipe = recipe_of(corpus)
    task = ToneTask(recipe)
    manifest = open_data(recipe).test
    assert manifest is not None
    result = evaluate(task, parts(), manifest, recipe, Machine(torch.device("cpu"), "fp32"))
    assert [r["id"] for r in result.rows] == [f"u{n}" for n in range(6)]
    pieces = [r.get("pieces") for r in result.rows]
    assert [pieces[n] for n in (0, 2, 4)] == [None] * 3
    assert [pieces[n] in range(least, most) for n, least, most in ((1, 6, 11), (3, 3, 6), (5, 7, 14))] == [True] * 3
    assert result.bad == []
    assert max(task.lengths_s) <= 12
    assert result.report.metrics["wer"] == 0
    assert result.rows[1]["duration_s"] == pytest.approx(SECONDS, abs=3), "its whole length"


def test_a_stretch_of_silence_is_no_reason_and_a_file_that_breaks_off_is(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus)
    whole = (corpus / "u1.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(tmp_path / "dead.wav", np.zeros(40 * RATE), RATE)
    rows = [
        {"id": "cut", "audio": "cut.wav", "duration_s": SECONDS, "text": "x"},
        {"id": "dead", "audio": "dead.wav", "duration_s": 40.0, "text": "x"},
        {"id": "good", "audio": str(corpus / "u5.wav"), "text": "x"},
    ]
    path = write_manifest(tmp_path / "some.jsonl", rows)
    manifest = _manifest([str(path)], recipe, need_text=False)
    said, bad = predict(ToneTask(recipe), parts(), manifest, recipe, Machine(torch.device("cpu"), "fp32"))
    assert [r["id"] for r in said] == ["cut", "dead", "good"]
    assert {b.id for b in bad} == {"cut", "dead"}
    assert "ends at" in said[0]["reason"]
    assert said[1]["reason"].endswith("is silent")
    assert len(said[2]["text"].split()) > 50
    assert "reason" not in said[2]


def test_refused_they_are_unusable_as_before(corpus: Path) -> None:
    recipe = recipe_of(corpus, "refuse")
    test = open_data(recipe).test
    assert test is not None
    assert [b.id for b in test.bad] == ["u1", "u3", "u5"]
    assert "longer than data.max_s" in test.bad[0].reason


def test_training_sets_never_hold_them(corpus: Path) -> None:
    recipe = recipe_of(corpus, train=[str(corpus / "test.jsonl")], dev=[str(corpus / "dev.jsonl")])
    assert len(open_data(recipe).train) == 3
    assert heard_whole(recipe).max_s == float("inf")
    assert recipe.data.max_s == 12


@dataclass(frozen=True)
class Both(Machine):
    """One of two ranks in threads of one process: what they say to each other meets at a barrier."""

    meet: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    table: dict[int, Any] = field(default_factory=dict)

    def gathered(self, values: list[Any]) -> list[Any]:
        self.table[self.rank] = values
        self.meet.wait(60)
        found = [*self.table[0], *self.table[1]]
        self.meet.wait(60)
        return found

    def summed(self, values: list[int]) -> list[int]:
        pairs: Sequence[Any] = self.gathered([values])
        return [sum(p) for p in zip(*pairs, strict=True)]


def test_two_ranks_say_what_one_says(corpus: Path) -> None:
    recipe = recipe_of(corpus)
    test = open_data(recipe).test
    assert test is not None
    alone = predict(ToneTask(recipe), parts(), test, recipe, Machine(torch.device("cpu"), "fp32"))
    first = Both(torch.device("cpu"), "fp32", 0, 2)
    ranks = [first, Both(torch.device("cpu"), "fp32", 1, 2, meet=first.meet, table=first.table)]
    said: dict[int, Any] = {}
    tasks = [ToneTask(recipe), ToneTask(recipe)]

    def run(rank: int) -> None:
        said[rank] = predict(tasks[rank], parts(), test, recipe, ranks[rank])

    threads = [threading.Thread(target=run, args=(r,)) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert said[0] == said[1] == alone
    assert all(task.lengths_s for task in tasks), "both had something to do"
