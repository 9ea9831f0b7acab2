"""The figures of a page, as plotly draws them: by day, at any width. Plotly itself is imported with the first."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.report import palette as p
from trainer.report.buckets import Bucket
from trainer.report.html import label
from trainer.report.series import Curve, smooth, thin

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HEIGHT = 290  # px, of a chart
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")


def loss_chart(named: Mapping[str, Curve], openings: Sequence[tuple[int, int]] = ()) -> "Figure":
    """Each loss raw and pale, and its running mean over it."""
    traces, colours = [], [(p.ACCENT, p.PALE), (p.WARM, p.WARM_PALE)]
    for n, (name, whole) in enumerate(named.items()):
        strong, pale = colours[n] if n < len(colours) else (p.SERIES[n % len(p.SERIES)], p.GRID)
        said = label(name)
        traces.append(_line(thin(whole), f"{said}, as logged", pale, width=1, showlegend=len(named) == 1))
        traces.append(_line(thin(smooth(whole)), f"{said}, running mean", strong, width=2.2))
    figure = _figure(traces, y={"title": "loss"})
    _log_where_wide(figure, [v for c in named.values() for v in c.values], 30)
    return _with_phases(figure, openings)


def curve_chart(
    named: Mapping[str, Curve], y_title: str, openings: Sequence[tuple[int, int]] = (), *, from_nought: bool = False
) -> "Figure":
    """Plain curves over the steps."""
    traces = [
        _line(thin(c), label(name), p.SERIES[n % len(p.SERIES)], showlegend=len(named) > 1)
        for n, (name, c) in enumerate(named.items())
    ]
    return _with_phases(
        _figure(traces, y={"title": y_title, "rangemode": "tozero" if from_nought else "normal"}), openings
    )


def dev_chart(
    runs: Mapping[str, Sequence[tuple[int, float, float | None, float | None]]], best: Mapping[str, int]
) -> "Figure":
    """(step, WER, low, high) of each run: with its interval, the model before training, and the best step."""
    traces: list[dict[str, Any]] = []
    values = [v for points in runs.values() for _, v, *_ in points]
    for n, (name, points) in enumerate(runs.items()):
        strong, soft = ((p.ACCENT, p.ACCENT_SOFT), (p.WARM, p.WARM_SOFT))[n % 2]
        said = label(name, 40) if len(runs) > 1 else "WER"
        spread = [(s, lo, hi) for s, _, lo, hi in points if lo is not None and hi is not None]
        if spread:
            floor = min(v for v in values if v > 0) / 3 if any(v > 0 for v in values) else 0.0
            xs = [s for s, *_ in spread]
            around = [max(floor, lo) for _, lo, _ in spread] + [max(floor, hi) for *_, hi in reversed(spread)]
            traces.append(
                {"type": "scatter", "x": xs + xs[::-1], "y": around, "fill": "toself", "fillcolor": soft,
                 "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": len(runs) == 1,
                 "name": "95 % interval"}
            )  # fmt: skip
        line = _line(Curve([x for x, *_ in points], [y for _, y, *_ in points]), said, strong, width=2.2)
        traces.append({**line, "mode": "lines+markers", "marker": {"size": 6, "color": strong}})
        first = [(s, y) for s, y, *_ in points if s == 0]
        if first:
            traces.append(
                _mark(
                    *first[0],
                    f"{said}: before training" if len(runs) > 1 else "before training",
                    "diamond-open",
                    p.BEFORE,
                    len(runs) == 1,
                )
            )
        found = [(s, y) for s, y, *_ in points if s == best.get(name)]
        if found:
            traces.append(
                _mark(
                    *found[0],
                    f"{said}: best" if len(runs) > 1 else "best",
                    "star",
                    p.WARM if len(runs) == 1 else strong,  # of two, each its own
                    len(runs) == 1,
                )
            )
    figure = _figure(traces, y={"title": "WER", "tickformat": ".3~%", "rangemode": "tozero"})
    _log_where_wide(figure, values, 8, percent=True)
    return figure


def bucket_curves(named: Mapping[str, Curve]) -> "Figure":
    """WER of a field's values over the steps, told apart by colour and mark."""
    traces = []
    for n, (name, whole) in enumerate(named.items()):
        colour = p.SERIES[n % len(p.SERIES)]
        line = _line(whole, label(name), colour, width=1.8)
        traces.append(
            {**line, "mode": "lines+markers", "marker": {"size": 6, "symbol": MARKS[n % len(MARKS)], "color": colour}}
        )
    figure = _figure(traces, y={"title": "WER", "tickformat": ".3~%", "rangemode": "tozero"})
    _log_where_wide(figure, [v for c in named.values() for v in c.values], 8, percent=True)
    return figure


