"""Utterances one by one: what was said over what was heard, with every error coloured and the sound beside it."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.report.alignment import Aligned, Frequent, Pair
from trainer.report.html import Markup, el, text
from trainer.report.sounds import Sounds

SHOWN_AT_ONCE = 10
KINDS = {"S": "mistaken", "D": "missed", "I": "added"}


def aligned_words(pairs: Sequence[Pair]) -> Markup:
    """Two lines, word under word; errors are told by colour, by a line, and in words to a screen reader."""
    return el(
        "div",
        [_pair(p) for p in pairs] or el("i", "nothing was said, nothing was heard"),
        cls="align",
        dir=_direction(pairs),
    )


def legend() -> Markup:
    """What the colours mean."""
    said = [el("span", el("span", kind, cls="w"), cls=f"pair {k}") for k, kind in KINDS.items()]
    return el("p", "Upper line: said. Lower line: heard. ", el("span", said, cls="align inline"), cls="muted legend")


def card(aligned: Aligned, sounds: Sounds, rank: int) -> Markup:
    """One utterance of one run."""
    row = aligned.row
    facts = [el("span", f"WER {_percent(aligned.wer)}", cls="chip strong"), *_chips(row)]
    return el(
        "article",
        el("header", el("b", f"{rank}. "), el("code", text(row.get("id", ""))), facts),
        el("div", aligned_words(aligned.pairs), cls="heard"),
        sounds.player(str(row.get("id", ""))),
        _as_written(("said", row.get("reference", "")), ("heard", row.get("text", ""))),
        cls="utterance",
    )


def pair_card(a: Aligned, b: Aligned, names: tuple[str, str], sounds: Sounds) -> Markup:
    """One utterance as two runs heard it."""
    row, change = a.row, b.errors - a.errors
    word = "fewer" if change < 0 else "more"
    said = f"{abs(change)} {word} error{'s' if abs(change) != 1 else ''} of {a.words} words"
    kind = "good" if change < 0 else "bad"
    return el(
        "article",
        el("header", el("code", text(row.get("id", ""))), el("span", said, cls=f"chip {kind}"), _chips(row)),
        [
            el("div", el("b", text(name), cls=f"who {which}"), aligned_words(x.pairs), cls="heard")
            for name, x, which in ((names[0], a, "a"), (names[1], b, "b"))
        ],
        sounds.player(str(row.get("id", ""))),
        _as_written(
            ("said", row.get("reference", "")), (names[0], a.row.get("text", "")), (names[1], b.row.get("text", ""))
        ),
        cls="utterance",
    )


def some_at_once(cards: Sequence[Markup]) -> Markup:
    """The first ones, the others behind a click."""
    more = cards[SHOWN_AT_ONCE:]
    rest = el("details", el("summary", f"{len(more)} more"), more, cls="more") if more else None
    return el("div", cards[:SHOWN_AT_ONCE], rest, cls="utterances")


def frequent_lists(found: Frequent) -> Markup:
    """Three short lists with bars."""
    arrow = " → "
    return el(
        "div",
        _bars("Mistaken", "S", [((text(a), arrow, text(b)), n) for (a, b), n in found.substituted]),
        _bars("Missed", "D", [(text(w), n) for w, n in found.deleted]),
        _bars("Added", "I", [(text(w), n) for w, n in found.inserted]),
        cls="three",
    )


def _direction(pairs: Sequence[Pair]) -> str:
    """That of what was said, whatever was heard."""
    letters = (unicodedata.bidirectional(c) for p in pairs for c in p.said)
    return "rtl" if next((k for k in letters if k in ("L", "R", "AL")), "L") != "L" else "ltr"


def _bars(title: str, kind: str, rows: Sequence[tuple[Any, int]]) -> Markup:
    if not rows:
        return el("div", el("h3", title), el("p", "none", cls="muted"))
    most = max(n for _, n in rows)
    lines = [
        el(
            "tr",
            el("td", what, dir="auto"),
            el("td", n, cls="n"),
            el("td", el("span", cls=f"bar {kind}", style=f"width:{100 * n / most:.0f}%"), cls="barcell"),
        )
        for what, n in rows
    ]
    return el("div", el("h3", title), el("table", el("tbody", lines), cls="bars"))


def _pair(p: Pair) -> Markup:
    if p.kind == "=":
        return el("span", el("span", p.said, cls="w"), el("span", p.heard, cls="w dim"), cls="pair")
    read = {"S": f"{p.said} heard as {p.heard}", "D": f"{p.said} missed", "I": f"{p.heard} added"}[p.kind]
    gap = el("span", "∅", cls="w gap")
    said = el("span", p.said, cls="w") if p.said else gap
    heard = el("span", p.heard, cls="w") if p.heard else gap
    return el("span", said, heard, cls=f"pair {p.kind}", title=read)


def _chips(row: dict[str, Any]) -> Iterable[Markup]:
    shown: list[Any] = []
    if isinstance(row.get("duration_s"), (int, float)):
        shown.append(f"{row['duration_s']:.1f} s")
    buckets = row.get("buckets") or {}
    if row.get("speaker") and "speaker" not in buckets:
        shown.append(("speaker ", text(row["speaker"])))
    shown += [(f"{k} ", text(v)) for k, v in buckets.items() if k != "duration"]
    return [el("span", s, cls="chip") for s in shown]


def _as_written(*texts: tuple[str, Any]) -> Markup:
    lines = [
        el("div", el("span", text(who), cls="muted"), " ", el("span", str(said) or "–", dir="auto"))
        for who, said in texts
    ]
    return el("details", el("summary", "as written"), lines, cls="raw")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
