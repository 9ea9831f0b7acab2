"""reports/data.json as tables and histograms, whatever is in it: what the sets are like, what was left out and why.

It is drawn by its shape, so that what is measured tomorrow is shown without a change here: numbers by name become bars,
objects by name a table, `edges` with `counts` a histogram.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report.buckets import in_order
from trainer.report.charts import histogram_chart
from trainer.report.html import Markup, el, text
from trainer.report.parts import Figures, chart
from trainer.report.tables import Cell, facts, number, table

MOST_LINES = 40
DEEPEST = 5
HISTOGRAM = ({"edges", "counts"}, {"edges", "n"}, {"bins", "counts"})
QUANTILE = re.compile(r"^(p\d+|q\d+(\.\d+)?|\d?\.\d+|min|max|mean|median|std)$")


def health_parts(health: Any, figures: Figures) -> list[Markup]:
    """Sections for a page; charts go to `figures`."""
    if isinstance(health, list) and all(isinstance(v, dict) for v in health):
        health = {str(v.get("set", v.get("name", n + 1))): v for n, v in enumerate(health)}
    if isinstance(health, dict) and set(health) <= {"sets", "schema"}:
        health = health.get("sets")
    if not isinstance(health, dict) or not health:
        return []
    sets = {str(k): v for k, v in health.items() if isinstance(v, dict)}
    plain = {k: v for k, v in health.items() if not isinstance(v, dict)}
    found = [*_shown(plain, "", figures, 1)] if plain else []
    if len(sets) > 1 and not any(_is_numbers(v) for v in sets.values()):
        found += _side_by_side(sets)
        sets = {k: {n: v for n, v in of.items() if not _is_plain(v)} for k, of in sets.items()}
    for name, of in sets.items():
        inner = _shown(of, name, figures, 1)
        if inner:
            found.append(el("details", el("summary", el("h3", text(name))), inner, open=True, cls="set"))
    return found


def _side_by_side(sets: Mapping[str, Mapping[str, Any]]) -> list[Markup]:
    """What is one value a set, as one table for all of them."""
    columns = list(dict.fromkeys(k for of in sets.values() for k, v in of.items() if _is_plain(v)))
    if not columns:
        return []
    rows = [[Cell(text(name)), *[of.get(c) for c in columns]] for name, of in sets.items()]
    return [table(["set", *map(said, columns)], rows)]


def _shown(value: Any, name: str, figures: Figures, depth: int) -> list[Markup]:
    """By its shape."""
    if value in (None, "", [], {}) or depth > DEEPEST:
        return []
    if isinstance(value, list):
        return _of_list(value, name)
    if not isinstance(value, dict):
        return [facts([(said(name), number(value))])]
    if _is_histogram(value):
        return [_histogram(value, name, figures)]
    if _is_numbers(value):
        return [_numbers(value, name)]
    if _is_objects(value):
        return [_objects(value, name)]
    plain = [(said(k), number(v)) for k, v in value.items() if _is_plain(v)]
    found: list[Markup] = [facts(plain)] if plain else []
    inner = []
    for key, child in value.items():
        if not _is_plain(child):
            shown = _shown(child, key, figures, depth + 1)
            if shown:
                wide = isinstance(child, list) and child and isinstance(child[0], dict)
                inner.append(el("div", el("h4", said(key)), shown, cls="wide" if wide else None))
    return [*found, el("div", inner, cls="grid")] if inner else found


def _of_list(values: Sequence[Any], name: str) -> list[Markup]:
    if all(isinstance(v, dict) for v in values):
        columns = list(dict.fromkeys(k for v in values for k in v))
        rows = [[v.get(c) if _is_plain(v.get(c)) else _short(v.get(c)) for c in columns] for v in values[:MOST_LINES]]
        return [table([said(c) for c in columns], rows), *_left_out(len(values))]
    return [el("p", ", ".join(str(v) for v in values[:MOST_LINES]), dir="auto"), *_left_out(len(values))]


def _objects(value: Mapping[str, Mapping[str, Any]], name: str) -> Markup:
    columns = list(dict.fromkeys(k for v in value.values() for k in v))
    items = in_order(list(value.items())[:MOST_LINES], lambda item: str(item[0]))
    rows = [[Cell(text(k)), *[v.get(c) for c in columns]] for k, v in items]
    return el("div", table([said(name), *map(said, columns)], rows), _left_out(len(value)))


def _numbers(value: Mapping[str, Any], name: str) -> Markup:
    """Quantiles in a row, counts as bars: the largest first, unless the names have an order of their own."""
    if all(QUANTILE.match(str(k)) for k in value):
        return table([str(k) for k in value], [list(value.values())], sortable=False)
    items = [(str(k), v) for k, v in value.items()]
    has_order = sum(any(c.isdigit() for c in k) for k, _ in items) * 2 > len(items)
    items = in_order(items, lambda item: item[0]) if has_order else sorted(items, key=lambda item: -item[1])
    most, total = max((v for _, v in items), default=0) or 1, sum(v for _, v in items) or 1
    rows = [
        el(
            "tr",
            el("td", text(k or "(empty)"), dir="auto"),
            el("td", number(v), cls="n"),
            el("td", f"{100 * v / total:.0f} %", cls="n muted"),
            el("td", el("span", cls="bar", style=f"width:{max(0.0, 100 * v / most):.0f}%"), cls="barcell"),
        )
        for k, v in items[:MOST_LINES]
    ]
    return el("div", el("table", el("tbody", rows), cls="bars"), _left_out(len(items)))


def _histogram(value: Mapping[str, Any], name: str, figures: Figures) -> Markup:
    edges = [float(x) for x in value.get("edges", value.get("bins", []))]
    counts = [float(x) for x in value.get("counts", value.get("n", []))]
    said_of = f"{sum(counts):,.0f} utterances by {said(name)}, between {edges[0]:g} and {edges[-1]:g}"
    return chart(figures, histogram_chart(edges, counts, said(name)), "", said_of)


def said(name: str) -> str:
    """A key as a person reads it: `duration_s` → `duration, s`."""
    name = str(name)
    if name.endswith("_s") and not name.endswith("per_s"):
        name = f"{name[:-2]}, s"
    return name.replace("_", " ")


def _left_out(n: int) -> list[Markup]:
    return [el("p", f"and {n - MOST_LINES} more", cls="muted")] if n > MOST_LINES else []


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{k}: {v}" for k, v in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(value if value is not None else "–")[:200]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_number, value.values()))


def _is_objects(value: Mapping[str, Any]) -> bool:
    """Several things of one kind: plain values under the same names in all of them."""
    of = list(value.values())
    if len(of) < 2 or not all(isinstance(v, dict) and v and all(map(_is_plain, v.values())) for v in of):
        return False
    common = set(of[0]).intersection(*of[1:])
    return 2 * len(common) >= max(map(len, of))


def _is_histogram(value: Mapping[str, Any]) -> bool:
    if not any(keys <= set(value) for keys in HISTOGRAM):
        return False
    edges, counts = value.get("edges", value.get("bins")), value.get("counts", value.get("n"))
    whole = all(isinstance(x, list) and all(map(_is_number, x)) for x in (edges, counts))
    return whole and len(edges) == len(counts) + 1 and len(counts) > 0  # type: ignore[arg-type]
