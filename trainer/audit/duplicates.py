"""Which sounds were met before: among what is audited, and in sets that it must not meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HALF = 16  # hexadecimal digits of a hash: 64 bits, one false meeting in 10^5 audits of ten million


@dataclass
class Met:
    """Sounds by half of their hash, and who had them first. About 100 bytes an utterance."""

    _first: dict[int, int] = field(default_factory=dict)

    def before(self, sha256: str, who: int) -> int | None:
        """The number of whoever had this sound first; None where nobody had, and now `who` has."""
        first = self._first.setdefault(int(sha256[:HALF], 16), who)
        return None if first == who else first


@dataclass(frozen=True)
class Elsewhere:
    """Sets that the audited ones must not meet: their sounds and ids, each with where it stands."""

    sounds: Mapping[int, str] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)

    def place(self, id: str, sha256: str) -> str:
        """`dev.jsonl: ID` where the id or the sound stands there, nothing otherwise."""
        return self.ids.get(id) or (self.sounds.get(int(sha256[:HALF], 16), "") if sha256 else "")


def elsewhere(sets: Mapping[str, Sequence[tuple[str, str]]]) -> Elsewhere:
    """Of each set by its name: (id, hash of its sound, or nothing where that can't be heard)."""
    pairs = [(name, i, sha256) for name, rows in sets.items() for i, sha256 in rows]
    sounds = {int(sha256[:HALF], 16): f"{name}: {i}" for name, i, sha256 in pairs if sha256}
    return Elsewhere(sounds, {i: f"{name}: {i}" for name, i, _ in pairs})
