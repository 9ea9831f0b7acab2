"""reports/data.json as tables and histograms, whatever is in it: what the sets are like, what was left out and why.

It is drawn by its shape, so that what is measured tomorrow is shown without a change here: things of one kind stand
side by side in a table, counts become bars, `edges` with as many numbers a histogram.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from trainer.report.buckets import in_order
from trainer.report.charts import histogram_chart
from trainer.report.html import Markup, el, text
from trainer.report.parts import Figures, chart
from trainer.report.tables import Cell, facts, number, table

MOST_LINES = 40
DEEPEST = 6
NAMING = ("set", "name", "source", "rule", "manifest")  # keys that say which thing of a list it is
QUANTILE = re.compile(r"^(p\d+(\.\d+)?|q\d+(\.\d+)?|\d?\.\d+|min|max|mean|median|std)$")
HASH = re.compile(r"^[0-9a-f]{40,}$")


def health_parts(health: Any, figures: Figures) -> list[Markup]:
    """Pieces for a section of a page; charts go to `figures`."""
    if not isinstance(health, dict):
        health = {"sets": health}
    of_sets = health and all(isinstance(v, dict) for v in health.values()) and "sets" not in health
    groups = {"sets": health} if of_sets else health
    found: list[Markup] = []
    for name, group in groups.items():
        members = _members(group)
        if members:
            found += _group(said(name), members, figures)
        else:
            found += _shown(group, name, figures, 1)
    return found


def _members(group: Any) -> dict[str, Mapping[str, Any]]:
    """Things by name, each an object: of a list by the key that names them."""
    if isinstance(group, list) and group and all(isinstance(v, dict) for v in group):
        key = next((k for k in NAMING if all(_is_plain(v.get(k)) and v.get(k) is not None for v in group)), "")
        named: dict[str, Mapping[str, Any]] = {}
        for n, v in enumerate(group, start=1):
            name = str(v[key]) if key else str(n)
            rest = {k: x for k, x in v.items() if k != key}
            named[name if name not in named else f"{name} ({n})"] = rest
        return named
    if isinstance(group, dict) and group and all(isinstance(v, dict) and v for v in group.values()):
        return {str(k): v for k, v in group.items()}
    return {}


def _group(title: str, members: Mapping[str, Mapping[str, Any]], figures: Figures) -> list[Markup]:
    """What is one value each as a table of all of them; then what is more, each by itself."""
    columns = list(dict.fromkeys(k for of in members.values() for k, v in of.items() if _is_plain(v)))
    found: list[Markup] = [el("h3", title)]
    if columns:
        rows = [[Cell(text(name)), *[_cell(of.get(c)) for c in columns]] for name, of in members.items()]
        found.append(table(["", *map(said, columns)], rows))
    first = next(iter(members))  # of the others a reader may want to know
    for name, of in members.items():
        more = {k: v for k, v in of.items() if not _is_plain(v)}
        inner = _shown(more, name, figures, 1) if more else []
        if inner:
            found.append(el("details", el("summary", el("b", text(name))), inner, open=name == first, cls="set"))
    return found


def _shown(value: Any, name: str, figures: Figures, depth: int) -> list[Markup]:
    """By its shape."""
    if value in (None, "", [], {}) or depth > DEEPEST:
        return []
    if isinstance(value, list):
        return _of_list(value, name)
    if not isinstance(value, dict):
        return [facts([(said(name), _cell(value).shown)])]
    drawn = _histogram(value, name, figures)
    if drawn:
        return [drawn]
    if _is_numbers(value):
        return [_numbers(value)]
    if _is_table(value):
        return _of_list([{said(name): k, **v} for k, v in in_order(value.items(), lambda item: str(item[0]))], name)
    plain = [(said(k), _cell(v).shown) for k, v in value.items() if _is_plain(v) and v is not None]
    inner = []
    for key, child in value.items():
        shown = [] if _is_plain(child) else _shown(child, key, figures, depth + 1)
        if shown:
            inner.append(el("div", el("h4", said(key)), shown, cls="wide" if _is_wide(child) else None))
    return [*([facts(plain)] if plain else []), *([el("div", inner, cls="grid")] if inner else [])]


def _of_list(values: Sequence[Any], name: str) -> list[Markup]:
    if not all(isinstance(v, dict) for v in values):
        return [el("p", ", ".join(str(v) for v in values[:MOST_LINES]), dir="auto"), *_left_out(len(values))]
    fields = _by_field(values)
    if fields:
        wide = any(len(v) > 4 or any(not _is_plain(x) for x in v.values()) for v in values)
        shown = [el("div", _lines(of)) for of in fields.values()]
        return [el("div", shown, cls="" if wide else "grid")]
    return _lines(values)


def _lines(values: Sequence[Mapping[str, Any]]) -> list[Markup]:
    columns = list(dict.fromkeys(k for v in values for k in v))
    rows = [[_cell(v.get(c)) for c in columns] for v in values[:MOST_LINES]]
    return [table([said(c) for c in columns], rows), *_left_out(len(values))]


def _by_field(values: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Lines like {"set": "age=3-4", …} by their field, {"age": [{"age": "3-4", …}]}; {} where none is such a line."""
    fields: dict[str, list[dict[str, Any]]] = {}
    for v in values:
        field, is_bucket, value = str(v.get("set", "")).partition("=")
        field, value = (field, value) if is_bucket else ("", field)
        fields.setdefault(field, []).append({field or "set": value, **{k: x for k, x in v.items() if k != "set"}})
    if set(fields) <= {""}:
        return {}
    return {f: in_order(of, lambda line: str(next(iter(line.values())))) for f, of in fields.items()}


