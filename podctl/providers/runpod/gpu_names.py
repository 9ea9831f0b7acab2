"""Names of GPUs: what a person writes (`4090`, `h100`, `RTX 4090`), and what RunPod calls them. Pure."""

import difflib
import re
from collections.abc import Sequence

_MAKERS = ("NVIDIA GeForce ", "NVIDIA ", "AMD Instinct ", "AMD ")


def short(gpu_id: str) -> str:
    """`RTX 4090` for `NVIDIA GeForce RTX 4090`."""
    for maker in _MAKERS:
        if gpu_id.startswith(maker):
            return gpu_id.removeprefix(maker)
    return gpu_id


def matching(wish: str, known: Sequence[tuple[str, str]]) -> list[str]:
    """The ids that a wish means, in the order of `known` (id, shown name); [] for none.

    A whole name means that one alone. Else all words must be there: `H100` means its PCIe, SXM and NVL kinds, `L40` is
    no L40S. A slice of a GPU (MIG) is meant only where it is said.
    """
    for says in (_as_written, _squeezed):
        exact = [id_ for id_, name in known if says(wish) in {says(id_), says(name), says(short(id_))}]
        if exact:
            return exact
    words = _words(wish)
    if not words:
        return []
    found = [id_ for id_, name in known if _says_all(words, id_, name)]
    return [id_ for id_ in found if "mig" in words or "mig" not in _words(id_)]


def nearest(wish: str, known: Sequence[tuple[str, str]]) -> list[str]:
    """Names that somebody may have meant, the likeliest first, at most three."""
    by_key: dict[str, str] = {}
    for id_, name in known:
        label = short(id_)
        for text in (label, id_, name, *_words(label)):
            if len(_squeezed(text)) > 1:
                by_key.setdefault(_squeezed(text), label)
    near = difflib.get_close_matches(_squeezed(short(wish)), by_key, n=6, cutoff=0.6)
    return list(dict.fromkeys(by_key[k] for k in near))[:3]


def _says_all(words: Sequence[str], *texts: str) -> bool:
    """Is each word one of a text's, or several of them run together (`rtx4090`)?"""
    return any(all(_says(word, _words(text)) for word in words) for text in texts)


def _says(word: str, words: Sequence[str]) -> bool:
    n = len(words)
    return any(word == "".join(words[i:j]) for i in range(n) for j in range(i + 1, n + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _as_written(text: str) -> str:
    return " ".join(text.lower().split())


def _squeezed(text: str) -> str:
    return "".join(_words(text))