def bucket_chart(buckets: Sequence[Bucket]) -> "Figure":
    """A line a bucket: its WER with the interval after training, a ring for before; beyond the edge, a number."""
    rows = list(enumerate(reversed(buckets)))
    edge = _edge(buckets)
    inside = [(y, b) for y, b in rows if b.before and (edge is None or b.before.wer <= edge)]
    traces: list[dict[str, Any]] = []
    for y, b in inside:
        assert b.before
        traces.append(
            {"type": "scatter", "x": [b.before.wer, b.after.wer], "y": [y, y], "mode": "lines", "hoverinfo": "skip",
             "line": {"color": p.GRID, "width": 2}, "showlegend": False}
        )  # fmt: skip
    if inside:
        traces.append(_dots([(y, b.before, b.value) for y, b in inside], "before training", p.BEFORE, "circle-open"))
    traces.append(_dots([(y, b.after, b.value) for y, b in rows], "after", p.ACCENT, "circle"))
    beyond = [(y, b) for y, b in rows if b.before and edge is not None and b.before.wer > edge]
    figure = _figure(traces, x={"title": "WER", "tickformat": ".3~%"}, height=_height(len(rows)))
    at_edge = [(y, b.before.wer) for y, b in beyond if b.before]
    figure.update_layout(
        annotations=[
            {"x": 1, "xref": "paper", "y": y, "text": f"{wer:.0%} ▸", "showarrow": False, "xanchor": "right",
             "font": {"size": 11, "color": p.MUTED}}
            for y, wer in at_edge
        ]
    )  # fmt: skip
    figure.update_xaxes(range=[0, edge * 1.3] if edge is not None else None, rangemode="tozero", showgrid=True)
    return _with_rows(figure, [f"{label(b.value, 22)}  " for _, b in rows])


def difference_chart(rows: Sequence[tuple[str, float, float, float, float, str]], names: tuple[str, str]) -> "Figure":
    """A forest, a line a set: (set, points of difference, low, high, p, said on hover); left of nought b is better."""
    lines = list(enumerate(reversed(rows)))
    a, b = map(label, names)
    kinds = (
        (f"{b} is better", p.GOOD, lambda points, chance: chance < 0.05 and points < 0),
        (f"{a} is better", p.BAD, lambda points, chance: chance < 0.05 and points > 0),
        ("may be chance", p.BEFORE, lambda points, chance: chance >= 0.05 or not points),
    )
    traces = []
    for name, colour, belongs in kinds:
        mine = [(y, r) for y, r in lines if belongs(r[1], r[4])]
        if not mine:
            continue
        traces.append(
            {"type": "scatter", "mode": "markers", "name": name, "x": [r[1] for _, r in mine],
             "y": [y for y, _ in mine], "marker": {"color": colour, "size": 9}, "hoverinfo": "text",
             "hovertext": [label(r[5], 200) for _, r in mine],
             "error_x": {"type": "data", "symmetric": False, "array": [r[3] - r[1] for _, r in mine],
                         "arrayminus": [r[1] - r[2] for _, r in mine], "color": colour, "thickness": 2, "width": 0}}
        )  # fmt: skip
    figure = _figure(
        traces, x={"title": "difference of WER, in points", "tickformat": ".3~f"}, height=_height(len(lines))
    )
    figure.update_layout(showlegend=True)
    figure.add_vline(x=0, line={"color": p.MUTED, "width": 1})
    figure.update_xaxes(showgrid=True)
    return _with_rows(figure, [f"{label(r[0])}  " for _, r in lines])


def histogram_chart(names: Sequence[str], counts: Sequence[float], x_title: str, y_title: str) -> "Figure":
    """A bar a bin, each as wide as the others however far apart its edges are."""
    at = list(range(len(names)))
    said = [f"{name}: {n:g}" for name, n in zip(names, counts, strict=True)]
    bars = {"type": "bar", "x": at, "y": list(counts), "hovertext": said, "hoverinfo": "text",
            "marker": {"color": p.ACCENT}, "showlegend": False}  # fmt: skip
    figure = _figure([bars], x={"title": label(x_title, 60)}, y={"title": label(y_title, 60)}, height=230)
    shown = at[:: math.ceil(len(at) / 6)]
    figure.update_xaxes(tickmode="array", tickvals=shown, ticktext=[names[i] for i in shown], ticks="", tickangle=0)
    return figure.update_layout(hovermode="closest", bargap=0.08, margin={"l": 56, "r": 8, "t": 10, "b": 44})


