"""Data sets of the Hub, streamed: the same steps on any rank and after any resume, sound read where it lies."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.hub import SHA, serving
from support.speech import RATE, make_corpus, recipe_dict, tone, write_experiment

from trainer.data import parquet
from trainer.data.hub import files_of
from trainer.data.loader import StepLoader
from trainer.data.sets import open_data
from trainer.errors import BadData, TrainerError
from trainer.recipe.load import parse_recipe
from trainer.recipe.source import Source
from trainer.task import Draw, make_task

ROOT = Path(__file__).parents[2]


def encoded(words: list[str], seed: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(words, seed), RATE, format="FLAC")
    return out.getvalue()


def make_set(folder: Path, files: int = 2, rows: int = 12, **columns: Any) -> Path:
    """A set in the Hub's layout: `files` files of `rows` rows in row groups of four."""
    (folder / "data").mkdir(parents=True)
    for f in range(files):
        words = [["low", "mid", "high"][: 1 + r % 3] for r in range(rows)]
        table = pa.table(
            {
                "audio": [{"bytes": encoded(w, f * 100 + r), "path": f"{r}.flac"} for r, w in enumerate(words)],
                "sentence": [" ".join(w) for w in words],
                "secs": [0.2 * len(w) for w in words],
                **{name: [value] * rows for name, value in columns.items()},
            }
        )
        pq.write_table(table, folder / "data" / f"train-{f:05}-of-{files:05}.parquet", row_group_size=4)
    return folder


@pytest.fixture
def volume(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PODCTL_VOLUME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "data").mkdir()
    make_corpus(tmp_path / "data", 4, name="dev")
    return tmp_path / "data"


def recipe_of(volume: Path, *train: Any, **loop: Any) -> Any:
    data = {**recipe_dict(volume)["data"], "train": list(train), "dev": ["dev.jsonl"], "test": [], "shuffle_groups": 2}
    loop = {**recipe_dict(volume)["loop"], "step_utts": 5, "steps": 20, **loop}
    return parse_recipe(recipe_dict(volume, data=data, loop=loop))


def streamed(folder: Path, **more: Any) -> dict[str, Any]:
    return {"hub": str(folder), "columns": {"duration_s": "secs"}, **more}


def ids(micros: Any) -> list[str]:
    return [e.id for examples, _ in micros[1] for e in examples]


def test_every_row_comes_once_an_epoch_and_any_step_comes_again_on_any_rank(volume: Path) -> None:
    recipe = recipe_of(volume, streamed(make_set(volume / "set")))
    data, task = open_data(recipe), make_task(recipe)
    loader = StepLoader(task, data.train, recipe)
    assert len(data.train) == 24
    assert sorted(i for s in range(5) for i in ids(loader.micros_of(s))) == sorted(data.train.column("id"))
    for step in (0, 7, 13):
        again = StepLoader(task, open_data(recipe).train, recipe)
        assert str(again.micros_of(step)) == str(loader.micros_of(step))
        ranks = [ids(StepLoader(task, data.train, recipe, rank, 2).micros_of(step)) for rank in (0, 1)]
        assert sorted([*ranks[0], *ranks[1]]) == sorted(ids(loader.micros_of(step)))
    (item,) = task.load([data.train[5]], [Draw(1)])
    assert len(item.wave_T) == round(data.train[5].duration_s * RATE)
    assert (data.train[5].text, data.train[5].duration_s) == ("low mid high", pytest.approx(0.6))


