"""The page of two runs: is the second better, where, in which words, and what was done differently."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer.errors import BadData
from trainer.metrics.paired import Comparison, Difference, compare_rows
from trainer.recipe.eval import Eval
from trainer.report import overview
from trainer.report.alignment import align_rows
from trainer.report.buckets import FEW, in_order
from trainer.report.charts import curve_chart, dev_chart, difference_chart
from trainer.report.html import Markup, el, text
from trainer.report.parts import Figures, chart, section
from trainer.report.reading import ReadRun
from trainer.report.run_page import best_step, dev_points, normaliser_of
from trainer.report.secrecy import differences
from trainer.report.series import curve, keys, smooth
from trainer.report.shell import document
from trainer.report.sounds import Sounds
from trainer.report.tables import Cell, count, number, percent, table
from trainer.report.utterances import legend, pair_card, some_at_once
from trainer.task import Row

MOST_VALUES = 40  # of a field that are compared
MOST_CHANGED = 12  # utterances, in each direction
RESAMPLES = 1000


def pair_page(a: ReadRun, b: ReadRun) -> bytes:
    """The file."""
    figures: Figures = {}
    names = _names(a, b)
    compared, rows, why_not = _compared(a, b, names)
    head = Markup(_title(names) + _hero(compared, names, why_not))
    parts = [
        section("runs", "Both runs", _facts(a, b, names)),
        section("differences", "Where they differ", _differences(compared, names, figures)),
        section("curves", "Training", _curves(a, b, names, figures)),
        section("utterances", "What changed most", _changed(a, b, rows, compared, names)),
        section("recipes", "What was done differently", _recipes(a, b, names)),
    ]
    titles = ("Runs", "Differences", "Training", "Utterances", "Recipes")
    ids = ("runs", "differences", "curves", "utterances", "recipes")
    links = [(id, name) for id, name, part in zip(ids, titles, parts, strict=True) if part]
    return document(f"{names[0]} and {names[1]} – comparison", [head, *parts], links, figures)


def _compared(
    a: ReadRun, b: ReadRun, names: tuple[str, str]
) -> tuple[Comparison | None, tuple[list[Row], list[Row]], str]:
    """The comparison of what both headlines were made of, or why there is none."""
    told = [r.headline for r in (a, b)]
    if told[0] is None or told[1] is None:
        return None, ([], []), f"{names[0] if told[0] is None else names[1]} has measured nothing yet."
    try:
        rows = (told[0].read_rows(), told[1].read_rows())
    except BadData as e:
        return None, ([], []), f"{e.message}."
    for name, of in zip(names, rows, strict=True):
        if not of:
            return None, rows, f"The transcripts of {name} are not here: pull the run's reports."
    normaliser, _ = normaliser_of(told[0])
    if normaliser is None:
        return None, rows, normaliser_of(told[0])[1]
    how = Eval(normaliser=normaliser.name, every_steps=1, bootstrap=RESAMPLES)  # type: ignore[arg-type]
    try:
        return compare_rows(_few_buckets(rows[0]), rows[1], how, names), rows, ""
    except BadData as e:
        return None, rows, f"They cannot be compared: {e.message}."


def _few_buckets(rows: Sequence[Row]) -> list[Row]:
    """The rows with no more than so many values a field: each value costs a bootstrap, and a line."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for field, value in (row.get("buckets") or {}).items():
            counts.setdefault(field, Counter())[value] += 1
    kept = {field: {value for value, _ in of.most_common(MOST_VALUES)} for field, of in counts.items()}
    return [{**row, "buckets": {f: v for f, v in (row.get("buckets") or {}).items() if v in kept[f]}} for row in rows]


def _names(a: ReadRun, b: ReadRun) -> tuple[str, str]:
    """Two names that are not the same."""
    return (a.name, b.name) if a.name != b.name else (f"{a.name} (a)", f"{b.name} (b)")


def _title(names: tuple[str, str]) -> Markup:
    said = [el("span", text(n), cls=f"who {w}", style="font-size:1em") for n, w in zip(names, "ab", strict=True)]
    return el("header", el("p", "comparison of two runs", cls="over"), el("h1", said[0], " and ", said[1]), cls="top")


