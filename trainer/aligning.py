"""A whole manifest aligned, and its long recordings cut between words: no word is lost without a line that says so."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remote.files import write_json
from trainer.aligned import Alignment
from trainer.aligner import Aligner, open_aligner
from trainer.audit.listening import told
from trainer.audit.opening import Opened, beside, check_out, data_of, open_whole
from trainer.audit.written import Lines, lines_into, rounded
from trainer.data.audited import Places, keys_of
from trainer.data.health import kind_of
from trainer.data.manifest import REPEATED
from trainer.errors import BadData
from trainer.recipe.data import Data
from trainer.splitting import EDGE_SCORE, MARGIN_S, Piece, split
from trainer.task import Bad

SAMPLE = 500  # transcripts that a writing is chosen by


@dataclass
class Split:
    """What became of the recordings that were cut, and of all words of the manifest."""

    recordings: int = 0
    pieces: int = 0
    dropped: int = 0
    hours: float = 0.0
    words_in: int = 0
    words_out: int = 0
    words_quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Done:
    """What was written, and how the transcripts fit: 10 %, median and 90 % of their scores."""

    files: Sequence[Path]
    aligned: int
    scores: tuple[float, float, float] | None
    not_aligned: Mapping[str, int]
    split: Split | None


def align_manifest(
    name: str,
    model: Path,
    sets: Sequence[str],
    out: Path | None,
    longest_s: float | None,
    min_align: float | None,
    live: Callable[[str, int, int], None],
) -> Done:
    """Rows of the alignment; with `longest_s` also a manifest without anything longer. Raises BadData, BadRecipe."""
    data, rest = data_of(sets)
    if out is not None:
        check_out(out, [])
    opened = open_whole(name, data)
    if out is not None:
        check_out(out, [opened.path, beside(opened.path, "split"), beside(opened.path, "split.quarantine")])
    aligner = open_aligner(model, rest)
    manifest = opened.manifest
    among = np.arange(len(manifest))
    if longest_s is not None:
        among = np.flatnonzero(manifest.column("duration_s") > longest_s)
    chosen = among[np.linspace(0, len(among) - 1, min(len(among), SAMPLE)).astype(int)] if len(among) else among
    aligner.choose_writing([manifest[int(i)].text for i in chosen])
    target = out.absolute() if out is not None else beside(opened.path, "align")
    pieces: dict[str, list[Piece] | str] = {}
    scores: list[float] = []
    reasons: Counter[str] = Counter()
    with lines_into(target) as lines:
        answers = aligner.align(manifest[int(i)] for i in among)
        for n, (at, answer) in enumerate(zip(among, answers, strict=True), start=1):
            lines.add(_row(answer))
            live(opened.name, n, len(among))
            if isinstance(answer, Bad):
                reasons[kind_of(answer.reason)] += 1
                pieces[answer.id] = answer.reason
                continue
            scores.append(answer.score)
            if longest_s is not None:
                duration_s = float(manifest[int(at)].duration_s)
                pieces[answer.id] = split(answer, duration_s, longest_s, min_align)
    files = [target]
    done: Split | None = None
    if longest_s is not None:
        into = beside(opened.path, "split")
        done = _write_split(opened, data, pieces, into, beside(opened.path, "split.quarantine"))
        files += [into, beside(opened.path, "split.quarantine")]
    write_json(target.with_suffix(".json"), _facts(opened, aligner, lines, longest_s, min_align, scores, reasons, done))
    low, middle, high = np.quantile(scores, [0.1, 0.5, 0.9]).tolist() if scores else (0.0, 0.0, 0.0)
    return Done(files, len(scores), (low, middle, high) if scores else None, dict(reasons.most_common(10)), done)


def _row(answer: Alignment | Bad) -> dict[str, Any]:
    if isinstance(answer, Bad):
        return {"id": answer.id, "align": None, "reason": answer.reason}
    words = [[w.word, rounded(w.start_s, 3), rounded(w.end_s, 3), rounded(w.score, 3)] for w in answer.words]
    return {"id": answer.id, "align": rounded(answer.score), "words": words}


def _facts(
    opened: Opened,
    aligner: Aligner,
    lines: Lines,
    longest_s: float | None,
    min_align: float | None,
    scores: Sequence[float],
    reasons: Mapping[str, int],
    done: Split | None,
) -> dict[str, Any]:
    return {
        "manifest": opened.name,
        "manifest_sha256": opened.sha256,
        "align_sha256": lines.sha256,
        "model": told(aligner.trained) | {"writing": aligner.writing},
        "score": "mean log-probability a frame of the best path",
        "aligned": len(scores),
        "not_aligned": dict(reasons),
        "split_s": longest_s,
        "min_align": min_align,
        "edge_score": EDGE_SCORE,
        "margin_s": MARGIN_S,
        "split": vars(done) | {"reasons": dict(done.reasons)} if done else None,
    }


def _write_split(
    opened: Opened, data: Data, pieces: Mapping[str, list[Piece] | str], into: Path, quarantine: Path
) -> Split:
    """Each row of the manifest as it is, or its pieces, or a line in quarantine: in the manifest's order."""
    done = Split()
    names = {ours: data.fields.get(ours, ours) for ours in ("id", "text", "start_s", "duration_s")}
    unusable = {b.id: b.reason for b in opened.manifest.bad if b.reason != REPEATED}
    _check_new_ids(opened, pieces)
    met: set[str] = set()
    with ExitStack() as stack:
        good, bad = stack.enter_context(lines_into(into)), stack.enter_context(lines_into(quarantine))

        def drop(row: Mapping[str, Any], reason: str, n_words: int) -> None:
            bad.add({**row, "reason": reason})
            done.words_quarantined += n_words
            done.reasons[kind_of(reason)] += 1

        for number, raw in _raw_rows(opened.path):
            place = f"{opened.path.name}:{number}"
            if not isinstance(raw, dict):
                drop({names["id"]: place}, unusable.get(place, "not a JSON object"), 0)
                continue
            id = str(raw.get(names["id"]) or "")
            words = str(raw.get(names["text"]) or "").split()
            done.words_in += len(words)
            reason = unusable.get(id) or unusable.get(place)
            if reason:  # all rows of the id: which of them was aligned is not known
                drop(raw, reason, len(words))
                continue
            if id in met:
                drop(raw, REPEATED, len(words))
                continue
            met.add(id)
            mine = pieces.get(id)
            if mine is None:
                good.add(raw)
                done.words_out += len(words)
                continue
            done.recordings += 1
            if isinstance(mine, str):
                drop(raw, mine, len(words))
                continue
            for n, piece in enumerate(mine):
                row = _piece_row(raw, names, f"{id}-{n:03d}", piece)
                if piece.reason:
                    done.dropped += 1
                    drop(row, piece.reason, len(piece.words))
                    continue
                good.add(row)
                done.pieces += 1
                done.hours += piece.duration_s / 3600
                done.words_out += len(piece.words)
        assert done.words_in == done.words_out + done.words_quarantined, "no word is lost"
    return done


def _piece_row(raw: Mapping[str, Any], names: Mapping[str, str], id: str, piece: Piece) -> dict[str, Any]:
    """The recording's own row with another id, span and text."""
    start_s = float(raw.get(names["start_s"]) or 0.0) + piece.start_s
    span = {names["start_s"]: round(start_s, 4), names["duration_s"]: round(piece.duration_s, 4)}
    return {**raw, names["id"]: id, **span, names["text"]: piece.text}


def _check_new_ids(opened: Opened, pieces: Mapping[str, list[Piece] | str]) -> None:
    new = [f"{id}-{n:03d}" for id, mine in pieces.items() if not isinstance(mine, str) for n in range(len(mine))]
    there = np.flatnonzero(Places(opened.manifest.column("key")).of(keys_of(new)) >= 0)
    if len(there):
        raise BadData(
            f"{opened.name} holds {new[int(there[0])]} already, as a piece would be called", "rename those rows first"
        )


def _raw_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None
