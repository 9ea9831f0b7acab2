"""Where a manifest's audio paths lie."""

import os
from collections.abc import Sequence
from pathlib import Path

from trainer.data.audio import file_of
from trainer.errors import AudioError, BadData


class AudioFinder:
    """Each folder is tried with the whole path, without its first part, by name.

    One listing a folder, not one look-up a file: ten million rows, and a volume that answers slowly.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._names: dict[str, frozenset[str]] = {}
        self._below: dict[str, list[str]] = {}  # of a relative folder: it in each of ours

    def find(self, path: str) -> str:
        """The one file. Raises AudioError where there is none, BadData naming both where there are two.

        `FILE.parquet#COLUMN/ROW` is a recording inside a file, which is looked for in the same way; an address of the
        Hub is where it says.
        """
        if path.startswith("hf://"):
            return path
        inside = file_of(path)
        if inside != path:
            return self.find(inside) + path[len(inside) :]
        if path.startswith(os.sep):
            folder, _, name = path.rpartition(os.sep)
            if name not in self._in(folder or os.sep):
                raise AudioError(f"{path} does not exist")
            return path
        folder, _, name = path.rpartition("/")
        for relative in dict.fromkeys((folder, folder.partition("/")[2], "")):
            hits = [f"{at}/{name}" for at in self._each(relative) if name in self._in(at)]
            if len(hits) > 1 and len({os.path.realpath(h) for h in hits}) > 1:
                raise BadData(
                    f"{path} fits two files: {hits[0]} and {hits[1]}", "name fewer folders in data.audio_dirs"
                )
            if hits:
                return hits[0]
        raise AudioError(f"{path} is in none of {', '.join(map(str, self.folders))}")

    def _each(self, relative: str) -> list[str]:
        if relative not in self._below:
            self._below[relative] = [str(f / relative) if relative else str(f) for f in self.folders]
        return self._below[relative]

    def _in(self, folder: str) -> frozenset[str]:
        names = self._names.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(folder))
            except OSError:
                names = frozenset()
            self._names[folder] = names
        return names
