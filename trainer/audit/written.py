"""A file of lines that appears whole or not at all, and the hash of what is in it."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from remote.files import fsync_path


class Lines:
    """JSON Lines on their way into a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.n = 0

    def add(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        self._digest.update(line)
        self._file.write(line)
        self.n += 1

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def lines_into(path: Path) -> Iterator[Lines]:
    """Written beside, flushed, renamed over when all went well; nothing is left of it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as f:
            yield Lines(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
        fsync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def rounded(value: float | None, digits: int = 4) -> float | None:
    """As a row holds it: JSON knows no NaN."""
    return None if value is None or value != value else round(float(value), digits)
