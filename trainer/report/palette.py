"""The colours of a page and its charts, by day and by night: charts are drawn in the first, and told the second."""

from collections.abc import Mapping

PAGE, CARD, INK, MUTED, GRID = "#f6f7f9", "#ffffff", "#1f2430", "#5c6473", "#e3e6eb"
ACCENT, ACCENT_SOFT, PALE = "#3157d5", "rgba(49,87,213,0.16)", "#b4c1f0"
BEFORE, WARM, WARM_SOFT, WARM_PALE = "#8b93a1", "#c2571a", "rgba(194,87,26,0.16)", "#ecc5ad"
GOOD, BAD, AMBER = "#1b7f4b", "#b3261e", "#9a6200"
SERIES = (ACCENT, WARM, GOOD, "#8e44ad", "#a67c00", "#0e7f91", BAD, "#6b7280")

NIGHT: Mapping[str, str] = {
    PAGE: "#121419",
    CARD: "#1b1f26",
    INK: "#e8eaee",
    MUTED: "#9ea7b6",
    GRID: "#30353f",
    ACCENT: "#8aa5ff",
    ACCENT_SOFT: "rgba(138,165,255,0.20)",
    PALE: "#48548a",
    BEFORE: "#7d8594",
    WARM: "#f0a068",
    WARM_SOFT: "rgba(240,160,104,0.20)",
    WARM_PALE: "#7a533a",
    GOOD: "#5fcf95",
    BAD: "#ff8f86",
    AMBER: "#e3b341",
    "#8e44ad": "#cf9be6",
    "#a67c00": "#dbc05a",
    "#0e7f91": "#5cc8d8",
    "#6b7280": "#a3abb9",
}
NAMES = {
    "page": PAGE, "card": CARD, "ink": INK, "muted": MUTED, "line": GRID, "accent": ACCENT, "soft": ACCENT_SOFT,
    "before": BEFORE, "warm": WARM, "good": GOOD, "bad": BAD, "amber": AMBER,
}  # fmt: skip


def variables() -> str:
    """The style sheet's `--ink`, `--card`, …: by day, by night, and on paper, which is always day."""
    day = ";".join(f"--{name}:{colour}" for name, colour in NAMES.items())
    night = ";".join(f"--{name}:{NIGHT[colour]}" for name, colour in NAMES.items())
    return f":root{{{day}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{night}}}}}\n"
