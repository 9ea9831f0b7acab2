"""Writing files so that a kill at any moment leaves the old one or the new one, never half of either."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Union

StrPath = Union[str, "os.PathLike[str]"]


def fsync_path(path: StrPath) -> None:
    """Flush one file or directory to its disk; a file system without fsync on directories is let be."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        if not os.path.isdir(path):
            raise
    finally:
        os.close(fd)


def write_atomic(path: StrPath, data: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file: written beside, flushed, renamed over. Raises OSError (disk full) with the old file whole.

    Not `durable`: without waiting for the disk, for what is replaced every second anyway.
    """
    path = Path(path)
    beside = path.with_name(".{}.{}.tmp".format(path.name, os.getpid()))
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            if durable:
                os.fsync(f.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    if durable:
        fsync_path(path.parent)


def write_json(path: StrPath, value: Any) -> None:
    """`write_atomic` for JSON: one object, readable by a person."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: StrPath) -> Any:
    """The parsed file, or None where it is absent or not whole."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None
