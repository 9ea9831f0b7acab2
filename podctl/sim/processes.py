"""The processes of a pod that is no container: found by descent and by a mark in their environment, ended by number."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "PODCTL_SIM_POD"
PATIENCE_S = 5.0
LOOK_S = 0.01


@dataclass(frozen=True)
class Process:
    """One process; a number that is used again has another `born`."""

    pid: int
    parent: int
    born: str


def tree(roots: Iterable[int], mark: str) -> set[Process]:
    """All that live and come from one of these, or bear the mark."""
    alive = _alive()
    found = {p for p in alive.values() if p.pid in set(roots) or _bears(p.pid, mark)}
    children: dict[int, list[Process]] = {}
    for p in alive.values():
        children.setdefault(p.parent, []).append(p)
    todo = list(found)
    while todo:
        for child in children.get(todo.pop().pid, ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return {p for p in found if p.pid != os.getpid()}


def end_all(roots: Iterable[int], mark: str) -> None:
    """SIGKILL to every one, and to those that they start meanwhile, until there are none; to the roots last.

    Roots adopt what loses its parent (`podinit.py`), so while they live all can be found.
    """
    roots, until = list(roots), time.monotonic() + PATIENCE_S
    suspects: set[Process] = set()
    while time.monotonic() < until:
        alive = _alive()
        still = {p for p in suspects if p.pid in alive and alive[p.pid].born == p.born}
        still |= tree([*roots, *(p.pid for p in still)], mark)
        if not still:
            return
        for p in {p for p in still if p.pid not in set(roots)} or still:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(p.pid, signal.SIGKILL)
        suspects |= still
        time.sleep(LOOK_S)


def _alive() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if words[0] not in "ZX":
                found[int(name)] = Process(int(name), int(words[1]), words[19])
    return found


def _bears(pid: int, mark: str) -> bool:
    """Whether the mark stands in its environment, whole."""
    with contextlib.suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False
