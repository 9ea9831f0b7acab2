"""What a name on the command line means for a job elsewhere: a file that is sent along, or one that lies there already.

A file of the project travels with the source, where git and `.podignore` let it. Every other name is relative to the
volume's data/, where `podctl push` puts things.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from podctl.errors import BadInput
from podctl.ui import shown

LEFT_OUT = "is not sent, since git or .podignore leaves it out"
Look = Callable[[Sequence[str]], Collection[str]]  # names below data/ → those of them that are there


@dataclass(frozen=True)
class Around:
    """What decides: the project's root and what of it is sent, where the person is, and what lies on the volume."""

    root: Path
    sent: Collection[str]  # relative to root
    here: Path
    look: Look | None = None  # None: the machine is off, and nobody knows
    same_machine: bool = False  # the job runs on this very machine, and sees its files


@dataclass(frozen=True)
class Meant:
    """The name that the job is given, and what a person should know about it."""

    name: str
    note: str = ""


def resolve(words: Sequence[str], around: Around, podctl: str = "podctl", run: str = "") -> list[Meant]:
    """Each word as the job has to be told. Raises BadInput with all that is neither sent nor there."""
    found: dict[str, Meant] = {}
    unsent: dict[str, str] = {}  # word → its name below data/
    mistakes = []
    for word in dict.fromkeys(words):
        path = Path(os.path.abspath(around.here / word)) if word and "\0" not in word else None
        name = _within(path, around.root) if path is not None else None
        if path is None:
            mistakes.append(f"{word!r} is no file's name")
        elif path.is_dir():
            mistakes.append(f"{shown(word)} is a folder: name the files in it")
        elif name is not None and name in around.sent:
            found[word] = Meant(name)
        elif path.exists() and around.same_machine:
            found[word] = Meant(str(path))
        elif path.exists() and name is None:
            mistakes.append(f"{shown(word)} lies outside the project, so it is not sent")
        elif path.exists() and PurePosixPath(word).is_absolute():
            mistakes.append(f"{shown(word)} {LEFT_OUT}")
        elif PurePosixPath(word).is_absolute():
            found[word] = Meant(word)  # of the machine itself: its own affair
        elif os.path.normpath(word).startswith(".."):
            mistakes.append(f"{shown(word)} leads out of the volume's data/")
        else:
            unsent[word] = os.path.normpath(word)
    there = around.look(sorted(set(unsent.values()))) if around.look is not None and unsent else None
    for word, name in unsent.items():
        ignored = (around.here / word).exists()
        if there is not None and name not in there:
            why = LEFT_OUT if ignored else "is not in the project"
            mistakes.append(f"{shown(word)} {why}, and the volume's data/ has no {shown(name)}")
        else:
            note = f"{shown(word)} is not sent: data/{name} of the volume is meant" if ignored else ""
            note = note or (f"data/{name} is looked for on the volume" if there is None else "")
            found[word] = Meant(name, note)
    if mistakes:
        to = f" --run {run}" if run else ""
        hint = f"{podctl} push FILE{to} first, and then name it as it lies below data/"
        raise BadInput("not every input is to be had there", hint, tuple(mistakes))
    return [found[word] for word in dict.fromkeys(words)]


def notes_of(meant: Iterable[Meant]) -> list[str]:
    return [m.note for m in meant if m.note]


def _within(path: Path, root: Path) -> str | None:
    """Its name below the root, whichever way a link led there; None for what lies outside."""
    for a, b in ((path, root), (path.resolve(), root.resolve())):
        if a.is_relative_to(b):
            return a.relative_to(b).as_posix()
    return None
