"""The report on a set of transcripts: what every speech recognition task scores its rows with."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.metrics.normalise import normaliser_named
from trainer.metrics.wer import count_errors, interval, pooled
from trainer.recipe.eval import Eval
from trainer.task import Report, Row


def score_transcripts(rows: Iterable[Row], how: Eval) -> Report:
    """Pooled error rates of rows that hold `id`, `text`, `reference`, `speaker` and `buckets` {name: value}.

    A row with a `reason` had no usable audio and counts as nothing heard: unreadable files never flatter a number.

    Metrics: `wer`, `cer`, `wer_raw` (no normaliser), with S, D, I and N, per corpus; `wer/<bucket>=<value>` beside. The
    table has a line for all and one a bucket, each with its 95 % interval and what that was drawn from.
    """
    rows = list(rows)
    normaliser = normaliser_named(how.normaliser)
    refs = [normaliser.apply(r["reference"]) for r in rows]
    hyps = [normaliser.apply(r["text"]) for r in rows]
    words = [count_errors(a.split(), b.split()) for a, b in zip(refs, hyps, strict=True)]
    # a normaliser may leave a space at an end, which is no character that anybody said
    letters = [count_errors(list(a.strip()), list(b.strip())) for a, b in zip(refs, hyps, strict=True)]
    raw = pooled([count_errors(r["reference"].split(), r["text"].split()) for r in rows])
    speakers = [r.get("speaker", "") for r in rows]

    def line(name: str, at: Sequence[int]) -> dict[str, Any]:
        these = [words[i] for i in at]
        low, high, unit = interval(these, [speakers[i] for i in at], how.bootstrap)
        e = pooled(these)
        return {
            "set": name,
            "wer": e.rate,
            "cer": pooled([letters[i] for i in at]).rate,
            "S": e.substitutions,
            "D": e.deletions,
            "I": e.insertions,
            "N": e.length,
            "utterances": len(at),
            "unit": unit,
            "low": low,
            "high": high,
        }

    whole = line("all", range(len(rows)))
    buckets = [line(f"{name}={value}", at) for name, value, at in _by_bucket(rows)]
    metrics = {
        "wer": whole["wer"],
        "wer_low": whole["low"],
        "wer_high": whole["high"],
        "cer": whole["cer"],
        "wer_raw": raw.rate,
        "substitutions": float(whole["S"]),
        "deletions": float(whole["D"]),
        "insertions": float(whole["I"]),
        "words": float(whole["N"]),
        "utterances": float(len(rows)),
        "unusable": float(sum(1 for r in rows if r.get("reason"))),
        **{f"wer/{b['set']}": b["wer"] for b in buckets},
    }
    provenance = {
        "normaliser": normaliser.name,
        "normaliser_rules": normaliser.rules,
        "normaliser_sha256": normaliser.sha256,
        "interval_over": whole["unit"],
    }
    return Report(metrics, [whole, *buckets], provenance)


def _by_bucket(rows: Sequence[Row]) -> Iterable[tuple[str, str, list[int]]]:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        for name, value in row.get("buckets", {}).items():
            found[name, value].append(i)
    for (name, value), at in sorted(found.items()):
        yield name, value, at
