"""Which project a command is about: a folder and a short id that stays the same from every place inside it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from podctl import shell
from podctl.errors import MissingHere


@dataclass(frozen=True)
class Project:
    root: Path
    id: str
    in_git: bool

    @property
    def results(self) -> Path:
        """Where fetched runs lie; git ignores it."""
        return self.root / ".podctl"


def find_project(near: Path, otherwise: Path) -> Project:
    """The git work tree around `near`, else the one around `otherwise`, else that folder."""
    top = git_top(near) or git_top(otherwise)
    root = top or otherwise.resolve()
    return Project(root=root, id=project_id(root), in_git=top is not None)


def working_dir() -> Path:
    """The folder that the command was given in. Raises MissingHere where it was removed meanwhile."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise MissingHere("the folder that you are in is not there any more", "cd into one that is") from None


def git_top(directory: Path) -> Path | None:
    """The work tree's root, or None outside of one or without git."""
    if not shell.found("git") or not directory.is_dir():
        return None
    result = shell.run(["git", "-C", str(directory), "rev-parse", "--show-toplevel"])
    return Path(result.stdout.removesuffix("\n")) if result.ok and result.stdout.strip() else None


def project_id(root: Path) -> str:
    """`<folder's name>-<6 hex of its absolute path>`: two clones are two projects."""
    slug = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:24] or "project"
    digest = hashlib.sha256(str(root.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{slug}-{digest[:6]}"
