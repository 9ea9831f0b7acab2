"""The recipe: every mistake at once, in sentences; what a resume allows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.guide import chapters
from support.speech import ctc_dict, recipe_dict, tdt_dict, write_experiment

from trainer.__main__ import main
from trainer.errors import BadRecipe
from trainer.recipe.load import changes, load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]


def mistakes(train: object) -> list[str]:
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(train)
    return [str(m) for m in caught.value.mistakes]


def test_three_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = mistakes(recipe_dict(tmp_path, optim={"lr": "fast"}, loop={"step_utt": 3}, eval={"every_steps": 0}))
    assert len(found) == 3
    assert any("train.optim.lr" in m and "'fast'" in m for m in found)
    assert any("train.loop.step_utt" in m and "did you mean step_utts?" in m for m in found)
    assert any("train.eval.every_steps" in m for m in found)


def test_what_decides_quality_has_no_default(tmp_path: Path) -> None:
    train = recipe_dict(tmp_path)
    del train["eval"]["normaliser"], train["optim"]["lr"]
    assert {m.split(":")[0] for m in mistakes(train)} == {"train.eval.normaliser", "train.optim.lr"}


def test_the_guide_s_fragments_on_adapters_phases_and_averaging_are_recipes(tmp_path: Path) -> None:
    blocks = chapters((ROOT / "docs" / "guide.md").read_text(encoding="utf-8"))["Adapters, phases, averaging"]
    fragments = [yaml.safe_load(b.text) for b in blocks if b.kind == "yaml"]
    assert {key for f in fragments for key in f} == {"adapters", "optim", "phases", "averaging"}
    whole = {**recipe_dict(tmp_path), "model": {"name": "openai/whisper-tiny.en"}}
    for fragment in fragments:
        parse_recipe({**whole, **fragment})
        whole |= fragment
    file = write_experiment(tmp_path / "a.yaml", whole)
    assert main(["check", str(file)]) == 0


@pytest.mark.parametrize("train", [None, [], "whisper", 3])
def test_a_train_section_of_the_wrong_kind_is_one_sentence(train: object) -> None:
    assert mistakes(train) == ["train: must be a mapping of keys"]


def test_an_unknown_task_names_the_known_ones() -> None:
    assert "whisper" in mistakes({"task": "wisper"})[0]
    assert "whisper" in mistakes({"task": ["a"]})[0]


@pytest.mark.parametrize(
    ("section", "change", "says"),
    [
        ("loop", {"epochs": 3}, "either steps or epochs"),
        ("loop", {"step_s": 3}, "either step_utts or step_s"),
        ("data", {"dev_from_train": 3}, "either dev"),
        ("data", {"min_s": 5}, "must be below max_s"),
        ("data", {"max_s": 3}, "longer than model.from_scratch.window_s"),
        ("adapters", {"r": 4}, "adapters need a trained base"),
        ("model", {"name": "openai/whisper-tiny"}, "either name"),
        ("optim", {"lr": float("nan")}, "finite"),
    ],
)
def test_what_contradicts_itself_is_said(tmp_path: Path, section: str, change: dict, says: str) -> None:
    assert any(says in m for m in mistakes(recipe_dict(tmp_path, **{section: change})))


@pytest.mark.parametrize("make", [ctc_dict, tdt_dict])
def test_the_mistakes_of_a_family_are_told_at_once(tmp_path: Path, make) -> None:
    scratch = {"heads": 0, "subsampling": 3, "channels": "many"}
    found = mistakes(make(tmp_path, model={"from_scratch": scratch, "text": "loud"}, optim={"lr": -1}))
    for where in ("from_scratch.heads", "from_scratch.subsampling", "from_scratch.channels", "model.text", "optim.lr"):
        assert any(f"train.{where}" in m or f"train.model.{where}" in m for m in found), (where, found)


@pytest.mark.parametrize("make", [ctc_dict, tdt_dict])
@pytest.mark.parametrize(
    ("section", "change", "says"),
    [
        ("model", {"name": "facebook/wav2vec2-base"}, "either name"),
        ("model", {"vocabulary": "tokenizer", "letters": None}, "from_scratch has no tokenizer"),
        ("model", {"letters": ["a", "a"]}, "none twice"),
        ("model", {"letters": ["a", " "]}, "no space"),
        ("model", {"letters": ["ab"]}, "single characters"),
        ("loss", {"label_smoothing": 0.1}, "label_smoothing is not for"),
        ("eval", {"decode": {"beams": 4}}, "decode.beams must be 1"),
        ("eval", {"decode": {"window": "full"}}, "no window to fill"),
        ("adapters", {"r": 4}, "adapters need a trained base"),
        ("adapters", {"targets": "decoder"}, "known are all-linear, attention"),
    ],
)
def test_what_contradicts_itself_in_a_family_is_said(
    tmp_path: Path, make, section: str, change: dict, says: str
) -> None:
    assert any(says in m for m in mistakes(make(tmp_path, **{section: change})))


def test_two_contradictions_of_a_family_are_told_together(tmp_path: Path) -> None:
    (found,) = mistakes(ctc_dict(tmp_path, loss={"label_smoothing": 0.1}, eval={"decode": {"beams": 4}}))
    assert "label_smoothing" in found
    assert "beams" in found


def test_durations_are_counted_from_nothing(tmp_path: Path) -> None:
    scratch = tdt_dict(tmp_path)["model"]["from_scratch"]
    for durations in ([1, 2], [0, 2, 4], [0], []):
        found = mistakes(tdt_dict(tmp_path, model={"from_scratch": {**scratch, "durations": durations}}))
        assert any("0, 1, 2, … without a gap" in m for m in found)


def test_letters_are_found_in_transcripts_the_same_in_any_order(tmp_path: Path) -> None:
    recipe = parse_recipe(ctc_dict(tmp_path, model={"letters": None, "text": "basic"}))
    texts = ["Don't  STOP!", "café 你好"]
    found = recipe.resolved(lambda: texts).model.letters
    assert found == sorted(set("dontstopcafé你好"))
    assert recipe.resolved(lambda: reversed(texts)).model.letters == found
    assert recipe.resolved(lambda: texts).resolved(lambda: ["other"]).model.letters == found
    resolved = recipe.resolved(lambda: texts)
    assert parse_recipe(resolved.model_dump(mode="json")) == resolved, "what is kept with a run is a valid recipe"


def test_environment_variables_are_expanded_where_the_data_is_and_only_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CORPUS", "/corpus")
    train = recipe_dict(
        tmp_path, data={"test": ["${CORPUS}/test.jsonl", "${NOT_SET_ANYWHERE}/x", "${NOT_SET_ANYWHERE}/y"]}
    )
    file = write_experiment(tmp_path / "a.yaml", train)
    with pytest.raises(BadRecipe, match="NOT_SET_ANYWHERE is not set") as caught:
        load_recipe(file)
    assert len(caught.value.mistakes) == 1
    assert load_recipe(file, expand=False).data.test[0] == "${CORPUS}/test.jsonl"


def test_a_resume_allows_another_length_and_evaluation_and_nothing_that_changes_the_weights(tmp_path: Path) -> None:
    old = parse_recipe(recipe_dict(tmp_path))
    longer = parse_recipe(recipe_dict(tmp_path, loop={"steps": 99, "keep_last": 5}, eval={"every_steps": 7}))
    assert changes(old, longer) == []
    other = parse_recipe(recipe_dict(tmp_path, optim={"lr": 1e-3}, data={"edge_s": 1.0}))
    assert changes(old, other) == ["data.edge_s: 0.5 → 1.0", "optim.lr: 0.003 → 0.001"]


def test_debugged_is_a_few_steps_on_few_utterances(tmp_path: Path) -> None:
    short = parse_recipe(recipe_dict(tmp_path, loop={"steps": None, "epochs": 50, "step_utts": 256})).debugged()
    assert (short.loop.steps, short.loop.epochs, short.data.limit_train, short.data.limit_dev) == (6, None, 100, 20)
    assert type(short).model_validate(short.model_dump()) == short, "what is debugged is a valid recipe"


def check(*args: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; from trainer.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'transformers', 'trainer.tasks', 'trainer.loop'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-P", "-c", script, "check", *args], capture_output=True, text=True, env=env, timeout=60
    )


def test_check_loads_no_torch_and_says_ok(tmp_path: Path) -> None:
    done = check(str(write_experiment(tmp_path / 'it\'s a "config".yaml', recipe_dict(tmp_path))))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_we_ship_are_right(config: Path) -> None:
    assert check(str(config)).returncode == 0


def test_check_tells_the_exceptions_to_the_laws(tmp_path: Path) -> None:
    live = ctc_dict(tmp_path, model={"batch_statistics": "live"})
    done = check(str(write_experiment(tmp_path / "live.yaml", live)))
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert done.stderr.startswith("exception: model.batch_statistics is live")


def test_check_speaks_json_and_names_what_differs(tmp_path: Path) -> None:
    old = write_experiment(tmp_path / "old.yaml", recipe_dict(tmp_path))
    new = write_experiment(tmp_path / "new.yaml", recipe_dict(tmp_path, optim={"lr": 0.5}))
    done = check(str(new), "--against", str(old), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"mistakes": [], "changes": ["optim.lr: 0.003 → 0.5"], "exceptions": []}


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"train: [", "is not YAML"), (b"\xff\xfe\x00", "not UTF-8"), (b"name: x\n", "missing")],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "new\nline 'quoted'.yaml"
    if content is not None:
        path.write_bytes(content)
    done = check(str(path))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
