"""A whole manifest looked at, on threads, with bounded memory, into a file that appears whole or not at all."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote.files import write_json
from trainer.aligned import Alignment
from trainer.aligner import Aligner
from trainer.audit import agreement, duplicates, look, measures, rates, texts
from trainer.audit.agreement import Heard
from trainer.audit.corpus import Corpus
from trainer.audit.duplicates import Elsewhere, Met
from trainer.audit.look import Row
from trainer.audit.opening import Opened
from trainer.audit.summary import Tally, summarise
from trainer.audit.written import lines_into
from trainer.data.audited import side_of
from trainer.data.health import reasons_of
from trainer.data.manifest import REPEATED, Manifest
from trainer.data.pool import decoders
from trainer.errors import AudioError
from trainer.recipe.flags import FLAGS
from trainer.task import Bad, Example

VERSION = 1  # of what is measured: another one measures something else
AHEAD = 64  # utterances that wait for a thread, each: what was decoded is a line by then, not a sound
AT_ONCE = 512  # utterances whose transcripts are looked up together

Live = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Witnesses:
    """Who else is asked about an utterance."""

    heard: Heard | None = None
    aligner: Aligner | None = None
    elsewhere: Elsewhere | None = None


@dataclass
class Auditor:
    """Looks at one manifest after the other, and remembers their sounds: a copy in another manifest is found too."""

    workers: int
    live: Live
    _met: Met = field(default_factory=Met)
    _seen: list[Manifest] = field(default_factory=list)

    def audit(
        self, opened: Opened, corpus: Corpus, witnesses: Witnesses, out: Path, provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Rows into `out`, the summary beside it and returned."""
        manifest, tally = opened.manifest, Tally(len(opened.manifest))
        first = sum(map(len, self._seen))
        self._seen.append(manifest)
        twins: set[int] = set()
        n_same = 0
        with lines_into(out) as lines:
            for position, (example, row) in enumerate(_rows(corpus, witnesses, self.workers)):
                self._meet(row, example, first + position, witnesses.elsewhere)
                twin = _twin(example)
                n_same += twin in twins
                twins.add(twin)
                tally.add(position, row)
                lines.add(row)
                self.live(opened.name, position + 1, len(manifest))
            for id, reason in {b.id: b.reason for b in manifest.bad if b.reason != REPEATED}.items():
                lines.add({"id": id, "flags": ["unreadable"], "reason": reason})  # what never became an utterance
        summary: dict[str, Any] = {
            "manifest": opened.name,
            "utterances": len(manifest),
            "hours": round(manifest.hours, 4),
            "same_text_and_length": n_same,
            "quarantined": {"utterances": len(manifest.bad), "reasons": reasons_of(manifest.bad)},
            "chars_per_s_limits": _told_limits(corpus),
            "buckets": summarise(corpus, tally),
            "audit": out.name,
            "audit_sha256": lines.sha256,
            "provenance": {**provenance, "manifest_sha256": opened.sha256, **_expected(corpus)},
        }
        write_json(side_of(out), summary)  # the last: an audit without it is refused
        return summary

    def _meet(self, row: Row, example: Example, number: int, other: Elsewhere | None) -> None:
        """Whether its sound or id was met before."""
        sha256 = row.get("sound_sha256", "")
        if sha256 and (before := self._met.before(sha256, number)) is not None:
            row["flags"].append("duplicate_sound")
            row["duplicate_of"] = self._id(before)
        if other is not None and (place := other.place(example.id, sha256)):
            row["flags"].append("in_other_set")
            row["also_in"] = place

    def _id(self, number: int) -> str:
        for manifest in self._seen:
            if number < len(manifest):
                return manifest[number].id
            number -= len(manifest)
        raise IndexError(number)


