"""What pages are put together from: sections, and charts with a title and a text for who cannot see them."""

from typing import TYPE_CHECKING, Any

from trainer.report.html import Markup, el

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Figures = dict[str, "Figure"]  # by the id of the element that they are drawn into


def section(id: str, title: str, *children: Any) -> Markup | None:
    """A part of the page; None, and no part, where it has nothing to show."""
    shown = [c for c in children if c]
    return el("section", el("h2", title), shown, id=id) if shown else None


def chart(figures: Figures, figure: "Figure", title: str, said: str) -> Markup:
    """A place for a figure. `said` is what it shows, in a sentence: its text alternative, and what stands there without
    JavaScript."""
    id = f"chart-{len(figures) + 1}"
    figures[id] = figure
    place = el(
        "div",
        el("p", said, cls="muted alt"),
        id=id,
        cls="chart",
        role="img",
        aria_label=said,
        style=f"min-height:{figure.layout.height}px",
    )
    return el("figure", el("figcaption", title) if title else None, place)
