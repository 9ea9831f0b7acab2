"""A page around its parts: style, charts, and a rule for the browser that nothing else may run or be fetched."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from trainer.report.html import Markup, el, json_for_script
from trainer.report.palette import NIGHT, variables
from trainer.report.parts import Figures


def document(title: str, parts: Sequence[Markup | None], links: Sequence[tuple[str, str]], figures: Figures) -> bytes:
    """The whole file."""
    scripts = [_plotly(), _own("page.js")] if figures else [_own("page.js")]
    # the page may run these two scripts and no other, and ask nobody for anything: whatever its data says
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline'; "
        "img-src data: blob:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    told = {"figures": {k: f.to_plotly_json() for k, f in figures.items()}, "night": dict(NIGHT)}
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="robots", content="noindex"),
        el("title", title),
        el("style", Markup(variables() + _own("style.css"))),
    )
    without = el("noscript", el("p", "Charts need JavaScript; the tables hold the same numbers.", cls="note"))
    nav = el("nav", [el("a", name, href=f"#{id}") for id, name in links], aria_label="parts of the page")
    body = el(
        "body",
        el("main", parts[0], nav, without, list(parts[1:])),
        el("script", json_for_script(told), type="application/json", id="told"),
        [el("script", Markup(s)) for s in scripts],
    )
    return ("<!doctype html>\n" + el("html", head, body, lang="en") + "\n").encode("utf-8", "replace")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _own(name: str) -> str:
    return files("trainer.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