def _hero(compared: Comparison | None, names: tuple[str, str], why_not: str) -> Markup:
    if compared is None:
        return el("p", text(why_not), cls="note")
    whole = compared.differences[0]
    points = 100 * whole.difference
    if whole.p >= 0.05 or not points:
        verdict, kind = "No difference that chance alone would not make", "muted"
    else:
        verdict, kind = f"{names[1] if points < 0 else names[0]} is better", "good"
    left = [
        el("p", "difference of WER, ", text(names[1]), " − ", text(names[0]), cls="muted"),
        el(
            "div",
            _signed(points, 2),
            el("small", f"points (95 %: {_signed(100 * whole.low)} to {_signed(100 * whole.high)})"),
            cls="number",
        ),
        el("p", text(verdict), f", p {_p(whole.p)}", cls=f"was {kind}"),
    ]
    alike = whole.utterances - whole.better - whole.worse
    counted = f"{count(whole.better, 'utterance')} better in the second, {number(whole.worse)} worse"
    paired = f"{count(whole.words, 'word')} in {count(whole.utterances, 'utterance')} that both have, paired by id"
    right = [
        el("p", el("b", f"{100 * whole.wer_a:.2f} % "), el("span", text(names[0]), cls="a"), cls="was"),
        el("p", el("b", f"{100 * whole.wer_b:.2f} % "), el("span", text(names[1]), cls="b"), cls="was"),
        el("p", f"{counted}, {number(alike)} alike.", cls="muted"),
        el(
            "p",
            f"{paired}; resampled over {whole.unit}. Normaliser {compared.normaliser} ",
            el("code", compared.normaliser_sha256[:8]),
            ".",
            cls="muted small",
        ),
    ]
    if compared.only_a or compared.only_b:
        said = f"{count(compared.only_a, 'utterance')} in the first alone, {compared.only_b} in the second alone"
        right.append(el("p", f"{said}: left out.", cls="note"))
    return el("div", el("div", left), el("div", right), cls="hero")


def _facts(a: ReadRun, b: ReadRun, names: tuple[str, str]) -> list[Any]:
    left, right = dict(overview.facts_of(a)), dict(overview.facts_of(b))
    rows: list[list[Any]] = [
        ["state", Cell(text(a.state)), Cell(text(b.state))],
        *[["WER on " + s, x, y] for s, x, y in _headlines(a, b)],
    ]
    rows += [[k, Cell(left[k] or "–"), Cell(right.get(k) or "–")] for k in left if left[k] or right.get(k)]
    return [table(["", *names], rows, sortable=False)]


def _headlines(a: ReadRun, b: ReadRun) -> list[tuple[str, Cell, Cell]]:
    def cells(read: ReadRun) -> tuple[str, Cell]:
        told = read.headline
        score = overview.headline_of(told) if told else None
        if told is None or score is None:
            return "", Cell("–")
        spread = f" ({100 * (score.low or 0):.1f}–{100 * (score.high or 0):.1f})" if score.has_interval else ""
        return told.set, Cell(f"{100 * score.wer:.2f} %{spread}")

    (set_a, cell_a), (set_b, cell_b) = cells(a), cells(b)
    if not (set_a or set_b):
        return []
    return [(set_a if set_a == set_b else " / ".join(filter(None, (set_a, set_b))), cell_a, cell_b)]


def _differences(compared: Comparison | None, names: tuple[str, str], figures: Figures) -> list[Any]:
    """All and the fields of few values at once; of a field with many, those that differ most come first."""
    if compared is None:
        return []
    fields: dict[str, list[Difference]] = {}
    for d in compared.differences[1:]:
        fields.setdefault(d.set.partition("=")[0], []).append(d)
    few = [d for of in fields.values() if len(of) <= FEW for d in in_order(of, lambda d: d.set.partition("=")[2])]
    many = {field: sorted(of, key=lambda d: d.difference) for field, of in fields.items() if len(of) > FEW}
    note = (
        f"a is {names[0]}, b is {names[1]}; below nought b is better. The p of a bucket allows for how many buckets "
        "there are (Holm): where chance alone is at work, none of them is below 0.05 in 19 of 20 comparisons."
    )
    first = [compared.differences[0], *few]
    shown: list[Any] = [_forest(first, names, figures), el("p", text(note), cls="muted small"), _lines(first)]
    for field, of in many.items():
        folded = el("details", el("summary", "as a table"), _lines(of), cls="fold")
        shown += [el("h3", "By ", text(field)), _forest(of, names, figures), folded]
    return shown


def _forest(some: Sequence[Difference], names: tuple[str, str], figures: Figures) -> Markup:
    def said(d: Difference) -> str:
        rates = f"{100 * d.wer_a:.2f} % and {100 * d.wer_b:.2f} %"
        return f"{_set(d)}: {rates}, p {_p(_chance(d))}, {count(d.words, 'word')}, {count(d.utterances, 'utterance')}"

    drawn = [(_set(d), 100 * d.difference, 100 * d.low, 100 * d.high, _chance(d), said(d)) for d in some]
    each = "; ".join(f"{_set(d)} {_signed(100 * d.difference)}" for d in some[:12])
    alt = f"Differences of WER in points, {names[1]} minus {names[0]}: {each}."
    return chart(figures, difference_chart(drawn, names), "", alt)


