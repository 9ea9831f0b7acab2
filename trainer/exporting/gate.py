"""The parity gate: a converted model writes what ours writes, on the same samples, before anybody gets it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from remote.files import read_json
from trainer.apply import recipe_of
from trainer.data.audio import RATE
from trainer.data.manifest import Manifest, open_manifests
from trainer.data.places import cache_root, data_root
from trainer.errors import BadData
from trainer.evaluate import predict, with_decode
from trainer.exporting.ct2 import versions
from trainer.exporting.faster import Asking, Faster, asking_of
from trainer.machine import placed, start_machine
from trainer.parity import Parity, compare_texts
from trainer.recipe.base import Recipe
from trainer.task import make_task


@dataclass(frozen=True)
class Ours:
    """The whole model on this machine, and how it is decoded: the full window, greedy."""

    recipe: Recipe
    task: Any
    parts: Any
    machine: Any
    asking: Asking


def open_ours(whole: Path, sets: Sequence[str]) -> Ours:
    """What is decoded on our side: float32, unless `--set loop.precision=…` says otherwise."""
    recipe = recipe_of(argparse.Namespace(run=None, model=whole, set=list(sets)))
    if not any(s.removeprefix("train.").startswith("loop.precision") for s in sets):
        recipe = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"precision": "fp32"})})
    machine = start_machine(recipe.loop)
    task: Any = make_task(recipe)
    parts = placed(task.build(), machine)
    suppressed = (read_json(whole / "generation_config.json") or {}).get("suppress_tokens") or []
    asking = asking_of(task, recipe.eval.decode, [int(t) for t in suppressed if t >= 0], task.max_tokens)
    as_asked = {"window": "full", "beams": 1, "max_new_tokens": asking.max_new_tokens}
    recipe = with_decode(recipe, recipe.eval.decode.model_copy(update=as_asked))
    return Ours(recipe, make_task(recipe), parts, machine, asking)


def check_set(ours: Ours, named: str | None, most: int) -> Manifest:
    """The utterances that both sides hear: the recipe's test set, or the one named; `most` of them, always the same.

    What is longer than the window is left out: there the two cut in ways of their own. Raises BadData.
    """
    names = [named] if named else list(ours.recipe.data.test)
    if not names:
        raise BadData(
            "the recipe names no test set to compare on", "name one: --check MANIFEST; --check none compares nothing"
        )
    paths = [Path(n).absolute() if Path(n).exists() else data_root() / n for n in names]
    manifest = open_manifests(paths, ours.recipe.data, data_root(), cache_root())
    longest = min(ours.asking.pad_to_samples / RATE, ours.recipe.data.max_s)
    fits = np.flatnonzero(manifest.column("duration_s") <= longest + 1e-6)
    if not len(fits):
        raise BadData(f"nothing in {', '.join(names)} fits the window of {longest:g} s", "name another set: --check")
    if len(fits) > most:
        fits = np.sort(np.random.default_rng(0).permutation(fits)[:most])
    return manifest.subset(fits)


def compare(
    ours: Ours, converted: Path, manifest: Manifest, quantisation: str, live: Callable[[str, int, int], None]
) -> Parity:
    """Both sides over the set; the other one twice, as it should be asked and with the sound as it is."""
    recipe, machine = ours.recipe, ours.machine
    how = recipe.eval.model_copy(update={"buckets": []})
    rows, _ = predict(
        ours.task,
        ours.parts,
        manifest,
        recipe.model_copy(update={"eval": how}),
        machine,
        on_batch=lambda done, total: live("ours", done, total),
    )
    heard = [r for r in rows if not r.get("reason")]
    if not heard:
        raise BadData("no recording of the set could be read", "look at its audio: trainer predict names each reason")
    faster = Faster(converted, ours.asking, "cuda" if machine.device.type == "cuda" else "cpu", recipe.loop.threads)
    faster.check_prompt(list(ours.task.prompt))
    theirs, bare = _their_texts(ours, faster, manifest, {r["id"] for r in heard}, live)
    plain = compare_texts(heard, bare, how)
    return compare_texts(
        heard,
        theirs,
        how,
        unpadded={"wer_theirs": plain.wer_theirs, "differing": len(plain.differing)},
        left_out=len(rows) - len(heard),
        data_sha256=manifest.sha256,
        quantisation=quantisation,
        computed_in={"ours": machine.precision, "theirs": faster.compute_type, "device": machine.device.type},
        decode=ours.asking.as_json(),
        versions=versions(),
    )


def _their_texts(
    ours: Ours, faster: Faster, manifest: Manifest, ids: set[str], live: Callable[[str, int, int], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """What faster-whisper writes of the samples that our model heard: padded to the window, and as they are."""
    padded: dict[str, str] = {}
    bare: dict[str, str] = {}
    for i in range(len(manifest)):
        example = manifest[i]
        if example.id in ids:
            (item,) = ours.task.load([example], [None])
            padded[example.id] = faster.text_of(item.wave_T)
            bare[example.id] = faster.text_of(item.wave_T, padded=False)
        live("faster-whisper", i + 1, len(manifest))
    return padded, bare
