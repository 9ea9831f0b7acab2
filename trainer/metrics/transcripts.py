"""The report on a set of transcripts: what every speech recognition task scores its rows with."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.metrics.normalise import normaliser_named
from trainer.metrics.wer import Errors, count_errors, interval, pooled
from trainer.recipe.eval import Eval
from trainer.task import Report, Row


def score_transcripts(rows: Iterable[Row], how: Eval) -> Report:
    """Pooled error rates of rows that hold `id`, `text`, `reference`, `speaker` and `buckets` {name: value}.

    A row with a `reason` had no usable audio and counts as nothing heard: unreadable files never flatter a number.

    Metrics: `wer`, `cer`, `wer_raw` (no normaliser), with S, D, I and N, per corpus; `wer/<bucket>=<value>` beside.
    """
    rows = list(rows)
    normaliser = normaliser_named(how.normaliser)
    refs = [normaliser.apply(r["reference"]) for r in rows]
    hyps = [normaliser.apply(r["text"]) for r in rows]
    words = [count_errors(a.split(), b.split()) for a, b in zip(refs, hyps, strict=True)]
    letters = pooled([count_errors(list(a), list(b)) for a, b in zip(refs, hyps, strict=True)])
    raw = pooled([count_errors(r["reference"].split(), r["text"].split()) for r in rows])
    whole = pooled(words)
    low, high, unit = interval(words, [r.get("speaker", "") for r in rows], how.bootstrap)
    metrics = {
        "wer": whole.rate,
        "wer_low": low,
        "wer_high": high,
        "cer": letters.rate,
        "wer_raw": raw.rate,
        "substitutions": float(whole.substitutions),
        "deletions": float(whole.deletions),
        "insertions": float(whole.insertions),
        "words": float(whole.length),
        "utterances": float(len(rows)),
        "unusable": float(sum(1 for r in rows if r.get("reason"))),
    }
    table = [_line("all", words, unit=unit, low=low, high=high)]
    for name, value, found in _by_bucket(rows, words):
        metrics[f"wer/{name}={value}"] = pooled(found).rate
        table.append(_line(f"{name}={value}", found))
    provenance = {
        "normaliser": normaliser.name,
        "normaliser_rules": normaliser.rules,
        "normaliser_sha256": normaliser.sha256,
        "interval_over": unit,
    }
    return Report(metrics, table, provenance)


def _by_bucket(rows: Sequence[Row], words: Sequence[Errors]) -> Iterable[tuple[str, str, list[Errors]]]:
    found: dict[tuple[str, str], list[Errors]] = defaultdict(list)
    for row, errors in zip(rows, words, strict=True):
        for name, value in row.get("buckets", {}).items():
            found[name, value].append(errors)
    for (name, value), group in sorted(found.items()):
        yield name, value, group


def _line(name: str, errors: Sequence[Errors], **more: Any) -> dict[str, Any]:
    e = pooled(errors)
    return {
        "set": name,
        "wer": e.rate,
        "S": e.substitutions,
        "D": e.deletions,
        "I": e.insertions,
        "N": e.length,
        "utterances": len(errors),
        **more,
    }