def sounds_of(manifest: Manifest, workers: int, name: str, live: Live) -> list[tuple[str, str]]:
    """Of every utterance its id and the hash of its sound; nothing where it can't be heard."""

    def hashed(example: Example) -> tuple[str, str]:
        try:
            return example.id, measures.measure_sound(example.audio, example.start_s, example.duration_s).sha256
        except AudioError:
            return example.id, ""

    found = []
    examples = (manifest[i] for i in range(len(manifest)))
    for n, pair in enumerate(_ordered(examples, hashed, workers), start=1):
        found.append(pair)
        live(name, n, len(manifest))
    return found


def thresholds() -> dict[str, Any]:
    """Every constant that a flag depends on, by name."""
    return {
        "clipped_share": look.CLIPPED_SHARE,
        "long_chars": look.LONG_CHARS,
        "full_scale": measures.FULL_SCALE,
        "clipped_run": measures.CLIPPED_RUN,
        "quiet_db": measures.QUIET_DB,
        "quiet_below_loud_db": measures.QUIET_BELOW_LOUD_DB,
        "fastest_chars_per_s": rates.FASTEST,
        "slowest_chars_per_s": rates.SLOWEST,
        "fence_iqr": rates.FENCE,
        "fewest_for_a_fence": rates.FEWEST,
        "repeated_letters": texts.REPEATED_LETTERS,
        "repeated_words": texts.REPEATED_WORDS,
        "disagrees_wer": agreement.DISAGREES_WER,
        "disagrees_cer": agreement.DISAGREES_CER,
        "hash_digits": duplicates.HALF,
    }


def flags_looked_for(witnesses: Witnesses) -> list[str]:
    """Those that could have been set."""
    lacking = {"disagrees"} if witnesses.heard is None else set()
    lacking |= {"in_other_set"} if witnesses.elsewhere is None else set()
    return [flag for flag in FLAGS if flag not in lacking]


def _rows(corpus: Corpus, witnesses: Witnesses, workers: int) -> Iterator[tuple[Example, Row]]:
    def looked(task: tuple[int, Example, str | None, Alignment | Bad | None]) -> tuple[Example, Row]:
        position, example, heard, alignment = task
        limits, scripts = corpus.limits_at(position), corpus.scripts_at(position)
        row = look.look(example, limits, scripts, corpus.expected, heard, alignment)
        row["buckets"] = {name: example.bucket(name) for name in corpus.codes if name}
        return example, row

    yield from _ordered(_tasks(corpus.manifest, witnesses), looked, workers)


def _tasks(
    manifest: Manifest, witnesses: Witnesses
) -> Iterator[tuple[int, Example, str | None, Alignment | Bad | None]]:
    for at in range(0, len(manifest), AT_ONCE):
        positions = range(at, min(at + AT_ONCE, len(manifest)))
        examples = [manifest[i] for i in positions]
        heard: Sequence[str | None] = [None] * len(examples)
        if witnesses.heard is not None:
            heard = witnesses.heard.of([e.id for e in examples])
        aligned: Sequence[Alignment | Bad | None] = [None] * len(examples)
        if witnesses.aligner is not None:
            aligned = list(witnesses.aligner.align(examples))
        yield from zip(positions, examples, heard, aligned, strict=True)


def _ordered(items: Iterator[Any], do: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    """`do` on threads, answers in order, a bounded number of them under way."""
    with decoders(workers, "audit") as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(do, item))
                if len(waiting) > AHEAD * max(1, workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _twin(example: Example) -> int:
    """The same for the same words in the same time, to a hundredth of a second."""
    what = f"{' '.join(example.text.lower().split())}/{example.duration_s:.2f}"
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "little")


def _told_limits(corpus: Corpus) -> list[dict[str, Any]]:
    name, (_, values) = next(iter(corpus.codes.items()))
    sets = [f"{name}={v}" if name else "all" for v in values]
    return [
        {"set": s, "low": round(limits.low, 3), "high": round(limits.high, 3)}
        for s, limits in zip(sets, corpus.limits, strict=True)
    ]


def _expected(corpus: Corpus) -> dict[str, Any]:
    return {
        "capitals_are_odd": corpus.expected.capitals_are_odd,
        "scripts": {lang or "(none)": list(s) for lang, s in zip(corpus.languages[1], corpus.scripts, strict=True)},
    }
