"""Tables of a page: numbers right, sortable by a click where there is JavaScript, whole without."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.report.buckets import Bucket, Score
from trainer.report.html import Markup, el, text


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that it is sorted by."""

    shown: Any
    value: float | None = None


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", *, sortable: bool = True) -> Markup:
    """A column whose cells are `Cell`s with a value, or numbers, stands right. The first column names the line.

    A column of which nothing is known in any line is left out.
    """
    known = [i for i in range(len(heads)) if i == 0 or not rows or any(_is_known(row[i]) for row in rows)]
    heads, rows = [heads[i] for i in known], [[row[i] for i in known] for row in rows]
    numeric = [any(_value(row[i]) is not None for row in rows) for i in range(len(heads))]

    def head(i: int, name: str) -> Markup:
        return el(
            "th", el("button", name, type="button") if sortable else name, scope="col", cls="n" if numeric[i] else None
        )

    def cell(i: int, value: Any) -> Markup:
        shown = value.shown if isinstance(value, Cell) else number(value)
        by = _value(value)
        kind = "n" if numeric[i] else None
        if i == 0:
            return el("th", shown, scope="row", cls=kind, data_v=by)
        return el("td", shown, cls=kind, data_v=by)

    body = [el("tr", [cell(i, v) for i, v in enumerate(row)]) for row in rows]
    whole = el(
        "table",
        el("caption", caption) if caption else None,
        el("thead", el("tr", [head(i, h) for i, h in enumerate(heads)])),
        el("tbody", body),
        cls="sortable" if sortable else None,
    )
    return el("div", whole, cls="scroll", tabindex=0)


def bucket_table(field: str, buckets: Sequence[Bucket]) -> Markup:
    """One field: WER with interval after training and before, characters, kinds of errors, size."""
    with_before = any(b.before for b in buckets)
    heads = [field, "words", "utts", "WER", "95 %", *(["before"] if with_before else []), "CER", "S", "D", "I"]
    rows = []
    for b in buckets:
        s = b.after
        before = [percent(b.before.wer if b.before else None)] if with_before else []
        rows.append(
            [Cell(text(b.value or "(empty)")), s.words, s.utterances, percent(s.wer, 2), spread(s), *before,
             percent(s.cer), s.substitutions, s.deletions, s.insertions]
        )  # fmt: skip
    return table(heads, rows)


def percent(share: float | None, digits: int = 1) -> Cell:
    """`12.4 %`; a dash for what is not known."""
    return Cell("–") if share is None else Cell(f"{100 * share:.{digits}f} %", share)


def spread(s: Score) -> Cell:
    """`11.1–13.8`, in percent."""
    return Cell(f"{100 * s.low:.1f}–{100 * s.high:.1f}", s.high - s.low) if s.has_interval else Cell("–")  # type: ignore[operator]


def number(value: Any) -> Any:
    """Whole numbers with spaces at thousands, others short; a dash for None; anything else as text of the data."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return number(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return value if isinstance(value, Markup) else text(value)


def count(n: int, one: str) -> str:
    """`1 utterance`, `2 utterances`."""
    return f"{number(n)} {one}{'' if n == 1 else 's'}"


def facts(pairs: Sequence[tuple[str, Any]]) -> Markup:
    """A list of names and values; those without a value are not there."""
    shown = [el("div", el("dt", name), el("dd", value)) for name, value in pairs if value not in (None, "", [])]
    return el("dl", shown, cls="facts")


def _is_known(cell: Any) -> bool:
    shown = cell.shown if isinstance(cell, Cell) else cell
    return shown is not None and not (isinstance(shown, str) and shown == "–")


def _value(cell: Any) -> float | None:
    value = cell.value if isinstance(cell, Cell) else cell
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
