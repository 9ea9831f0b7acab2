"""The reference pages say what the code says, and the schema that editors use is as strict as the code."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from podctl.experiment import ExperimentFile, read_experiment
from trainer.recipe.load import RECIPES, recipe_class

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "reference.py"
REFERENCE = ROOT / "docs" / "reference"


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("reference_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()
VALIDATOR = jsonschema.Draft202012Validator(json.loads((REFERENCE / tool.SCHEMA_NAME).read_text(encoding="utf-8")))


def demo(**changes: Any) -> dict[str, Any]:
    """configs/demo.yaml with some dotted keys changed."""
    document = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        at = document
        for name in path:
            at = at[name]
        at[last] = value
    return document


def test_the_pages_are_what_the_code_says_now() -> None:
    stale = [name for name, text in tool.make_pages().items() if (REFERENCE / name).read_text(encoding="utf-8") != text]
    assert stale == [], "make docs"


def test_a_stale_page_and_one_too_many_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.ROOT = tmp_path
    try:
        assert tool.main([]) == 0
        assert tool.main(["--check"]) == 0
        pages = tmp_path / "docs" / "reference"
        (pages / "experiment.md").write_text("old")
        (pages / "commands" / "gone.md").write_text("old")
        assert tool.main(["--check"]) == 1
        told = capsys.readouterr().err
        assert "docs/reference/experiment.md is stale" in told
        assert "docs/reference/commands/gone.md is stale" in told
        tool.main([])
        assert tool.main(["--check"]) == 0
        assert not (pages / "commands" / "gone.md").exists()
    finally:
        tool.ROOT = ROOT


def test_the_pages_do_not_depend_on_who_makes_them(tmp_path: Path) -> None:
    """Another process, another hash seed, another folder, another width of the terminal."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import reference, json; print(json.dumps(reference.make_pages()))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code, str(TOOL.parent), str(ROOT)],
            env={"PYTHONHASHSEED": seed, "COLUMNS": width, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            cwd=tmp_path,
            check=True,
            capture_output=True,
        ).stdout
        for seed, width in (("1", "40"), ("2", "200"))
    ]
    assert printed[0] == printed[1]
    assert json.loads(printed[0]) == tool.make_pages()


def test_every_key_has_a_description() -> None:
    bare = sorted({f"{model.__name__}.{name}" for model in all_models() for name in without_description(model)})
    assert bare == []


def all_models() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    todo = [ExperimentFile, *(recipe_class(task) for task in RECIPES)]
    while todo:
        model = todo.pop()
        if model not in found:
            found.append(model)
            todo += [m for f in model.model_fields.values() for m in tool._models_in(f.annotation)]
    return found


def without_description(model: type[BaseModel]) -> list[str]:
    fields = model.model_fields.items()
    return [n for n, f in fields if not f.description and not any(map(tool._doc, tool._models_in(f.annotation)))]


def test_every_command_is_listed_and_has_a_page() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "podctl", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    table = listed.stdout.partition("Commands:")[2].partition("\n\n")[0]
    names = [line.split()[0] for line in table.splitlines() if line.startswith("  ") and line[2:3].strip()]
    assert len(names) >= 8
    for name in names:
        pages = list((REFERENCE / "commands").glob(f"{name}*.md"))
        assert pages, name
    assert set(tool.FOLLOWS) <= set(names)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_schema_accepts_every_experiment_that_we_ship(path: Path) -> None:
    assert [e.message for e in VALIDATOR.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize(
    "change",
    [
        {"nmae": "x"},
        {"pod__max_huors": 1},
        {"pod__ssh": {"host": "gpubox", "prot": 22}},
        {"train__optim": {"lr": 1e-3, "weight_deacy": 0.1}},
        {"train__eval": {"normaliser": "basic", "every_steps": 5, "decode": {"beam": 2}}},
        {"prep": [{"run": "true", "output": ["x"]}]},
        {"train__task": "wisper"},
        {"pod__max_hours": 0},
        {"pod__max_hours": "soon"},
        {"train__loop": {"steps": 0, "step_utts": 4}},
        {"train__eval": {"normaliser": "mine", "every_steps": 5}},
        {"train__data": {"train": []}},
        {"name": "Not A Name"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_the_schema_refuses_what_podctl_or_the_trainer_would(change: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(demo())
    assert not VALIDATOR.is_valid(demo(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"pod__gpu": "H100"},
        {"pod__gpu": ["H100", "A100"]},
        {"pod__secrets": "HF_TOKEN"},
        {"pod__ssh": "gpubox"},
        {"pod__ssh": {"host": "gpubox", "port": 2222, "key": None}},
        {"pod__env": {"N": 4, "ON": True, "NAME": "x"}},
        {"pod__command": "python a.py"},
        {"pod__command": ["python", "a.py"]},
        {"pod__on_success": "stop"},
        {"pod__on_success": {"hold": "30m"}},
        {"train__augment": {"noise_snr_db": [5, 20]}},
    ],
    ids=lambda c: f"{next(iter(c))}-{type(next(iter(c.values()))).__name__}",
)
def test_every_way_to_write_a_key_that_podctl_takes_is_right_in_an_editor(tmp_path: Path, change: dict) -> None:
    document = demo(**change)
    assert [e.message for e in VALIDATOR.iter_errors(document)] == []
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(document))
    experiment, _, mistakes = read_experiment(path)
    assert mistakes == []
    assert experiment is not None


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(VALIDATOR.schema)
    assert "title" not in json.dumps(VALIDATOR.schema["$defs"])
