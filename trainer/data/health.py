"""What the sets of a training are like, and what was left out of them and why: numbers for the report."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from remote.files import read_json, write_json
from remote.rundir import RunDir
from trainer.data.audited import side_of
from trainer.data.buckets import COLUMNS, codes_of, text_lengths
from trainer.data.manifest import Manifest
from trainer.data.places import data_root
from trainer.data.sets import DataSets, SourceTold
from trainer.recipe.base import Recipe
from trainer.task import Bad

log = logging.getLogger(__name__)

EDGES_S = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)  # of the histogram; the last bin is open
SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
MOST_META = 2_000_000  # rows whose meta is parsed for a table: about 3 s; beyond, what is no column is passed by
MOST_VALUES = 50  # of a field
MOST_REASONS = 20


def health(recipe: Recipe, data: DataSets) -> dict[str, Any]:
    """Sizes, lengths, speed and buckets of each set, and what each source's limits left out. From columns alone."""
    sets = [("train", data.train), ("dev", data.dev), ("test", data.test)]
    return {
        "sets": [_of_set(name, m, recipe.eval.buckets) for name, m in sets if m is not None],
        "sources": [_of_source(told) for told in data.sources],
    }


def write_health(run: RunDir, recipe: Recipe, data: DataSets) -> None:
    """`reports/data.json`, by rank 0 as a training begins."""
    run.reports.mkdir(parents=True, exist_ok=True)
    write_json(run.data_health, health(recipe, data))


def reasons_of(bad: Sequence[Bad]) -> dict[str, int]:
    """How often each kind of reason, the most common first."""
    return dict(Counter(kind_of(b.reason) for b in bad).most_common(MOST_REASONS))


def kind_of(reason: str) -> str:
    """A reason without the names and numbers in it: what many rows have in common."""

    def is_of_one(word: str) -> bool:
        return "/" in word or "." in word.strip(".") or any(c.isdigit() for c in word)

    return " ".join("…" if is_of_one(word) else word for word in reason.split())


def _of_set(name: str, manifest: Manifest, fields: Sequence[str]) -> dict[str, Any]:
    durations_s = manifest.column("duration_s")
    lengths = text_lengths(manifest)
    counts, _ = np.histogram(durations_s, [*EDGES_S, np.inf])
    lines, passed_by = _buckets(manifest, durations_s, fields)
    told: dict[str, Any] = {
        "set": name,
        "utterances": len(manifest),
        "hours": round(manifest.hours, 4),
        "speakers": _n_speakers(manifest),
        "sha256": manifest.sha256,
        "durations_s": {"edges": list(EDGES_S), "utterances": [int(n) for n in counts]},
        "chars_per_s": _quantiles(lengths / np.maximum(durations_s, 1e-3)),
        "duration_s": _quantiles(durations_s),
        "buckets": lines,
        "quarantined": {"utterances": len(manifest.bad), "reasons": reasons_of(manifest.bad)},
    }
    if passed_by:
        told["passed_by"] = f"{', '.join(passed_by)}: too many rows to look into ({len(manifest)}, beyond {MOST_META})"
    return told


def _buckets(
    manifest: Manifest, durations_s: np.ndarray, fields: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A line a value of each field, and the fields that would cost too much."""
    lines, passed_by = [], []
    for name in fields:
        if name not in (*COLUMNS, "duration") and len(manifest) > MOST_META:
            passed_by.append(name)
            continue
        codes, values = codes_of(manifest, name)
        n = np.bincount(codes, minlength=len(values))
        seconds = np.bincount(codes, weights=durations_s, minlength=len(values))
        common = sorted(np.argsort(-n, kind="stable")[:MOST_VALUES], key=lambda c: values[c])
        for code in (c for c in common if n[c]):
            line = {"set": f"{name}={values[code]}", "utterances": int(n[code])}
            lines.append({**line, "hours": round(float(seconds[code]) / 3600, 4)})
    return lines, passed_by


def _n_speakers(manifest: Manifest) -> int:
    codes, values = manifest.codes("speaker")
    return sum(1 for c in np.unique(codes) if values[c])


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, SHARES)
    return {f"p{100 * share:g}": round(float(q), 3) for share, q in zip(SHARES, found, strict=True)}


def _of_source(told: SourceTold) -> dict[str, Any]:
    line: dict[str, Any] = {
        "source": told.name,
        "utterances": told.utterances,
        "hours": round(told.hours, 4),
        "used": told.used,
        "used_hours": round(told.used_h, 4),
        "filtered": dict(told.filtered),
        "rules": [],
    }
    if told.keep is not None:
        line["audit_sha256"] = told.keep.audit_sha256
        line["rules"] = [{**dataclasses.asdict(r), "left_out_h": round(r.left_out_h, 4)} for r in told.keep.rules]
        line["audit"] = _summary(told.keep.audit)
    return line


def _summary(audit: str) -> Mapping[str, Any]:
    """What the audit found, less what only its own reader needs."""
    whole = read_json(side_of(data_root() / audit)) or {}
    return {k: v for k, v in whole.items() if k not in ("provenance", "audit_sha256")}
