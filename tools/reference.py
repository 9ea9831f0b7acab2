"""Writes docs/reference from the code: a page a command, the experiment file's keys, and a JSON Schema for editors.

usage: reference.py [--check]. With --check nothing is written; exit code 1 names the pages that are stale.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from podctl import cli, errors
from podctl.experiment import ExperimentFile
from trainer.recipe.load import RECIPES, recipe_class

ROOT = Path(__file__).resolve().parents[1]
TARGET = Path("docs/reference")
SCHEMA_NAME = "experiment.schema.json"
FOLLOWS = ("train", "attach", "logs", "stop", "evaluate", "predict")  # commands that end as the run does
HAND = "<!-- made by `make docs` from the code: change it there -->\n\n"

# What the file's reader takes beside the type that it keeps: one word for a list of one, a name for a machine.
ALSO_TEXT = {"pod": ("gpu", "data_centers", "secrets", "ssh")}

Schema = dict[str, Any]


def main(argv: list[str]) -> int:
    pages = {ROOT / TARGET / name: text for name, text in make_pages().items()}
    there = set((ROOT / TARGET).rglob("*.md")) | set((ROOT / TARGET).rglob("*.json"))
    stale = sorted({p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text})
    surplus = sorted(there - set(pages))
    if "--check" in argv:
        for path in [*stale, *surplus]:
            print(f"{path.relative_to(ROOT)} is stale: make docs", file=sys.stderr)
        return 1 if stale or surplus else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages[path], encoding="utf-8")
    for path in surplus:
        path.unlink()
    print(f"{TARGET}: {len(pages)} pages, {len(stale)} written, {len(surplus)} removed")
    return 0


def make_pages() -> dict[str, str]:
    """Every page by its name under docs/reference."""
    commands = dict(sorted(_commands()))
    pages = {f"commands/{name}.md": command_page(name, command) for name, command in commands.items()}
    pages["commands/README.md"] = commands_page(commands)
    pages["experiment.md"] = experiment_page()
    pages[SCHEMA_NAME] = json.dumps(experiment_schema(), indent=1, ensure_ascii=False) + "\n"
    return pages


# commands


def _commands() -> Iterator[tuple[str, Any]]:
    group: Any = typer.main.get_command(cli._app())
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from ((f"{name} {sub}", c) for sub, c in command.commands.items() if not c.hidden)
        else:
            yield name, command


def commands_page(commands: Mapping[str, Any]) -> str:
    rows = [f"| [`podctl {name}`]({name}.md) | {_cell(_first_line(c))} |" for name, c in commands.items()]
    codes = [f"| {code} | {_cell(text)} |" for code, text in exit_codes().items()]
    return (
        f"# Commands\n\n{HAND}"
        "`podctl --help` and `podctl COMMAND --help` say the same in a terminal. Where a RUN is taken, it is its id,\n"
        "the beginning of it, or the experiment's name; without one they mean the newest run of the project around\n"
        "you.\n\n"
        "| command | |\n|---|---|\n" + "\n".join(rows) + "\n\n"
        "## Output\n\n"
        "Data goes to standard output, talk to standard error. `--json` prints objects, one a line; of a command that\n"
        "follows a run, the last is its receipt. Without a terminal nothing is asked: say `--yes`.\n\n"
        "## Exit codes\n\n| code | means |\n|---|---|\n" + "\n".join(codes) + "\n"
    )


def command_page(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    words = ["$ podctl", name, *(f"{_flag(p)} {_metavar(p)}" for p in options if p.required)]
    words += [_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments]
    if any(not p.required for p in options):
        words.append("[OPTION …]")
    text = f"# podctl {name}\n\n{HAND}{_help(command)}\n\n```console\n{' '.join(words)}\n```\n"
    rows = [f"| `{_metavar(p)}` | {_meaning(p)} |" for p in arguments]
    rows += [f"| {_option(p)} | {_meaning(p)} |" for p in options]
    if rows:
        text += "\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"
    examples = _examples(command.epilog or "")
    if examples:
        text += "\n## Examples\n\n```console\n" + "\n".join(f"$ {e}" for e in examples) + "\n```\n"
    ends = "0, or [what went wrong](README.md#exit-codes)"
    if name in FOLLOWS:
        ends = "as the run's: 0 done or left, 1 failed, 7 a limit ended it, 75 saved and resumable; or " + (
            "[what went wrong](README.md#exit-codes)"
        )
    return text + f"\n**Exit code**: {ends}.\n"


def exit_codes() -> dict[int, str]:
    """Code → meaning, as the tree of errors draws it."""
    found = {0: "done, or left: the run goes on"}
    tree = errors.__doc__ or ""
    for line in tree.splitlines():
        match = re.match(r"\W*([A-Z]\w+) +(\d+) +(.+)$", line)
        if match:
            code = int(match[2])
            kind = re.sub(r"(?<!^)([A-Z])", r" \1", match[1]).lower()
            text = match[3] if kind == "podctl error" else f"{kind}: {match[3]}"
            found[code] = f"{found[code]}; {text}" if code in found else text
    return dict(sorted(found.items()))


def _flag(option: Any) -> str:
    return str(max(option.opts, key=len))


def _metavar(param: Any) -> str:
    """What stands for the value; "" for a flag."""
    if getattr(param, "is_flag", False):
        return ""
    name = str(param.metavar or (param.name if param.param_type_name == "argument" else param.type.name)).strip("[]")
    return name.upper() + (" …" if param.nargs == -1 else "")


def _option(option: Any) -> str:
    names = [*sorted(option.opts, key=len), *option.secondary_opts]
    value = _metavar(option)
    return ", ".join(f"`{n}`" for n in names) + (f" `{value}`" if value else "")


def _meaning(param: Any) -> str:
    text = _cell(getattr(param, "help", None) or "")
    if param.required:
        text += " Required."
    default = param.default
    shown = getattr(param, "show_default", True) is not False
    if shown and not getattr(param, "is_flag", False) and default not in (None, "", ()) and not callable(default):
        text += f" Default: `{default}`."
    return text.strip()


def _help(command: Any) -> str:
    return "\n".join(line.strip() for line in (command.help or "").replace("\b\n", "").strip().splitlines())


def _first_line(command: Any) -> str:
    return _help(command).split("\n\n")[0].replace("\n", " ")


def _examples(epilog: str) -> list[str]:
    return [line.strip() for line in epilog.splitlines() if line.startswith("  ")]


# the experiment file


def experiment_schema() -> Schema:
    """What an editor checks an experiment file against: as strict about keys as podctl and the trainer are."""
    schema = ExperimentFile.model_json_schema(ref_template="#/$defs/{model}")
    defs: Schema = schema.pop("$defs", {})
    for section, names in ALSO_TEXT.items():
        model = schema["properties"][section]["$ref"].rpartition("/")[2]
        for name in names:
            old = defs[model]["properties"][name]
            kept = {k: old.pop(k) for k in ("description", "default") if k in old}
            branches = old.get("anyOf", [old])
            defs[model]["properties"][name] = {"anyOf": [{"type": "string"}, *branches], **kept}
    defs["PodSection"]["properties"]["env"]["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    choices = []
    for task in RECIPES:
        cls = recipe_class(task)
        recipe = cls.model_json_schema(ref_template="#/$defs/{model}")
        for name, part in recipe.pop("$defs", {}).items():
            assert defs.get(name, part) == part, f"two models are called {name}"
            defs[name] = part
        defs[cls.__name__] = recipe
        condition = {"properties": {"task": {"const": task}}, "required": ["task"]}
        choices.append({"if": condition, "then": {"$ref": f"#/$defs/{cls.__name__}"}})
    train = {"type": "object", "properties": {"task": {"enum": list(RECIPES)}}, "required": ["task"], "allOf": choices}
    schema["properties"]["train"] = {"description": "what is trained, and how: trainer check FILE reads it", **train}
    schema["$defs"] = dict(sorted(defs.items()))
    bare: Schema = _bare(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An experiment of podctl",
        **bare,
    }


def _bare(value: Any, at: str = "") -> Any:
    """Without the titles that pydantic makes out of names."""
    if isinstance(value, list):
        return [_bare(v) for v in value]
    if not isinstance(value, dict):
        return value
    named = at in ("properties", "$defs")  # there a `title` would be a key of somebody's
    return {k: _bare(v, k) for k, v in value.items() if named or k != "title"}


def experiment_page() -> str:
    text = (
        f"# The experiment file\n\n{HAND}"
        "One YAML file says what is trained and what machine it may cost. It is read alone, every mistake is named\n"
        "at once (`podctl train --dry-run`, `trainer check FILE`), and the resolved file is saved with the run. A key\n"
        "that is not here is a mistake. `--set pod.max_hours=2 --set train.optim.lr=3e-4` changes keys for one run.\n\n"
        "An editor with a YAML language server completes and checks it, with this as the file's first line:\n\n"
        f"```yaml\n# yaml-language-server: $schema=PATH_OR_URL/docs/reference/{SCHEMA_NAME}\n```\n"
    )
    done: set[type[BaseModel]] = set()
    text += "".join(_sections("", ExperimentFile, done, opaque=("train",)))
    for task in RECIPES:
        cls = recipe_class(task)
        text += f"\n## train: task `{task}`\n\n{_doc(cls)}\n"
        text += "".join(_sections("train", cls, done, heading=False))
    return text


def _sections(
    at: str, model: type[BaseModel], done: set[type[BaseModel]], *, heading: bool = True, opaque: tuple[str, ...] = ()
) -> Iterator[str]:
    """A table a model, and those of the models within it, after it."""
    if model in done:
        return
    done.add(model)
    if heading:
        yield f"\n## {at or 'The whole'}\n\n{_doc(model)}\n"
    schema = model.model_json_schema(ref_template="#/$defs/{model}")
    defs = schema.get("$defs", {})
    also = ALSO_TEXT.get(at, ())
    yield "\n| key | type | default | |\n|---|---|---|---|\n"
    for name, part in schema["properties"].items():
        what = _type(part, defs) + (", or text" if name in also else "")
        models = _models_in(model.model_fields[name].annotation)
        meaning = part.get("description") or (_doc(models[0]) if models else "")
        if name in opaque:
            what = "mapping"
        default = "**required**" if name in schema.get("required", ()) else _default(part)
        yield f"| `{at}{'.' * bool(at)}{name}` | {_cell(what)} | {_cell(default)} | {_cell(meaning)} |\n"
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            yield from _sections(f"{at}{'.' * bool(at)}{name}", inner, done)


def _type(part: Schema, defs: Schema) -> str:
    """`number > 0`, `list of text`, `own or full`: types and limits for a person."""
    if "$ref" in part:
        target = defs[part["$ref"].rpartition("/")[2]]
        return "mapping" if target.get("type") == "object" else _type(target, defs)
    if "anyOf" in part or "oneOf" in part:
        kinds = [_type(p, defs) for p in part.get("anyOf") or part["oneOf"] if p.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return " or ".join(f"`{v}`" for v in part["enum"])
    kind = part.get("type", "any")
    if kind == "array" and "prefixItems" in part:
        return f"list of {len(part['prefixItems'])} {_plural(_type(part['prefixItems'][0], defs))}"
    if kind == "array":
        least = ", not empty" if part.get("minItems") else ""
        return f"list of {_plural(_type(part.get('items', {}), defs))}{least}{_at_most(part, 'maxItems')}"
    if kind == "object":
        inner = part.get("additionalProperties")
        return f"mapping of names to {_plural(_type(inner, defs))}" if isinstance(inner, dict) and inner else "mapping"
    word = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}.get(kind, kind)
    return word + _limits(part)


def _plural(word: str) -> str:
    kind, space, limits = word.partition(" ") if word.startswith("number ") else (word, "", "")
    more = {"number": "numbers", "mapping": "mappings", "whole number": "whole numbers"}
    return more.get(kind, kind) + space + limits


def _at_most(part: Schema, key: str) -> str:
    return f", at most {part[key]}" if key in part else ""


def _limits(part: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {_number(part[key])}" for key, sign in signs.items() if key in part]
    if "multipleOf" in part:
        found.append(f"a multiple of {part['multipleOf']}")
    return " " + ", ".join(found) if found else ""


def _number(value: float) -> str:
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:g}"


def _default(part: Schema) -> str:
    value = part.get("default")
    if value is None:
        return "none" if "default" in part else "empty"
    if value == [] or value == {} or value == "":
        return "empty"
    if isinstance(value, dict):
        return "as below"
    return f"`{json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}`"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def _doc(model: type[BaseModel]) -> str:
    own = model.__dict__.get("__doc__") or ""
    return " ".join(own.split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
