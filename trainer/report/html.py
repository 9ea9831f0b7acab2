"""HTML out of values: whatever is not `Markup` is escaped, so that no text of the data can become part of a page."""

import html
import json
import math
from collections.abc import Iterable
from typing import Any


class Markup(str):
    """Text that is HTML already."""


VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})
# what ends a script, or a line within it for older readers
NOT_IN_SCRIPTS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def el(tag: str, *children: Any, **attributes: Any) -> Markup:
    """`<tag class="x">children</tag>`. `cls` is class, `_` is `-`; None and False leave an attribute out."""
    said = "".join(_attribute(k, v) for k, v in attributes.items() if v is not None and v is not False)
    if tag in VOID:
        return Markup(f"<{tag}{said}>")
    return Markup(f"<{tag}{said}>{join(children)}</{tag}>")


def join(children: Any) -> Markup:
    """One piece of HTML out of texts (escaped), markup (as it is), and lists of both; None is nothing."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(html.escape(_clean(children)))
    if isinstance(children, Iterable):
        return Markup("".join(join(c) for c in children))
    return Markup(html.escape(_clean(str(children))))


def text(value: Any) -> Markup:
    """Text of the data: in its own direction, whatever stands around it."""
    return el("bdi", str(value))


def json_for_script(value: Any) -> Markup:
    """JSON that may stand between `<script>` and `</script>`; what is not finite becomes null."""
    told = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(_clean(told).translate(NOT_IN_SCRIPTS))


def label(value: Any, most: int = 28) -> str:
    """Text of the data as a chart may show it: plotly reads tags and entities in its texts."""
    said = _clean(str(value))
    return html.escape(said if len(said) <= most else said[: most - 1] + "…", quote=False)


def _attribute(name: str, value: Any) -> str:
    name = "class" if name == "cls" else name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(_clean(str(value)))}"'


def _clean(said: str) -> str:
    """Without what no page can hold: control characters, and halves of characters."""
    if said.isprintable():
        return said
    kept = "".join(c if c in "\n\t" or ord(c) >= 32 else "\ufffd" for c in said)
    return kept.encode("utf-8", "replace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
