"""Which model is meant: a run's best as the run left it, that again from its checkpoints, or a folder."""

from pathlib import Path

from remote.files import read_json
from remote.rundir import RunDir
from trainer.average import INDEX, WHOLE, Model, whole_model
from trainer.checkpoint import complete_checkpoints
from trainer.chosen import chosen
from trainer.errors import BadData
from trainer.recipe.load import parse_recipe

MADE = ("config.json", "recipe.json", "provenance.json")  # beside the weights, of an export


def source_model(run: Path | None, model: Path | None, room: Path) -> Model:
    """The model to hand on, whole: adapters merged, several checkpoints averaged where the recipe says so.

    A run's own export is taken where it is what its checkpoints would make now; otherwise one is made in `room`. Raises
    BadData.
    """
    if run is None:
        assert model is not None
        return whole_model(model, room)
    left = RunDir(run.absolute())
    if is_whole(left.export) and _is_newest(left):
        return Model(left.root.name, left.export, read_json(left.export / "provenance.json") or {})
    return whole_model(run, room)


def is_whole(folder: Path) -> bool:
    """Whether it holds a model with all that an export has, every file of its weights included."""
    return not missing_in(folder)


def missing_in(folder: Path) -> list[str]:
    """Files that an export has and this folder lacks."""
    index = read_json(folder / INDEX)
    weights = sorted(set(index["weight_map"].values())) if index else [WHOLE]
    return [name for name in (*MADE, *weights) if not (folder / name).is_file()]


def check_is_whisper(run: Path | None, model: Path | None) -> None:
    """Raises BadData where the model is of a family that CTranslate2 is not asked for."""
    what = ""
    if run is not None:
        found = complete_checkpoints(RunDir(run).checkpoints)
        raw = read_json(found[-1].state / "state.json")["recipe"] if found else read_json(run / "export/recipe.json")
        what = (raw or {}).get("task", "")
    elif model is not None:
        what = (read_json(model / "config.json") or {}).get("model_type", "")
    if what and what != "whisper":
        raise BadData(
            f"{run or model} is a model of kind {what}, and --format ct2 is for Whisper alone",
            "trainer export --format hf: transformers loads it as it is",
        )


def _is_newest(run: RunDir) -> bool:
    """Whether the export holds what would be chosen now; without checkpoints it is all that there is."""
    found = complete_checkpoints(run.checkpoints)
    if not any(c.metrics for c in found):
        return True
    recipe = parse_recipe(read_json(found[-1].state / "state.json")["recipe"])
    made_of = (read_json(run.export / "provenance.json") or {}).get("step")
    return bool(chosen(found, recipe)[0].step == made_of)
