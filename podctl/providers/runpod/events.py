"""The log of a container, out of a stream of server-sent events. Pure."""

import json
from collections.abc import Iterable, Iterator


def log_lines(stream: Iterable[str]) -> Iterator[str]:
    """The container's own lines. An event that is not understood is given as it is, one cut in the middle is left."""
    data: list[str] = []
    for line in stream:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line == "" and data:
            yield from _said("\n".join(data))
            data = []


def _said(data: str) -> list[str]:
    try:
        event = json.loads(data)
    except ValueError:
        return data.split("\n")
    if not isinstance(event, dict):
        return [data]
    if event.get("source", "container") != "container" or not isinstance(event.get("line"), str):
        return []
    return str(event["line"]).rstrip("\r\n").split("\n")
