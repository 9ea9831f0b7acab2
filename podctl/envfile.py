"""The text of `.runpod.env`: what a new one holds, and how a value comes into one without losing a line of it."""

import re
from collections.abc import Mapping

TEMPLATE = """\
# `podctl init` asks for these; or copy this to .runpod.env, which git ignores; `podctl train` refuses it tracked.
# Every name is optional, and the environment wins over this file. Nothing in here leaves this machine, but what an
# experiment names under pod.secrets.

# Account keys: they rent machines. They never reach a pod or a job.
RUNPOD_API_KEY=
LAMBDA_API_KEY=

# Keys that a training may need: name them under pod.secrets.
HF_TOKEN=
WANDB_API_KEY=
AWS_ACCESS_KEY_ID=
AWS_SECRET_ACCESS_KEY=

# Fills pod.gpu where an experiment names none.
GPU_TYPE=

# Your name within pods' names; your user name otherwise.
PODCTL_OWNER=

# podctl's own note of the last pod. A hint: here the environment does not win, and the ledger wins over both.
POD_ID=
"""  # .runpod.env.example is this text; a test holds them together

KNOWN = tuple(re.findall(r"^([A-Z_]+)=", TEMPLATE, re.MULTILINE))
_EMPTY = re.compile(r"(\s*(?:export\s+)?).*?([^\S\r\n]+#[^\r\n]*)?(\r\n|\n|\r|)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_./+=:@%,-]+")


def new_text() -> str:
    """A file in which nothing is filled in yet."""
    heading = (
        "# Keys and preferences of one person in this project; git ignores this file. The environment wins over it.\n"
    )
    return heading + TEMPLATE[TEMPLATE.index("\n\n") + 1 :]


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """The text with these values: in the place where a name stands empty, else at the end. Pure.

    A value that is there stays, and so does everything else, byte for byte.
    """
    for name, value in values.items():
        if value:
            text = _fill_one(text, name, value)
    return text


def _fill_one(text: str, name: str, value: str) -> str:
    import io

    from dotenv.parser import parse_stream

    pieces = list(parse_stream(io.StringIO(text, newline="")))
    places = [i for i, piece in enumerate(pieces) if piece.key == name]
    if not places:
        newline = "\r\n" if "\r\n" in text else "\n"
        gap = newline if text and not text.endswith(("\n", "\r")) else ""
        return f"{text}{gap}{name}={quoted(value)}{newline}"
    last = places[-1]  # of several the last counts
    if pieces[last].value:
        return text
    texts = [piece.original.string for piece in pieces]
    before, comment, end = _EMPTY.fullmatch(texts[last]).groups("")  # type: ignore[union-attr]
    texts[last] = f"{before}{name}={quoted(value)}{comment}{end}"
    return "".join(texts)


def quoted(value: str) -> str:
    """As a dotenv file says it, so that it is read as it was typed."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def unknown_names(names: Mapping[str, str]) -> dict[str, str]:
    """Names that look like a slip of one that podctl reads: what was meant, by what was written."""
    import difflib

    found = {}
    for name in names:
        near = difflib.get_close_matches(name.upper(), KNOWN, n=1, cutoff=0.8)
        if name not in KNOWN and near and near[0] not in names:
            found[name] = near[0]
    return found
