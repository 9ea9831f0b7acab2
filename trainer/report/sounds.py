"""Sound inside a page: the FLAC files of the worst utterances as data, up to a size that a mail still takes."""

import base64
from pathlib import Path

from trainer.report.html import Markup, el
from trainer.results import sound_name

MOST_BYTES = 8_000_000  # of a page's sounds, as they stand in it


class Sounds:
    """Players for utterances, as long as there is room; it counts what was left out."""

    def __init__(self, *folders: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folders = folders
        self._room = most_bytes
        self._made: dict[str, Markup] = {}
        self.left_out = 0  # for want of room
        self.missing = 0  # that no folder has
        self.held = 0

    def player(self, id: str) -> Markup | None:
        """What plays it; None where nobody kept its sound, or where the page is full."""
        if id in self._made:
            return self._made[id]  # a sound stands once in a page, with its first mention
        path = next((p for f in self._folders if (p := f / sound_name(id)).is_file()), None)
        if path is None:
            self.missing += 1
            return None
        try:
            n_bytes = 4 * (path.stat().st_size + 2) // 3
            if n_bytes > self._room:
                self.left_out += 1
                return None
            data = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError:
            self.missing += 1
            return None
        self._room -= len(data)
        self.held += 1
        self._made[id] = el("p", "its sound stands above", cls="muted")
        return el(
            "audio", controls=True, preload="none", src=f"data:audio/flac;base64,{data}", aria_label=f"sound of {id}"
        )

    def note(self) -> Markup | None:
        """What a reader should know about sounds that are not there."""
        if not self.held and not self.left_out:
            return el("p", "No sounds were kept with this run; eval.worst says how many are.", cls="muted")
        if not self.left_out:
            return None
        said = f"{self.left_out} more sounds are left out: a page holds {MOST_BYTES // 1_000_000} MB of them. "
        return el("p", said, "They lie in reports/audio.", cls="muted")
