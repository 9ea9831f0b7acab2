"""Text files of the user's that podctl changes: whole or not at all, and no more of them than meant."""

import stat
from pathlib import Path

from podctl.errors import MissingHere
from podctl.ui import shown
from remote.files import write_atomic


def text_of(path: Path) -> str | None:
    """A file's text, its line ends as they are, bytes that are no UTF-8 as surrogate escapes; None where there is none.

    Raises MissingHere.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as e:
        raise MissingHere(f"{shown(path)} can't be read: {e.strerror}", "move it away, and type this again") from None


def put(path: Path, text: str, mode: int, *, keep_mode: bool = False) -> None:
    """Replace it at once; behind a link, the file that it names. `keep_mode`: where it exists, with the mode it has.

    Its folder is made, for its owner alone. Raises MissingHere.
    """
    try:
        target = path.resolve()
        if keep_mode and target.exists():
            mode = stat.S_IMODE(target.stat().st_mode)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(target, text.encode("utf-8", "surrogateescape"), mode)
    except OSError as e:
        raise MissingHere(f"{shown(path)} can't be written: {e.strerror}", "is this folder yours to write?") from e
