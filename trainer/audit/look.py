"""One utterance looked at: its sound, its transcript, and what a first model made of it, with flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.aligned import Alignment
from trainer.audit.agreement import compare
from trainer.audit.measures import measure_sound
from trainer.audit.rates import Limits
from trainer.audit.texts import foreign_scripts, odd_in
from trainer.audit.written import rounded
from trainer.errors import AudioError
from trainer.metrics.normalise import Normaliser
from trainer.task import Bad, Example

CLIPPED_SHARE = 1e-3  # of samples: a syllable's loudest periods; less is a plop
LONG_CHARS = 200  # what the winners of children's speech allowed TalkBank's transcripts

Row = dict[str, Any]


@dataclass(frozen=True)
class Expectations:
    """What a manifest's utterances are held against."""

    capitals_are_odd: bool
    scripts: Sequence[str]  # of a language that is not known, or of none: those of the manifest's majority
    normaliser: Normaliser


def look(
    example: Example,
    limits: Limits,
    scripts: Sequence[str],
    expected: Expectations,
    heard: str | None,
    alignment: Alignment | Bad | None,
) -> Row:
    """A line of the audit, as far as one utterance alone can say it."""
    row: Row = {"id": example.id, "flags": []}
    flags = row["flags"]
    try:
        sound = measure_sound(example.audio, example.start_s, example.duration_s)
    except AudioError as e:
        flags.append("unreadable")
        row["reason"] = e.message
    else:
        row |= {"sound_sha256": sound.sha256, "peak_db": rounded(sound.peak_db, 2), "rms_db": rounded(sound.rms_db, 2)}
        row |= {
            "snr_db": rounded(sound.snr_db, 2),
            "silence": rounded(sound.silence),
            "clipping": rounded(sound.clipping, 6),
        }
        if sound.is_silent:
            flags.append("silent")
        if sound.clipping > CLIPPED_SHARE:
            flags.append("clipped")
    return (
        row
        | _of_text(example, limits, scripts, expected, flags)
        | _of_models(example, expected, heard, alignment, flags)
    )


def _of_text(example: Example, limits: Limits, scripts: Sequence[str], expected: Expectations, flags: list[str]) -> Row:
    text = " ".join(example.text.split())
    duration_s = max(example.duration_s, 1e-3)
    rate = len(text) / duration_s
    row: Row = {"duration_s": rounded(example.duration_s), "chars": len(text), "words": len(text.split())}
    row |= {"chars_per_s": rounded(rate), "words_per_s": rounded(row["words"] / duration_s)}
    if not text:
        flags.append("no_text")
        return row
    if fast_or_slow := limits.flag(rate):
        flags.append(fast_or_slow)
    if odd := odd_in(text, expected.capitals_are_odd):
        flags.append("odd_text")
        row["odd"] = odd
    if foreign := foreign_scripts(text, scripts):
        flags.append("script")
        row["scripts"] = foreign
    if len(text) > LONG_CHARS:
        flags.append("long_text")
    return row


def _of_models(
    example: Example, expected: Expectations, heard: str | None, alignment: Alignment | Bad | None, flags: list[str]
) -> Row:
    row: Row = {}
    if heard is not None:
        found = compare(example.text, heard, expected.normaliser)
        row |= {"wer": rounded(found.wer), "cer": rounded(found.cer), "heard": found.heard}
        if found.disagrees:
            flags.append("disagrees")
    if isinstance(alignment, Alignment):
        row["align"] = rounded(alignment.score)
    elif alignment is not None:
        row["not_aligned"] = alignment.reason
    return row
