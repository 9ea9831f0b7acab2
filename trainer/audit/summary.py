"""An audit in numbers: by bucket, and what each of a few usual rules would leave of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.audit.corpus import Corpus
from trainer.audit.look import Row
from trainer.audit.written import rounded
from trainer.data.audited import MEASURES
from trainer.data.buckets import codes_of
from trainer.data.kept import LIMITS, failures, limits_of
from trainer.recipe.flags import FLAGS
from trainer.recipe.keep import Keep

FAULTS = ("unreadable", "silent", "clipped", "no_text", "duplicate_sound", "in_other_set", "fast", "slow", "script")
RULES: Mapping[str, Keep] = {  # what the winners of children's speech went by, and what needs no model
    "no fault of sound or text": Keep(drop=[*FAULTS, "odd_text", "long_text"]),
    "WER 0.7": Keep(max_wer=0.7),
    "WER 0.9 or CER 0.5": Keep(max_wer=0.9, max_cer=0.5, either=True),
    "WER 0.7, at most 200 characters": Keep(max_wer=0.7, max_chars=200),
}
TOLD = ("wer", "cer", "align", "chars_per_s", "snr_db", "silence")  # by median and 90th percentile
COLUMNS = (("wer", 2), ("cer", 2), ("align", 2), ("chars_per_s", 1), ("snr_db", 0))  # shown, with their digits
MOST_VALUES = 50  # of a field that are told apart: a bucket a speaker is not a table


@dataclass
class Tally:
    """What a summary needs of each utterance: 8 numbers and a mask of flags, 70 bytes."""

    n: int
    measures: dict[str, np.ndarray] = field(default_factory=dict)  # float64 (N,)
    flags: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))

    def __post_init__(self) -> None:
        self.measures = {m: np.full(self.n, np.nan) for m in MEASURES}
        self.flags = np.zeros(self.n, np.uint32)

    def add(self, position: int, row: Row) -> None:
        for name, values in self.measures.items():
            if row.get(name) is not None:
                values[position] = row[name]
        for flag in row["flags"]:
            self.flags[position] |= np.uint32(1 << BITS[flag])

    def has(self, flag: str) -> np.ndarray:
        """bool (N,)."""
        return (self.flags & np.uint32(1 << BITS[flag])) != 0


BITS = {flag: bit for bit, flag in enumerate(FLAGS)}


def summarise(corpus: Corpus, tally: Tally) -> list[dict[str, Any]]:
    """A line for all and one a bucket, plain keys: set, utterances, hours, flags, medians, and what rules leave."""
    hours = corpus.manifest.column("duration_s") / 3600
    everyone = np.ones(tally.n, bool)
    measured = {name: failed_by(rule, tally) for name, rule in RULES.items() if _can(rule, tally)}
    lines = [_line("all", everyone, hours, tally, measured)]
    duration = {"duration": codes_of(corpus.manifest, "duration")}
    for name, (codes, values) in (corpus.codes | duration).items():
        if not name:
            continue
        common = np.argsort(-np.bincount(codes, minlength=len(values)), kind="stable")[:MOST_VALUES]
        for code in sorted(common, key=lambda c: values[c]):
            mine = codes == code
            if mine.any():
                lines.append(_line(f"{name}={values[code]}", mine, hours, tally, measured))
    return lines


def failed_by(rule: Keep, tally: Tally) -> np.ndarray:
    """Whom a rule would leave out, by the same law as a training: bool (N,)."""
    found = failures(rule, tally.measures, {flag: tally.has(flag) for flag in rule.drop})
    return np.logical_or.reduce([np.zeros(tally.n, bool), *found.values()])


def summary_lines(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The summary as a person reads it: a column a measure, of which it holds the median and the 90th percentile."""
    columns = [(name, digits) for name, digits in COLUMNS if any(x.get(f"{name}_median") is not None for x in lines)]
    width = max([len(x["set"]) for x in lines], default=0) + 2
    head = f"{'':<{width}} {'utterances':>10} {'hours':>8}" + "".join(f" {name:>15}" for name, _ in columns)
    shown = [head, f"{'':<{width}} {'':>10} {'':>8}" + " median / 90 %".rjust(16) * len(columns)]
    for line in lines:
        text = f"  {line['set']:<{width - 2}} {line['utterances']:>10} {line['hours']:>8.2f}"
        for name, digits in columns:
            low, high = line.get(f"{name}_median"), line.get(f"{name}_p90")
            text += f" {'–' if low is None else f'{low:.{digits}f} / {high:.{digits}f}':>15}"
        shown.append(text)
        if line["flags"]:
            shown.append("      " + ", ".join(f"{flag} {n}" for flag, n in line["flags"].items()))
        for name, left in line["rules"].items():
            shown.append(f"      {name}: leaves {left['utterances']}, {left['hours']:.2f} h")
    return shown


def _line(
    name: str, mine: np.ndarray, hours: np.ndarray, tally: Tally, failed: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    flags = {flag: int((tally.has(flag) & mine).sum()) for flag in FLAGS}
    line: dict[str, Any] = {"set": name, "utterances": int(mine.sum()), "hours": round(float(hours[mine].sum()), 4)}
    line["flags"] = {flag: n for flag, n in flags.items() if n}
    for measure in TOLD:
        values = tally.measures[measure][mine]
        values = values[np.isfinite(values)]
        for suffix, share in (("median", 0.5), ("p90", 0.9)):
            line[f"{measure}_{suffix}"] = rounded(float(np.quantile(values, share))) if len(values) else None
    left = {rule: mine & ~out for rule, out in failed.items()}
    line["rules"] = {
        rule: {"utterances": int(kept.sum()), "hours": round(float(hours[kept].sum()), 4)}
        for rule, kept in left.items()
    }
    return line


def _can(rule: Keep, tally: Tally) -> bool:
    return all(np.isfinite(tally.measures[LIMITS[limit][0]]).any() for limit in limits_of(rule))