def _numbers(value: Mapping[str, Any]) -> Markup:
    """Quantiles in a row, counts as bars: the largest first, unless the names have an order of their own."""
    if all(QUANTILE.match(str(k)) for k in value):
        return table([str(k) for k in value], [list(value.values())], sortable=False)
    items = [(str(k), v) for k, v in value.items()]
    has_order = sum(any(c.isdigit() for c in k) for k, _ in items) * 2 > len(items)
    items = in_order(items, lambda item: item[0]) if has_order else sorted(items, key=lambda item: -item[1])
    most = max((v for _, v in items), default=0)
    rows = [
        el(
            "tr",
            el("td", text(k or "(empty)"), dir="auto"),
            el("td", number(v), cls="n"),
            el("td", _bar(v / most) if most > 0 else None, cls="barcell"),
        )
        for k, v in items[:MOST_LINES]
    ]
    return el("div", el("table", el("tbody", rows), cls="bars"), _left_out(len(items)))


def _bar(share: float) -> Markup:
    return el("span", cls="bar", style=f"width:{max(0.0, min(1.0, share)):.0%}")


def _histogram(value: Mapping[str, Any], name: str, figures: Figures) -> Markup | None:
    """A chart of an object with `edges` and as many counts, or one less: with as many, the last has no upper edge."""
    others = [k for k in value if k != "edges"]
    if len(others) != 1 or "edges" not in value:
        return None
    edges, counts = value["edges"], value[others[0]]
    if not all(isinstance(x, list) and x and all(map(_is_number, x)) for x in (edges, counts)):
        return None
    if len(counts) not in (len(edges) - 1, len(edges)):
        return None
    names = [f"{a:g}–{b:g}" for a, b in pairwise(edges)] + [f"{edges[-1]:g}+"]
    what = said(str(others[0])) if others[0] != "counts" else "utterances"
    alt = f"{sum(counts):,.0f} {what} by {said(name)}: " + ", ".join(
        f"{n:g} of {r}" for n, r in zip(counts, names, strict=False)
    )
    return chart(figures, histogram_chart(names[: len(counts)], counts, said(name), what), "", alt)


def said(name: Any) -> str:
    """A key as a person reads it: `duration_s` → `duration, s`."""
    name = str(name)
    for unit in ("s", "h"):
        if name.endswith(f"_{unit}") and not name.endswith(f"per_{unit}"):
            name = f"{name[:-2]}, {unit}"
    return name.replace("_", " ").strip()


def _cell(value: Any) -> Cell:
    if isinstance(value, str) and HASH.match(value):
        return Cell(el("code", value[:10], title=value))
    if _is_plain(value):
        return Cell(number(value), float(value) if _is_number(value) else None)
    return Cell(text(_in_words(value)[:300] or "–"))


def _in_words(value: Any) -> str:
    """`age 3-4, 5-7; noise high` of {"age": ["3-4", "5-7"], "noise": "high"}."""
    if isinstance(value, dict):
        return "; ".join(f"{k} {_in_words(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return str(value)


def _left_out(n: int) -> list[Markup]:
    return [el("p", f"and {n - MOST_LINES} more", cls="muted")] if n > MOST_LINES else []


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_number, value.values()))


def _is_wide(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and len(value[0]) > 2


def _is_table(value: Mapping[str, Any]) -> bool:
    """Several things of one kind: plain values under the same names in most of them."""
    of = list(value.values())
    if len(of) < 2 or not all(isinstance(v, dict) and v and all(map(_is_plain, v.values())) for v in of):
        return False
    common = set(of[0]).intersection(*of[1:])
    return 2 * len(common) >= max(map(len, of))
