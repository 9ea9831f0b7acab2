"""A report as it is read: a table for people, a line of JSON for programs, the worst utterances word by word."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.metrics.normalise import normaliser_named
from trainer.metrics.wer import aligned
from trainer.recipe.eval import Eval
from trainer.task import Report, Row

FEW = 30  # utterances: below, an interval says little, and a bucket is marked
WIDTH = 100
NAME = 26  # columns of a bucket's name
FOOTNOTE = f"  * fewer than {FEW} utterances: what is true of so few says little of others"


def table_lines(report: Report, before: Report | None = None) -> list[str]:
    """Every set of a report with its interval, buckets under the field they are of; at most 100 columns.

    `before`: the same utterances by the model before training, whose line comes first (law of every report).
    """
    head = f"  {'':<{NAME}} {'WER %':>7}  {'95 %':^13} {'CER %':>7} {'S':>6} {'D':>6} {'I':>6} {'words':>8} {'utts':>7}"
    lines, field = [head], ""
    if before is not None:
        lines += [_line("before training", t) for t in before.table if t["set"] == "all"]
    for told in report.table:
        name, eq, value = str(told["set"]).partition("=")
        if eq and name != field:
            field = name
            lines.append(f"  {cut(name, NAME)}")
        lines.append(_line(f"  {value or '(none)'}" if eq else name, told))
    if any(t["utterances"] < FEW for t in report.table):
        lines.append(FOOTNOTE)
    return lines


def speed_line(audio_s: float, wall_s: float) -> str:
    """How fast it was decoded: RTFx is seconds of audio by seconds on the wall."""
    return (
        f"  {audio_s:.1f} s of audio in {wall_s:.{1 if wall_s >= 10 else 2}f} s: RTFx {audio_s / max(wall_s, 1e-9):.1f}"
    )


def report_json(report: Report, provenance: Mapping[str, Any], **more: Any) -> str:
    """One line: metrics, table and provenance, to which that of the run is added."""
    whole = {**provenance, **report.provenance}
    told = {**more, "metrics": dict(report.metrics), "table": list(report.table), "provenance": whole}
    return json.dumps(told, ensure_ascii=False)


def worst_lines(rows: Iterable[Row], how: Eval, width: int = WIDTH) -> list[str]:
    """Each of these utterances with reference over hypothesis, what differs in [brackets]: *** where a word is not."""
    apply = normaliser_named(how.normaliser).apply
    lines: list[str] = []
    for row in rows:
        pairs = aligned(apply(row["reference"]).split(), apply(row["text"]).split())
        counts = "  ".join(f"{k} {sum(kind == k for kind, _, _ in pairs)}" for k in "SDI")
        where = ", ".join(f"{k}={v}" for k, v in row.get("buckets", {}).items())
        about = [f"{row['duration_s']:.1f} s" if "duration_s" in row else "", where, row.get("reason", "")]
        lines += [cut("  ".join([f"  {row['id']}  {counts}", *filter(None, about)]), width)]
        lines += _in_columns(pairs, width)
    return lines


def cut(text: str, width: int) -> str:
    """At most so many characters, an ellipsis for the rest."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _line(name: str, told: Mapping[str, Any]) -> str:
    spread = f"{100 * told['low']:.1f}–{100 * told['high']:.1f}" if told.get("unit", "nothing") != "nothing" else "–"
    mark = " *" if told["utterances"] < FEW else ""
    return (
        f"  {cut(name, NAME):<{NAME}} {100 * told['wer']:7.2f}  {spread:^13} {100 * told['cer']:7.2f} {told['S']:>6} "
        f"{told['D']:>6} {told['I']:>6} {told['N']:>8} {told['utterances']:>7}{mark}"
    )


def _in_columns(pairs: Sequence[tuple[str, str, str]], width: int) -> list[str]:
    """said and heard, a word under the other, broken into as many lines as they need."""
    lines: list[str] = []
    said, heard = "", ""
    for kind, one, other in pairs:
        one, other = (one, other) if kind == "=" else (f"[{one or '***'}]", f"[{other or '***'}]")
        n = max(len(one), len(other))
        if said and len(said) + 1 + n > width - 11:
            lines += [f"    said   {said}".rstrip(), f"    heard  {heard}".rstrip()]
            said = heard = ""
        said, heard = f"{said}{one:<{n}} ", f"{heard}{other:<{n}} "
    return [*lines, f"    said   {said}".rstrip(), f"    heard  {heard}".rstrip()]