def test_few_row_groups_are_read_at_a_time(volume: Path, monkeypatch) -> None:
    recipe = recipe_of(volume, streamed(make_set(volume / "set", files=3)), step_utts=4)
    data, task = open_data(recipe), make_task(recipe)
    read: list[str] = []
    real = pq.ParquetFile.read_row_group

    def counted(self: Any, i: int, *args: Any, **kwargs: Any) -> Any:
        read.append(f"{i}")
        return real(self, i, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    loader = StepLoader(task, data.train, recipe)
    for step in loader.steps(0, 9):  # an epoch: 36 rows in 9 groups
        assert not step.bad
    assert len(read) == 9, "each group is read once, though its rows are shuffled"


def test_a_set_beside_a_manifest_has_its_share_and_filters(volume: Path) -> None:
    make_corpus(volume, 10, name="own")
    hub = streamed(make_set(volume / "set", age="four"), weight=0.5, min_s=0.3, where={"age": "four"})
    recipe = recipe_of(volume, "own.jsonl", hub)
    data = open_data(recipe)
    assert len(data.train) == 10 + 16
    loader = StepLoader(make_task(recipe), data.train, recipe)
    assert sorted(i.startswith("own-") for s in range(4) for i in ids(loader.micros_of(s))).count(False) == 8


def test_lengths_that_no_column_says_are_looked_up(volume: Path) -> None:
    data = open_data(recipe_of(volume, {"hub": str(make_set(volume / "set"))}))
    assert data.train[2].duration_s == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"hub": "SET", "split": "dev"}, "has no split 'dev'"),
        ({"hub": "SET", "columns": {"text": "nothing"}}, "no column with the text"),
        ({"hub": "NOWHERE"}, "can't be opened"),
        ({"hub": "CSV"}, "not made of Parquet files"),
    ],
)
def test_a_set_that_can_not_be_streamed_is_one_sentence(volume: Path, source: dict, says: str) -> None:
    make_set(volume / "set")
    (volume / "csv").mkdir()
    (volume / "csv" / "train.csv").write_text("a,b\n1,2\n")
    places = {"SET": volume / "set", "NOWHERE": volume / "nowhere", "CSV": volume / "csv"}
    with pytest.raises(BadData, match=says):
        open_data(recipe_of(volume, {**source, "hub": str(places[source["hub"]])}))


def test_a_network_that_comes_back_costs_time_and_one_that_does_not_ends_the_run(monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(parquet, "_wait", waited.append)
    answers = iter([ConnectionError("reset"), TimeoutError("late"), "sound"])

    def read() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert parquet._patient(read, "hf://datasets/a/b@c/d.parquet") == "sound"
    assert waited == [1.0, 2.0]
    answers = iter([ConnectionError("reset")] * 9)
    with pytest.raises(TrainerError, match=r"d\.parquet can't be read: reset") as caught:
        parquet._patient(read, "hf://datasets/a/b@c/d.parquet")
    assert "it resumes" in caught.value.hint
    with pytest.raises(FileNotFoundError):
        parquet._patient(lambda: open("/nowhere"), "hf://datasets/a/b@c/d.parquet")  # noqa: SIM115


FILES = """
import json, sys
from trainer.data.hub import files_of
from trainer.recipe.source import Source
print(json.dumps(files_of(Source(hub="somebody/speech"))))
"""


@pytest.mark.slow
def test_a_training_streams_from_a_hub_on_this_machine_and_a_resume_asks_for_no_index(tmp_path: Path) -> None:
    make_corpus(tmp_path / "volume" / "data", 4, name="dev")
    make_set(tmp_path / "hub")
    with serving("somebody/speech", tmp_path / "hub") as hub:
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "PODCTL_VOLUME": str(tmp_path / "volume"),
        }
        env |= {"PODCTL_DISK": str(tmp_path / "disk"), "PYTHONPATH": str(ROOT)}
        asked = subprocess.run(
            [sys.executable, "-c", FILES], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert all(SHA in file for file in json.loads(asked.stdout)), "an address names its commit"

        def run(steps: int) -> str:
            data = {**recipe_dict(tmp_path)["data"], "dev": ["dev.jsonl"], "test": [], "shuffle_groups": 2}
            data["train"] = [{"hub": "somebody/speech", "columns": {"duration_s": "secs"}}]
            loop = {**recipe_dict(tmp_path)["loop"], "steps": steps, "save_every_steps": 3}
            train = recipe_dict(tmp_path, data=data, loop=loop)
            file = write_experiment(tmp_path / "e.yaml", train)
            argv = [sys.executable, "-m", "trainer", "train", str(file), "--run-dir", str(tmp_path / "volume" / "run")]
            done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        hub.silent = 1
        said = run(3)
        assert "train: 24 utterances" in said
        assert "0 unusable" in said
        index_files = list((tmp_path / "volume" / "cache" / "manifests").glob("*.arrow"))
        stamps = [f.stat().st_mtime_ns for f in index_files]
        assert "resumed from step 3" in run(6)
        assert [f.stat().st_mtime_ns for f in index_files] == stamps
    assert not (tmp_path / "volume" / "run" / "quarantine.jsonl").exists()


def test_a_hub_s_files_are_asked_of_the_library(volume: Path) -> None:
    files = files_of(Source(hub=str(make_set(volume / "set"))))
    assert [Path(f).name for f in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
