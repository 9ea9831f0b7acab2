"""A comparison as it is read: what was measured differently, a line a bucket, the utterances that changed most."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from trainer.compare import Side, differing
from trainer.metrics.paired import Comparison, Difference, Pair, most_changed
from trainer.tables import FEW, FOOTNOTE, cut

NAME = 28  # columns of a bucket's name
HEAD = (
    f"  {'':<{NAME}} {'A %':>6} {'B %':>6} {'B − A':>7}  {'95 %':^14} {'p':>7} {'better':>6} {'worse':>6} {'utts':>7}"
)


def comparison_lines(comparison: Comparison, pairs: Sequence[Pair], a: Side, b: Side, n_changed: int) -> list[str]:
    """For people, at most 100 columns. WER and differences are in per cent of the reference words."""
    lines = [
        f"A  {a.name} on {a.set}",
        f"B  {b.name} on {b.set}",
        f"normaliser {comparison.normaliser}; the same utterances, paired; below zero B is better",
    ]
    lines += [f"  differs: {d.what}: {d.a} | {d.b}" for d in differing(a, b)]
    if comparison.only_a or comparison.only_b:
        lines.append(f"  left out: {comparison.only_a} utterances that only A has, {comparison.only_b} that only B has")
    lines += ["", *_table(comparison.differences), "", _verdict(comparison.differences[0])]
    better, worse = most_changed(pairs, n_changed)
    for title, some in (("better in B:", better), ("worse in B:", worse)):
        if some:
            lines += [title, *(line for p in some for line in _said(p))]
    return lines


def comparison_json(comparison: Comparison, pairs: Sequence[Pair], a: Side, b: Side, n_changed: int) -> str:
    """For programs: one object on one line, all that `comparison_lines` says."""
    better, worse = most_changed(pairs, n_changed)
    told = {
        **asdict(comparison),
        "set_a": a.set,
        "set_b": b.set,
        "differs": [asdict(d) for d in differing(a, b)],
        "better": [asdict(p) | {"gained": p.gained} for p in better],
        "worse": [asdict(p) | {"gained": p.gained} for p in worse],
    }
    return json.dumps(told, ensure_ascii=False)


def _table(differences: Sequence[Difference]) -> list[str]:
    lines, field = [HEAD], ""
    for d in differences:
        name, eq, value = d.set.partition("=")
        if eq and name != field:
            field = name
            lines.append(f"  {cut(name, NAME)}")
        lines.append(_line(f"  {value or '(none)'}" if eq else name, d, d.p_holm if eq else d.p))
    if len(differences) > 1:
        lines.append(f"  p of a bucket is one among {len(differences) - 1} (Holm)")
    if any(d.utterances < FEW for d in differences):
        lines.append(FOOTNOTE)
    return lines


def _line(name: str, d: Difference, p: float) -> str:
    spread = f"{100 * d.low:+.2f} … {100 * d.high:+.2f}"
    mark = " *" if d.utterances < FEW else ""
    rates = f"{100 * d.wer_a:6.2f} {100 * d.wer_b:6.2f} {100 * d.difference:+7.2f}"
    return (
        f"  {cut(name, NAME):<{NAME}} {rates}  {spread:^14} {p:7.3f} {d.better:>6} {d.worse:>6} {d.utterances:>7}{mark}"
    )


def _verdict(d: Difference) -> str:
    """One sentence that claims no more than was seen."""
    if not (d.better or d.worse):
        return "no utterance has more errors in one than in the other"
    which = "B makes fewer errors" if d.difference < 0 else "A makes fewer errors"
    if d.p < 0.05 and d.difference:
        return f"{which}: {100 * abs(d.difference):.2f} points, p {_p(d.p)} over {d.unit}"
    return f"no difference that chance would not make: p {_p(d.p)} over {d.unit}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _said(p: Pair) -> list[str]:
    lines = [f"  {cut(p.id, 60)}  {p.errors_a.total} → {p.errors_b.total} errors of {p.errors_a.length} words"]
    return [*lines, f"    said  {p.reference}", f"    A     {p.text_a}", f"    B     {p.text_b}"]
