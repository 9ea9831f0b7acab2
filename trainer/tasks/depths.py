"""How deep a parameter lies, by its name: what a rate that decays from layer to layer asks."""

import re
from collections.abc import Iterable, Mapping

LAYER = re.compile(
    r"(?P<stack>.*\.)?(?:layers?|h)\.(?P<layer>\d+)\.|(?P<lstm>.*\.lstm\.)\w+_l(?P<number>\d+)(_reverse)?$"
)


def depths_of(names: Iterable[str], below: str) -> Mapping[str, int]:
    """Layers above each parameter, in each stack of layers by itself: the last layer has 1, the first of n has n.

    What stands outside of the layers has n + 1, of the tallest stack around it, where the expression `below` finds
    its name, else 0: heads, final norms, and embeddings that are heads as well.
    """
    places = {name: None if re.search(below, name) else _place(name) for name in names}
    tall: dict[str, int] = {}
    for place in places.values():
        if place is not None:
            tall[place[0]] = max(tall.get(place[0], 0), place[1] + 1)
    found = {}
    for name, place in places.items():
        if place is not None:
            found[name] = tall[place[0]] - place[1]
        else:
            found[name] = 1 + _height_around(name, tall) if re.search(below, name) else 0
    return found


def _place(name: str) -> tuple[str, int] | None:
    """A parameter's stack, and its layer in it from the input; None where it is in none."""
    match = LAYER.match(name)
    if match is None:
        return None
    if match["lstm"]:
        return match["lstm"], int(match["number"])
    return match["stack"] or "", int(match["layer"])


def _height_around(name: str, tall: Mapping[str, int]) -> int:
    """Layers of the stack whose name has most in common with the parameter's."""
    nearest = max(tall, key=lambda stack: (_common(name, stack), tall[stack]), default=None)
    return tall[nearest] if nearest is not None else 0


def _common(a: str, b: str) -> int:
    parts = zip(a.split("."), b.split("."), strict=False)
    n = 0
    for x, y in parts:
        if x != y:
            break
        n += 1
    return n
