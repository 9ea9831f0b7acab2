"""What data would travel, and what it would take: decided before anything moves."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from podctl.errors import BadInput
from podctl.pods import Pod
from podctl.ui import money, shown, size
from remote.clock import duration
from remote.rundir import Volume


@dataclass(frozen=True)
class Item:
    """A file that should be over there: its name below the root there, and what it is here."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class SendPlan:
    """What travels, those first that were cut off, each from its offset; and how many files need not."""

    send: tuple[Item, ...]
    offsets: Mapping[str, int]
    n_held: int

    @property
    def n_bytes(self) -> int:
        return sum(item.size - self.offsets.get(item.name, 0) for item in self.send)


def gather(sources: Sequence[Path], below: str = "") -> list[Item]:
    """The files that are meant, each source under its own name in the folder `below`; for a link, what it points to.

    Raises BadInput for what is not there, and for two of one name.
    """
    items: dict[str, Item] = {}
    mistakes = []
    for source in sources:
        top = Path(os.path.abspath(source))
        if not top.exists():
            mistakes.append(f"{shown(source)}: there is no such file or folder")
        for path in _files_of(top):
            name = str(PurePosixPath(below, path.relative_to(top.parent)))
            real = path.resolve()
            if name in items and items[name].path != real:
                mistakes.append(f"{shown(name)}: both {shown(items[name].path)} and {shown(real)} would go there")
            items[name] = Item(name, real, real.stat().st_size)
    if mistakes:
        raise BadInput("this can't be sent", "", tuple(mistakes))
    return [items[name] for name in sorted(items)]


def make_plan(items: Sequence[Item], there: Mapping[str, Any], sha256_of: Callable[[Item], str]) -> SendPlan:
    """Pure, but for the hashes that it asks for. `there`: what `carry.py survey` said."""
    files: Mapping[str, Sequence[Any]] = there["files"]
    parts: Mapping[str, int] = there["parts"]
    send, offsets = [], {}
    for item in items:
        n_bytes, _, sha256 = files.get(item.name, (-1, 0, ""))
        if n_bytes == item.size and sha256 and sha256 == sha256_of(item):
            continue
        send.append(item)
        if 0 < parts.get(item.name, 0) <= item.size:
            offsets[item.name] = parts[item.name]
    send.sort(key=lambda item: item.name not in offsets)
    return SendPlan(tuple(send), offsets, len(items) - len(send))


def estimate(n_bytes: int, n_files: int, bytes_per_s: float, usd_per_hour: float) -> str:
    """What an upload takes, in a sentence. Pure."""
    seconds = n_bytes / max(bytes_per_s, 1.0)
    text = f"{size(n_bytes)} in {n_files} file{'s' * (n_files != 1)} at about {size(bytes_per_s)}/s"
    cost = f"; the machine costs {money(seconds / 3600 * usd_per_hour)} meanwhile" if usd_per_hour else ""
    return f"{text} is {duration(seconds)}{cost}"


def place_for(pod: Pod, to: str) -> tuple[PurePath, str]:
    """The root over there and the folder below it: relative ones are below the volume's data/, where a training looks.

    Raises BadInput for one that is not on the volume: it would go with the machine.
    """
    volume, data = PurePosixPath(pod.volume_dir), PurePosixPath(Volume(pod.volume_dir).data)
    place = PurePosixPath(os.path.normpath(data / to))
    for root in (data, volume):
        if place.is_relative_to(root):
            below = str(place.relative_to(root))
            return root, "" if below == "." else below
    raise BadInput(f"{place} is not on the volume {volume}", "--to a folder below data/, or an absolute path on it")


def _files_of(top: Path) -> Iterator[Path]:
    """All files below, or itself; folders behind links too, each once."""
    if top.is_file():
        yield top
        return
    seen: set[tuple[int, int]] = set()
    for directory, folders, files in os.walk(top, followlinks=True):
        about = Path(directory).stat()
        if (about.st_dev, about.st_ino) in seen:
            folders[:] = []  # a link that leads back up
            continue
        seen.add((about.st_dev, about.st_ino))
        folders.sort()
        yield from (path for name in sorted(files) if (path := Path(directory, name)).is_file())
