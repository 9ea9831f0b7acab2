"""The competition's answer file: the format file's ids, in its order, with its fields, and a text in each.

`submission_format.jsonl` has a line an utterance; `orthographic_text` is filled in, everything else stays as it is.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.files import write_atomic
from trainer.data.children import json_lines
from trainer.errors import BadData

IDS, TEXTS = ("utterance_id", "id"), ("orthographic_text", "text")  # the first that a format file has
FIELDS = {  # of the competition's metadata: ours → theirs
    "id": "utterance_id",
    "audio": "audio_path",
    "duration_s": "audio_duration_sec",
    "text": "orthographic_text",
    "speaker": "child_id",
}
NAMED = 5  # examples a mistake


@dataclass(frozen=True)
class Format:
    """What a submission must be."""

    path: Path
    id: str  # the names of its fields
    text: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [r[self.id] for r in self.rows]


def read_format(path: Path) -> Format:
    """Raises BadData where it is not a line an utterance, each with an id of its own and a field for the text."""
    rows = []
    for number, row in json_lines(path):
        if isinstance(row, str):
            raise BadData(f"{path}:{number}: {row}", "name the competition's submission_format.jsonl")
        rows.append(row)
    first: Mapping[str, Any] = rows[0] if rows else {}
    id, text = (next((n for n in names if n in first), "") for names in (IDS, TEXTS))
    if not id or not text:
        raise BadData(
            f"{path} has no field for {'texts' if id else 'ids'}: its first row has {', '.join(first) or 'nothing'}",
            f"one of {', '.join(IDS)} and one of {', '.join(TEXTS)} is looked for",
        )
    wrong = [n for n, r in enumerate(rows, 1) if not isinstance(r.get(id), str) or text not in r]
    if wrong:
        raise BadData(f"{path}: row {wrong[0]} lacks {id} or {text}", "fetch the format file again")
    twice = [i for i, n in Counter(r[id] for r in rows).items() if n > 1]
    if twice:
        raise BadData(f"{path}: {_some(twice)} stand twice", "fetch the format file again")
    return Format(path, id, text, rows)


def competition_fields(manifest: Path) -> dict[str, str]:
    """The competition's names, where a manifest's first row has them and no `id`; otherwise none."""
    first = next((row for _, row in json_lines(manifest) if isinstance(row, dict)), {})
    return FIELDS if "id" not in first and FIELDS["id"] in first else {}


def check_ids(form: Format, ids: Sequence[str], where: str) -> list[str]:
    """What will not be in the answer, told. Raises BadData where something that is asked for is not there at all."""
    known, asked = set(ids), set(form.ids)
    missing = [i for i in form.ids if i not in known]
    if missing:
        raise BadData(
            f"{form.path} asks for {len(missing)} utterances that {where} does not have: {_some(missing)}",
            "name the manifest that belongs to this format file (utterance_metadata.jsonl, submission.jsonl)",
        )
    beyond = [i for i in ids if i not in asked]
    return [f"{len(beyond)} utterances are not asked for, and left out: {_some(beyond)}"] if beyond else []


def write_submission(path: Path | None, form: Format, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's text, written where a path is given. `rows`: id → `text`, for every id of the format."""
    lines = [json.dumps({**r, form.text: str(rows[r[form.id]]["text"])}, ensure_ascii=False) for r in form.rows]
    whole = "".join(line + "\n" for line in lines)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, whole.encode("utf-8", "surrogatepass"))
    return whole


def empty_texts(form: Format, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Why a text is empty → ids."""
    found: dict[str, list[str]] = {}
    for i in form.ids:
        if not str(rows[i]["text"]).strip():
            found.setdefault(str(rows[i].get("reason") or "the model said nothing"), []).append(i)
    return found


def mistakes_of(path: Path, form: Format) -> tuple[list[str], list[str]]:
    """(what is wrong with a submission, what is only told): all of it at once. Raises BadData where it is no file."""
    wrong, rows = [], []
    not_rows = []
    for number, row in json_lines(path):
        if isinstance(row, str) or not isinstance(row.get(form.id), str):
            not_rows.append(f"line {number}")
        else:
            rows.append(row)
    if not_rows:
        wrong.append(f"{len(not_rows)} lines are no JSON objects with a {form.id}: {_some(not_rows)}")
    ids, asked = [r[form.id] for r in rows], form.ids
    there, allowed = set(ids), set(asked)
    missing, beyond = [i for i in asked if i not in there], [i for i in ids if i not in allowed]
    twice = [i for i, n in Counter(ids).items() if n > 1]
    for what, which in (("are missing", missing), ("are not asked for", beyond), ("stand twice", twice)):
        wrong += [f"{len(which)} ids {what}: {_some(which)}"] if which else []
    if not wrong and ids != asked:
        at = next(n for n, (a, b) in enumerate(zip(ids, asked, strict=True)) if a != b)
        wrong.append(f"the order differs from line {at + 1} on: {ids[at]!r}, the format has {asked[at]!r}")
    wanted = {r[form.id]: r for r in form.rows}
    other = [r[form.id] for r in rows if r[form.id] in wanted and _beside(r, form) != _beside(wanted[r[form.id]], form)]
    if other:
        wrong.append(f"{len(other)} rows have other fields than the format, beside {form.text}: {_some(other)}")
    no_text = [r[form.id] for r in rows if not isinstance(r.get(form.text), str)]
    if no_text:
        wrong.append(f"{len(no_text)} rows have no {form.text} that is a text: {_some(no_text)}")
    empty = [r[form.id] for r in rows if isinstance(r.get(form.text), str) and not r[form.text].strip()]
    return wrong, [f"{len(empty)} of {len(rows)} texts are empty: {_some(empty)}"] if empty else []


def _beside(row: Mapping[str, Any], form: Format) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in (form.id, form.text)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
