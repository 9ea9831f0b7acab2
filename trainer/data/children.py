"""Recordings of children as the competition hands them out, read into rows, and whom each row belongs to.

`…word_transcripts….jsonl` names recordings by id; who speaks is known for many rows, the session for some, for others
nothing. Nothing here decodes audio or writes a file.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.characters import HALF, is_whole
from trainer.errors import BadData
from trainer.task import Bad

TRANSCRIPTS = "*word_transcripts*.jsonl"
TEST_NAMES = ("utterance_metadata.jsonl", "submission_format.jsonl")
MD5 = ("md5", "md5_hash", "audio_md5")
SIZE = ("size", "filesize_bytes", "size_bytes")
FEWEST_PREFIXES = 10  # fewer say nothing of recordings: U_… and T_… are kinds of ids
BY = {  # what a row's group is known by, the strongest first
    "child": "child_id",
    "session": "session_id",
    "prefix": "the beginning of its id, up to the last _",
    "utterance": "nothing: it is a group of its own",
}


@dataclass(frozen=True)
class Row:
    """A line of a transcript file, with what it claims."""

    id: str
    audio_path: str
    text: str
    child: str
    session: str
    age: str
    source: str  # the transcript file's name
    claimed_s: float | None
    md5: str
    size: int | None


@dataclass(frozen=True)
class Grouping:
    """id → the group that must stay on one side. `by` counts utterances by what their group is known by."""

    of: Mapping[str, str]
    by: Mapping[str, int]
    notes: Sequence[str] = field(default_factory=list)


def read_transcripts(folder: Path) -> tuple[list[Row], list[Bad]]:
    """All rows of all transcript files, in the order of their ids, and what can't be used. Raises BadData."""
    files = sorted(folder.glob(TRANSCRIPTS))
    if not files:
        raise BadData(f"{folder} holds no {TRANSCRIPTS}", "name the folder with train_word_transcripts.jsonl")
    rows: dict[str, list[Row]] = defaultdict(list)
    bad = []
    for file in files:
        for number, raw in json_lines(file):
            where = f"{file.name}:{number}"
            answer = Bad(where, raw) if isinstance(raw, str) else row_of(raw, file.stem, where)
            if isinstance(answer, Bad):
                bad.append(answer)
            else:
                rows[answer.id].append(answer)
    kept = []
    for id, same in sorted(rows.items()):
        if len(set(same)) == 1:
            kept.append(same[0])
            bad += [Bad(id, "its row stands twice: the first is used")] * (len(same) - 1)
        else:
            bad += [Bad(id, "its id stands on rows that differ: which is meant is not known")] * len(same)
    return kept, bad


def row_of(raw: Mapping[str, Any], source: str, where: str) -> Row | Bad:
    """One line; an empty transcript is none."""
    if not is_whole(raw):
        return Bad(where, HALF)
    id, audio, text = _text(raw.get("utterance_id")), _text(raw.get("audio_path")), _text(raw.get("orthographic_text"))
    if not id:
        return Bad(where, "no utterance_id")
    if not audio:
        return Bad(id, "no audio_path")
    if not text:
        return Bad(id, "empty transcript")
    return Row(
        id=id,
        audio_path=audio,
        text=text,
        child=_text(raw.get("child_id")),
        session=_text(raw.get("session_id")),
        age=_text(raw.get("age_bucket")) or "unknown",
        source=source,
        claimed_s=seconds(raw.get("audio_duration_sec")),
        md5=next((_text(raw[k]).lower() for k in MD5 if raw.get(k)), ""),
        size=next((int(str(raw[k])) for k in SIZE if re.fullmatch(r"\d+", str(raw.get(k)))), None),
    )


def json_lines(file: Path) -> Iterable[tuple[int, dict[str, Any] | str]]:
    """Line numbers with objects, or why there is none. Raises BadData where the file can't be read at all."""
    try:
        with file.open("rb") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                yield number, value if isinstance(value, dict) else "its line is not a JSON object"
    except OSError as e:
        raise BadData(f"{file}: {e.strerror}", "is it there, and may it be read?") from None


def seconds(value: Any) -> float | None:
    """A duration that a row claims; None where it claims none that could be one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < 1e7 else None


def group_rows(rows: Sequence[Row], same_sound: Iterable[Sequence[str]] = ()) -> Grouping:
    """By child, where one is named; else by session; else by the beginning of the id, where that groups; else alone.

    A child's sessions stay together, and a session of several children is torn apart. But where a session has rows
    that name nobody, they may be any of its children: then all of these are one group. So are ids with `same_sound`.
    """
    by, own = {}, {}
    prefixes = _prefixes([r for r in rows if not r.child and not r.session])
    for r in rows:
        if r.child:
            by[r.id], own[r.id] = "child", f"child {r.child}"
        elif r.session:
            by[r.id], own[r.id] = "session", f"session {r.session}"
        elif r.id in prefixes:
            by[r.id], own[r.id] = "prefix", f"prefix {prefixes[r.id]}"
        else:
            by[r.id], own[r.id] = "utterance", f"utterance {r.id}"
    joined = _Joined()
    nameless = {r.session for r in rows if r.session and not r.child}
    tied: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        if r.child and r.session in nameless:
            joined.join(f"session {r.session}", own[r.id])
            tied[r.session].add(r.child)
    n_same = 0
    for ids in same_sound:
        n_same += len(ids) - 1
        for other in ids[1:]:
            joined.join(own[ids[0]], own[other])
    notes = []
    if tied:
        n = len(set().union(*tied.values()))
        notes.append(
            f"{len(tied)} sessions hold utterances that name no child: those and the session's {n} known children "
            "stand on one side together"
        )
    if n_same:
        notes.append(f"{n_same} utterances have the sound of another one, byte for byte: their groups stand together")
    counts = Counter(by.values())
    return Grouping({id: joined.of(name) for id, name in own.items()}, {k: counts[k] for k in BY}, notes)


def _prefixes(rows: Sequence[Row]) -> dict[str, str]:
    """id → its recording's name, as far as the ids of a transcript file tell recordings apart."""
    found: dict[str, str] = {}
    for source in sorted({r.source for r in rows}):
        begins = {r.id: r.id.rpartition("_")[0] for r in rows if r.source == source}
        names = {p for p in begins.values() if p}
        if FEWEST_PREFIXES <= len(names) < len(begins):
            found |= {id: f"{source}/{p}" for id, p in begins.items() if p}
    return found


class _Joined:
    """Groups that became one, named by the first of their names."""

    def __init__(self) -> None:
        self._up: dict[str, str] = {}

    def of(self, name: str) -> str:
        while name in self._up:
            name = self._up[name]
        return name

    def join(self, a: str, b: str) -> None:
        first, second = sorted((self.of(a), self.of(b)))
        if first != second:
            self._up[second] = first


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers with gaps is written as 7.0
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