def _lines(some: Sequence[Difference]) -> Markup:
    rows = [
        [Cell(text(_set(d))), percent(d.wer_a, 2), percent(d.wer_b, 2),
         Cell(_signed(100 * d.difference, 2), d.difference),
         Cell(f"{_signed(100 * d.low)} to {_signed(100 * d.high)}", d.high - d.low),
         Cell(_p(_chance(d)).removeprefix("= "), _chance(d)), d.better, d.worse, d.words, d.utterances]
        for d in some
    ]  # fmt: skip
    heads = ["set", "WER a", "WER b", "points", "95 %", "p", "better", "worse", "words", "utterances"]
    return table(heads, rows)


def _chance(d: Difference) -> float:
    """p of the whole corpus, or of a bucket among all buckets."""
    return d.p if d.set == "all" else d.p_holm


def _set(d: Difference) -> str:
    return d.set.replace("=", ": ", 1)


def _curves(a: ReadRun, b: ReadRun, names: tuple[str, str], figures: Figures) -> list[Any]:
    both = dict(zip(names, (a, b), strict=True))
    shown = []
    points = {name: dev_points(read) for name, read in both.items()}
    points = {name: p for name, p in points.items() if p}
    best = {name: step for name, read in both.items() if (step := best_step(read)) is not None}
    if points:
        said = "WER on dev over the steps: " + ", ".join(
            f"{n} ends at {100 * p[-1][1]:.1f} %" for n, p in points.items()
        )
        shown.append(chart(figures, dev_chart(points, best), "WER on dev", said))
    for key in [k for k in keys(a.lines, "loss/") if k in keys(b.lines, "loss/")][:2]:
        losses = {name: smooth(curve(read.lines, key)) for name, read in both.items()}
        said = f"Running means of {key} over the steps."
        shown.append(
            chart(figures, curve_chart(losses, key.removeprefix("loss/")), f"Loss: {key.removeprefix('loss/')}", said)
        )
    alike = len({_dev_set(read) for read in both.values()}) == 1
    note = "The two were not measured on the same dev set: their curves tell nothing of which is better."
    return [el("div", shown, cls="two"), *([] if alike else [el("p", note, cls="note")])] if shown else []


def _dev_set(read: ReadRun) -> tuple[Any, ...]:
    """What a run chose its best by, as far as hashes and numbers of words tell."""
    dev = read.results.dev if read.results else ()
    if not dev:
        return ()
    told = dev[-1]
    asked = ("data_sha256", "normaliser_sha256")
    return (*(told.provenance.get(k) for k in asked), told.metrics.get("words"), told.metrics.get("utterances"))


def _changed(
    a: ReadRun, b: ReadRun, rows: tuple[list[Row], list[Row]], compared: Comparison | None, names: tuple[str, str]
) -> list[Any]:
    told = a.headline
    normaliser = normaliser_of(told)[0] if told else None
    if compared is None or normaliser is None:
        return []
    heard_b = {x.row["id"]: x for x in align_rows(rows[1], normaliser)}
    both = [(x, heard_b[x.row["id"]]) for x in align_rows(rows[0], normaliser) if x.row["id"] in heard_b]
    both = sorted(both, key=lambda p: (p[1].errors - p[0].errors, str(p[0].row["id"])))
    better = [p for p in both if p[1].errors < p[0].errors][:MOST_CHANGED]
    worse = [p for p in reversed(both) if p[1].errors > p[0].errors][:MOST_CHANGED]
    if not (better or worse):
        return [el("p", "No utterance has more or fewer errors in one than in the other.")]
    sounds = Sounds(a.run.sounds, b.run.sounds)
    shown: list[Any] = [legend()]
    for title, some in (("Better in the second", better), ("Worse in the second", worse)):
        cards = [pair_card(x, y, names, sounds) for x, y in some]
        shown += [el("h3", title), some_at_once(cards) if cards else el("p", "none", cls="muted")]
    return [*shown, sounds.note()]


def _recipes(a: ReadRun, b: ReadRun, names: tuple[str, str]) -> list[Any]:
    if not (a.experiment and b.experiment):
        return []
    found = differences(dict(a.experiment), dict(b.experiment))
    rows = [[Cell(el("code", text(k))), Cell(_value(x)), Cell(_value(y))] for k, x, y in found]
    code = [(r.source.get("commit"), bool(r.source.get("dirty"))) for r in (a, b)]
    same = "The code is of the same commit." if code[0] == code[1] and code[0][0] and not code[0][1] else ""
    said = "The recipes are the same." if not rows else ""
    return [
        el("p", " ".join(filter(None, (said, same))), cls="muted") if said or same else None,
        table(["key", *names], rows, sortable=False) if rows else None,
    ]


def _value(value: Any) -> Markup:
    return el("span", "–", cls="muted") if value is None else el("code", text(str(value)[:300]))


def _signed(points: float, digits: int = 1) -> str:
    return f"{points:+.{digits}f}".replace("-", "−")


def _p(p: float) -> str:
    return f"≤ {2 / RESAMPLES:.3f}" if p <= 2 / RESAMPLES else f"= {p:.3f}"
