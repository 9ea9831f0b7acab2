"""Several sources in one training: shares, filters, limits and augmentation of their own, exact over a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.speech import RATE, make_corpus, recipe_dict, tone

from trainer.data.audio import read_audio
from trainer.data.drawn import augmented
from trainer.data.loader import StepLoader
from trainer.data.noise import open_noise
from trainer.data.sets import DataSets, open_data
from trainer.errors import BadData, BadRecipe
from trainer.recipe.augment import Augment
from trainer.recipe.load import changes, parse_recipe
from trainer.task import Draw, make_task


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PODCTL_VOLUME", str(tmp_path))
    (tmp_path / "data").mkdir()
    make_corpus(tmp_path / "data", 20, name="a")
    make_corpus(tmp_path / "data", 10, seed=1, name="b")
    make_corpus(tmp_path / "data", 4, seed=2, name="dev")
    return tmp_path / "data"


def recipe_of(folder: Path, train: list[Any], **data: Any) -> Any:
    section = {**recipe_dict(folder)["data"], "train": train, "dev": ["dev.jsonl"], "test": [], **data}
    return parse_recipe(recipe_dict(folder, data=section, loop={**recipe_dict(folder)["loop"], "step_utts": 5}))


def ids_of(data: DataSets) -> list[str]:
    return list(data.train.column("id"))


def test_plain_names_and_mappings_without_more_are_the_same_training(corpora: Path) -> None:
    plain = recipe_of(corpora, ["a.jsonl", "b.jsonl"])
    mapped = recipe_of(corpora, [{"manifest": "a.jsonl"}, {"manifest": "b.jsonl"}])
    one, other = open_data(plain), open_data(mapped)
    assert ids_of(one) == ids_of(other)
    steps = [
        [[e.id for e in m[0]] for m in StepLoader(make_task(r), d.train, r).micros_of(7)[1]]
        for r, d in ((plain, one), (mapped, other))
    ]
    assert steps[0] == steps[1]


def test_filters_and_limits_choose_and_say_so(corpora: Path, caplog) -> None:
    caplog.set_level("INFO")
    train = [
        {"manifest": "a.jsonl", "where": {"age": "old", "speaker": ["s0", "s1"]}, "max_s": 0.7},
        {"manifest": "b.jsonl", "limit": 3, "min_s": 0.3},
    ]
    data = open_data(recipe_of(corpora, train))
    chosen = [data.train[i] for i in range(len(data.train))]
    a = [e for e in chosen if e.id.startswith("a-")]
    assert a
    assert all(e.bucket("age") == "old" and e.speaker in ("s0", "s1") and e.duration_s <= 0.7 for e in a)
    assert len(chosen) - len(a) == 3
    assert "a.jsonl: " in caplog.text
    assert "of 20 utterances" in caplog.text
    with pytest.raises(BadData, match=r"its filters leave none of 20"):
        open_data(recipe_of(corpora, [{"manifest": "a.jsonl", "where": {"age": "nobody"}}]))


def test_every_source_has_its_share_and_its_augmentation_and_any_step_comes_again(corpora: Path) -> None:
    loud = {"gain_db": 30, "join_p": 1.0}
    recipe = recipe_of(corpora, ["a.jsonl", {"manifest": "b.jsonl", "weight": 2, "augment": loud}])
    data = open_data(recipe)
    loader = StepLoader(make_task(recipe), data.train, recipe)
    seen: list[tuple[str, Draw]] = []
    for step in range(8):  # 40 utterances: an epoch
        epoch, micros = loader.micros_of(step)
        assert epoch == 0
        seen += [(e.id, d) for examples, draws in micros for e, d in zip(examples, draws, strict=True) if d]
    assert sum(i.startswith("a-") for i, _ in seen) == 20
    assert sum(i.startswith("b-") for i, _ in seen) == 20
    for i, draw in seen:
        assert (draw.augment is not None) == i.startswith("b-")
        assert bool(draw.partners) == i.startswith("b-")
    assert len({draw.seed for _, draw in seen}) == 40, "what comes twice is drawn anew"
    again = StepLoader(make_task(recipe), data.train, recipe).micros_of(5)
    assert str(again) == str(loader.micros_of(5))


def test_an_utterance_of_two_sources_is_used_once(corpora: Path) -> None:
    data = open_data(recipe_of(corpora, ["a.jsonl", {"manifest": "a.jsonl", "weight": 3}, "b.jsonl"]))
    assert len(data.train) == 30
    assert sum("two sources" in b.reason for b in data.train.bad) == 20


def test_dev_is_taken_from_the_first_source(corpora: Path) -> None:
    train = [{"manifest": "b.jsonl", "weight": 0.5}, "a.jsonl"]
    data = open_data(recipe_of(corpora, train, dev=[], dev_from_train=4))
    assert len(data.dev) == 4
    assert all(i.startswith("b-") for i in data.dev.column("id"))
    assert [len(p.positions) for p in data.train.parts(recipe_of(corpora, train).data.sources)] == [6, 20]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"manifest": "a.jsonl", "weihgt": 2}, "did you mean weight"),
        ({"manifest": "a.jsonl", "weight": 0}, "greater than 0"),
        ({"weight": 2}, "give either manifest"),
        ({"manifest": "a.jsonl", "min_s": 3, "max_s": 2}, "must be below max_s"),
        (3, "must be a string"),
    ],
)
def test_a_source_that_is_wrong_is_named(corpora: Path, source: Any, says: str) -> None:
    with pytest.raises(BadRecipe, match=says) as caught:
        recipe_of(corpora, ["a.jsonl", source])
    assert "train.data.train.1" in caught.value.message


def test_another_weight_is_another_training(corpora: Path) -> None:
    old = recipe_of(corpora, [{"manifest": "a.jsonl", "weight": 2}])
    assert changes(old, recipe_of(corpora, [{"manifest": "a.jsonl", "weight": 3}]))
    assert not changes(old, old)


# ---- noise


def make_noises(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "noise" / "deep").mkdir(parents=True)
    soundfile.write(folder / "noise" / "a.wav", rng.normal(0, 0.1, RATE), RATE)
    soundfile.write(folder / "noise" / "deep" / "b.flac", rng.normal(0, 0.1, 8000), 8000)
    soundfile.write(folder / "noise" / "half silent.wav", np.r_[np.zeros(RATE), rng.normal(0, 0.1, RATE)], RATE)
    soundfile.write(folder / "noise" / "silent.wav", np.zeros(RATE), RATE)
    (folder / "noise" / "broken.wav").write_text("not audio")
    (folder / "noise" / "README.md").write_text("noise")
    return folder / "noise"


def test_noise_has_the_drawn_level_and_is_a_function_of_the_draw(tmp_path: Path) -> None:
    noise = open_noise(make_noises(tmp_path), tmp_path / "cache")
    speech = tone(["low", "high"])
    how = Augment(noise_snr_db=(5, 10), noise_p=1.0, noise_dir="noise")
    levels = set()
    for seed in range(30):
        noisy = augmented(speech, 1.0, how, np.random.default_rng(seed), noise)
        assert np.array_equal(noisy, augmented(speech, 1.0, how, np.random.default_rng(seed), noise))
        added = noisy - speech
        if not added.any():
            continue  # four silent parts in a row
        snr_db = 10 * np.log10(np.mean(speech**2) / np.mean(added**2))
        assert 4.9 < snr_db < 10.1
        levels.add(round(float(snr_db), 2))
    assert len(levels) > 20


def test_silent_and_broken_noise_is_quarantined_with_its_reason_and_never_drawn(tmp_path: Path) -> None:
    noise = open_noise(make_noises(tmp_path), tmp_path / "cache")
    assert sorted(noise.files) == ["a.wav", "deep/b.flac", "half silent.wav"]
    reasons = {b.id: b.reason for b in noise.bad}
    assert "silent" in reasons["noise:silent.wav"]
    assert "not audio" in reasons["noise:broken.wav"]
    assert open_noise(tmp_path / "noise", tmp_path / "cache").files == noise.files
    (tmp_path / "noise" / "a.wav").unlink()
    changed = open_noise(tmp_path / "noise", tmp_path / "cache")
    assert changed.sha256 != noise.sha256
    with pytest.raises(BadData, match="no noise that can be heard"):
        open_noise(tmp_path / "cache", tmp_path / "cache")
    with pytest.raises(BadData, match="not a folder of noise"):
        open_noise(tmp_path / "gone", tmp_path / "cache")


def test_a_training_with_noise_says_so_and_another_noise_is_other_data(corpora: Path) -> None:
    make_noises(corpora)
    section = {"noise_dir": "noise", "noise_snr_db": [5, 20], "noise_p": 1.0}
    train = recipe_dict(corpora, augment=section)
    train["data"] |= {"train": ["a.jsonl"], "dev": ["dev.jsonl"], "test": []}
    recipe = parse_recipe(train)
    data = open_data(recipe)
    assert set(data.sha256) == {"train", "dev", "test", "noise noise"}
    (item,) = make_task(recipe).load([data.train[0]], [Draw(1)])
    clean = read_audio(data.train[0].audio)
    assert len(item.wave_T) == len(clean)
    assert not np.array_equal(item.wave_T, clean)
    with pytest.raises(BadRecipe, match="noise_dir needs noise_snr_db"):
        parse_recipe(recipe_dict(corpora, augment={"noise_dir": "noise"}))