def _figure(
    traces: Sequence[Mapping[str, Any]],
    x: Mapping[str, Any] | None = None,
    y: Mapping[str, Any] | None = None,
    height: int = HEIGHT,
) -> "Figure":
    from plotly.graph_objects import Figure

    axis = {
        "gridcolor": p.GRID, "linecolor": p.GRID, "zeroline": False, "automargin": True, "ticks": "outside",
        "tickcolor": p.GRID, "ticklen": 4,
    }  # fmt: skip
    x = {"title": "step", "tickformat": "~s", "showgrid": False, **(x or {})}
    y = {"nticks": 6, "exponentformat": "e", **(y or {})}
    layout = {
        "template": {},
        "height": height,
        "margin": {"l": 56, "r": 18, "t": 34, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": p.MUTED},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": p.CARD, "bordercolor": p.GRID, "font": {"color": p.INK}},
        "legend": {
            "itemsizing": "constant",
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "bottom",
        },
        "xaxis": {**axis, **x, "title": {"text": x["title"], "standoff": 8}},
        "yaxis": {**axis, **y, "title": {"text": y.get("title", ""), "standoff": 8}},
    }
    return Figure({"data": list(traces), "layout": layout})


def _line(whole: Curve, name: str, colour: str, width: float = 1.8, showlegend: bool = True) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": list(whole.steps), "y": list(whole.values), "name": name,
        "line": {"color": colour, "width": width}, "showlegend": showlegend,
    }  # fmt: skip


def _mark(step: int, value: float, name: str, symbol: str, colour: str, showlegend: bool) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "x": [step], "y": [value], "name": name, "hoverinfo": "skip",
        "marker": {"symbol": symbol, "size": 14, "color": colour, "line": {"width": 2, "color": colour}},
        "showlegend": showlegend,
    }  # fmt: skip


def _dots(rows: Sequence[tuple[int, Any, str]], name: str, colour: str, symbol: str) -> dict[str, Any]:
    def beside(side: str) -> list[float]:
        return [abs(getattr(s, side) - s.wer) if s.has_interval else 0.0 for _, s, _ in rows]

    said = [
        f"{label(value)}, {name}: {s.wer:.2%}" + (f" ({s.low:.1%} to {s.high:.1%})" if s.has_interval else "")
        + f", {s.words} words, {s.utterances} utterances"
        for _, s, value in rows
    ]  # fmt: skip
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": [s.wer for _, s, _ in rows],
        "y": [y for y, *_ in rows], "hovertext": said, "hoverinfo": "text",
        "marker": {"size": 10, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "error_x": {"type": "data", "symmetric": False, "array": beside("high"), "arrayminus": beside("low"),
                    "color": colour, "thickness": 1.6, "width": 0},
    }  # fmt: skip


def _height(n_lines: int) -> int:
    """Of a chart with lines: px."""
    return 96 + (30 if n_lines <= 12 else 23) * n_lines


def _edge(buckets: Sequence[Bucket]) -> float | None:
    """Where the axis ends, if what was before training would press what is after into a corner."""
    after = max((b.after.high or b.after.wer for b in buckets), default=0.0)
    before = max((b.before.wer for b in buckets if b.before), default=0.0)
    return after if after > 0 and before > 2.5 * after else None


def _with_rows(figure: "Figure", names: Sequence[str]) -> "Figure":
    figure.update_yaxes(
        tickmode="array", tickvals=list(range(len(names))), ticktext=list(names), range=[-0.7, len(names) - 0.3],
        showgrid=False, ticks="", showline=False, tickfont={"color": p.INK},
    )  # fmt: skip
    return figure.update_layout(hovermode="closest", margin={"l": 8, "r": 18, "t": 34, "b": 44})


def _with_phases(figure: "Figure", openings: Sequence[tuple[int, int]]) -> "Figure":
    for number, step in openings:
        figure.add_vline(
            x=step, line={"color": p.MUTED, "width": 1, "dash": "dot"}, annotation_text=f"phase {number}",
            annotation_position="top right", annotation_font={"size": 11, "color": p.MUTED},
        )  # fmt: skip
    return figure


def _log_where_wide(figure: "Figure", values: Sequence[float], ratio: float, *, percent: bool = False) -> None:
    """A logarithmic axis where the start would hide the end."""
    if not values or min(values) <= 0 or max(values) < ratio * min(values):
        return
    low, high = math.log10(min(values)) - 0.12, math.log10(max(values)) + 0.12
    figure.update_yaxes(type="log", range=[low, high], title={"text": f"{figure.layout.yaxis.title.text} (log scale)"})
    if percent:
        shown = [t for t in TICKS if low <= math.log10(t) <= high]
        figure.update_yaxes(tickmode="array", tickvals=shown, ticktext=[f"{100 * t:g} %" for t in shown])
