"""A mistake in an experiment file: where, what, and what would be right. Both halves of the file speak this way."""

import difflib
import re
from dataclasses import dataclass
from typing import Any, Iterable, List, Mapping, Sequence


@dataclass(frozen=True)
class Mistake:
    where: str  # the dotted key: train.optim.lr
    what: str

    def __str__(self) -> str:
        return "{}: {}".format(self.where, self.what) if self.where else self.what


def mistakes_of(errors: Iterable[Mapping[str, Any]], prefix: str, known: Mapping[str, Sequence[str]]) -> List[Mistake]:
    """Validation errors (as pydantic lists them) as sentences.

    `known` gives the keys allowed at each dotted place, for "did you mean".
    """
    return [_mistake(e, prefix, known) for e in errors]


def _mistake(error: Mapping[str, Any], prefix: str, known: Mapping[str, Sequence[str]]) -> Mistake:
    path = [str(p) for p in error["loc"]]
    where = ".".join([prefix, *path] if prefix else path)
    kind, value, ctx = error["type"], error.get("input"), error.get("ctx") or {}
    if kind == "extra_forbidden":
        parent = ".".join(str(p) for p in error["loc"][:-1] if not isinstance(p, int))  # keys of an item are the list's
        return Mistake(where, "there is no such key" + did_you_mean(path[-1], known.get(parent, ())))
    if kind == "missing":
        return Mistake(where, "is missing, and has no default")
    if kind == "value_error":
        return Mistake(where, str(ctx.get("error", error["msg"])))
    message = str(error["msg"])
    message = message.replace("Input should be", "must be").replace("valid dictionary", "mapping of keys")
    message = re.sub(r" or instance of \w+", "", message)
    message = message.split(", unable to parse")[0].replace("a valid ", "a ").replace("a tuple", "a list")
    if kind == "too_short":
        return Mistake(where, "must not be empty")
    return Mistake(where, "{}, not {}".format(message, _shown(value)))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`: did you mean lr?`, or all that is known where nothing is near, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return ": did you mean {}?".format(near[0])
    return ": known are {}".format(", ".join(sorted(known))) if known else ""


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
