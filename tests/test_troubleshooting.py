"""The page of messages quotes what the code says."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
GAP = "…"
ERRORS = {
    *("PodctlError", "BadInput", "NoRights", "NoCapacity", "ProviderUnclear", "Unreachable", "LimitReached"),
    *("Busy", "MissingHere", "MissingThere", "Saved", "Cancelled", "OfferRefused"),
}
# Without a hint and not on the page: their own words say all, or they are the answer to a person's own act.
SPEAK_FOR_THEMSELVES = (
    "nothing was rented",
    "TensorBoard ended by itself",
    "is nested too deeply to be an experiment",
    "is no pattern",
    "can't be read as UTF-8 text",
    "can't be run: ",
    "can't be read: ",
)


def quoted() -> list[str]:
    """The messages of the page: what stands in backticks in each table's first column."""
    rows = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    return [message for cell in rows for message in re.findall(r"`([^`]+)`", cell)]


@functools.cache
def texts() -> list[str]:
    """Every text in the code, `…` for what is filled in."""
    found = []
    for folder in ("podctl", "remote", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            comments = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}  # docstrings say nothing
            found += [whole(node) for node in ast.walk(tree) if id(node) not in comments]
        found += [p.read_text(encoding="utf-8") for p in sorted((ROOT / folder).rglob("*.sh"))]
    return [t for t in found if t]


def whole(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{[^{}]*\}", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(whole(v) if isinstance(v, ast.Constant) else f"{GAP}{inner(v)}" for v in node.values)
    return ""


def inner(value: ast.AST) -> str:
    """The texts that a filled-in part may stand for: `{'is lost' if … else …}`."""
    return "".join(n.value + GAP for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def says(text: str, message: str) -> bool:
    """Whether the code's text holds the message's words in their order."""
    words = [re.escape(part.strip()) for part in message.split(GAP) if part.strip(" .,:→")]
    return bool(words) and re.search(".*".join(words), text, re.S) is not None


@pytest.mark.parametrize("message", quoted())
def test_every_message_on_the_page_is_one_of_the_code(message: str) -> None:
    candidates = [message, *(message.split(" → ")[:1])]
    assert any(says(text, m) for m in candidates for text in texts()), f"nothing says: {message}"


def test_every_error_says_what_to_type_or_is_on_the_page() -> None:
    known = [*quoted(), *SPEAK_FOR_THEMSELVES]
    silent = []
    for path in sorted((ROOT / "podctl").rglob("*.py")):
        for message in without_hint(ast.parse(path.read_text(encoding="utf-8"))):
            if message.strip(GAP) and not any(says(message, k) or says(k, message) for k in known):
                silent.append(f"{path.relative_to(ROOT)}: {message}")
    assert silent == [], "give it a hint, or a line in docs/troubleshooting.md"


def without_hint(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        is_error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
        if is_error and len(node.args) == 1 and not node.keywords:
            yield whole(node.args[0])


def test_the_check_can_fail() -> None:
    assert not any(says(text, "a sentence that nobody ever wrote") for text in texts())
    assert says("the disk is full: step … could not", "the disk is full: step … could")
    assert not says("could not: the disk is full", "the disk is full: … could")
    assert list(without_hint(ast.parse("Busy(f'{x} is busy'); Busy('a', 'b')"))) == [f"{GAP} is busy"]
