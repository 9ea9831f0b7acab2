"""YAML as podctl reads it: 3e-5 is a number, a key that stands twice is a mistake, and `--set` reaches into it."""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from podctl.errors import BadInput
from podctl.ui import shown
from remote.mistakes import Mistake

MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[Mistake] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, tuple[int, int]] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                place = key.start_mark.line + 1, key.start_mark.column
                if seen.setdefault(key.value, place) != place:
                    what = f"the key {key.value} stands twice in one mapping, first on line {seen[key.value][0]}"
                    self.twice.append(Mistake(f"line {place[0]}", what))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(  # YAML 1.1 takes 3e-5 for text
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Mistake]]:
    """The file's mapping and the keys that stand twice. Raises BadInput where there is no such mapping."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadInput(f"there is no file {shown(path)}", "give --config the path of an experiment file") from None
    except IsADirectoryError:
        raise BadInput(f"{shown(path)} is a directory", "give --config an experiment file in it") from None
    except UnicodeDecodeError:
        raise BadInput(f"{shown(path)} is not UTF-8 text", "save it as UTF-8") from None
    except (OSError, ValueError) as e:
        raise BadInput(f"{shown(path)} can't be read: {getattr(e, 'strerror', None) or e}") from None
    loader = None
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except RecursionError:
        raise BadInput(f"{shown(path)} is nested too deeply to be an experiment") from None
    except (yaml.YAMLError, ValueError) as e:  # ValueError: an impossible date
        raise BadInput(f"{shown(path)} is not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{shown(path)} holds no keys", "an experiment begins with name:, pod: and train:")
    twice = loader.twice
    odd = [Mistake(str(k), "a key must be text") for k in value if not isinstance(k, str)]
    return {k: v for k, v in value.items() if isinstance(k, str)}, [*twice, *odd]


def apply_sets(document: dict[str, Any], sets: Sequence[str]) -> list[Mistake]:
    """Each `a.b=c` into the document, in place, making the levels that are not there; what can't be is a mistake."""
    return [Mistake(f"--set {text}", what) for text in sets if (what := _apply(document, text))]


def to_yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _apply(document: dict[str, Any], text: str) -> str:
    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return "must be KEY=VALUE, as in train.optim.lr=3e-5"
    try:
        value = _Loader(raw).get_single_data()
    except (yaml.YAMLError, ValueError) as e:
        return f"the value is not YAML: {' '.join(str(e).split())}"
    node: Any = document
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                return f"{'.'.join(keys[:depth])} is a list of {len(node)}: {key} is no place in it"
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            return f"{'.'.join(keys[:depth])} is a value: nothing can be set below it"
        if last:
            node[index] = value
        else:
            node = node[index]
    return ""
