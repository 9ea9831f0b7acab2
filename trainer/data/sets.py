"""The three sets of a training: what is trained on, what chooses, and what is used once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trainer.data.buckets import rows_with
from trainer.data.kept import KeepTold, kept, with_audit
from trainer.data.long import heard_whole
from trainer.data.manifest import Manifest, joined, open_hub, open_manifests, split_off
from trainer.data.noise import NoiseFolder, open_noises
from trainer.data.places import cache_root, data_root
from trainer.errors import BadData
from trainer.recipe.base import Recipe
from trainer.recipe.data import Data
from trainer.recipe.source import Source, source_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceTold:
    """What a source's limits left of its manifest."""

    name: str
    utterances: int  # of its manifest, as far as they are usable
    hours: float
    used: int
    used_h: float
    filtered: Mapping[str, int]  # by min_s, max_s, where.FIELD and limit: how many each left out, in this order
    keep: KeepTold | None = None


@dataclass(frozen=True)
class DataSets:
    train: Manifest
    dev: Manifest
    test: Manifest | None
    noises: Mapping[str, NoiseFolder] = field(default_factory=dict)
    sources: Sequence[SourceTold] = ()  # of train, where some of them have limits of their own

    @property
    def sha256(self) -> dict[str, str]:
        sets = {"train": self.train.sha256, "dev": self.dev.sha256, "test": self.test.sha256 if self.test else ""}
        return {**sets, **{f"noise {name}": n.sha256 for name, n in self.noises.items()}}


def open_data(recipe: Recipe) -> DataSets:
    """The recipe's sets, with dev taken out of train where it says so. Raises BadData."""
    d, root, cache = recipe.data, data_root(), cache_root()

    def opened(names: Sequence[str], limit: int | None, data: Data = d) -> Manifest:
        return open_manifests([root / n for n in names], data, root, cache, limit=limit)

    decoded = heard_whole(recipe)  # dev and test

    told: list[SourceTold] = []
    if d.is_mixed:
        sources = []
        for s in d.sources:
            left, of_source = filtered(opened([s.manifest], None) if s.manifest else open_hub(s, d, cache), s, root)
            sources.append(left)
            told.append(of_source)
        whole, first = joined(sources), len(sources[0])
    else:
        names = [str(s.manifest) for s in d.sources]
        whole = opened(names, None)
        first = len(opened(names[:1], None)) if d.dev_from_train else 0
    if d.dev_from_train:
        rest, dev = split_off(whole, first, d.dev_from_train, recipe.loop.seed)
        train = _limited(rest, d.limit_train)
        dev = _limited(dev, d.limit_dev)
    else:
        train, dev = _limited(whole, d.limit_train), opened(d.dev, d.limit_dev, decoded)
        both = _in_both(dev.column("key"), train.column("key"))
        if len(both):
            raise BadData(f"{len(both)} ids stand in train and in dev, {dev[both[0]].id} among them", "keep dev apart")
    test = opened(d.test, d.limit_test, decoded) if d.test else None
    if d.shuffle_audio:
        seed = recipe.loop.seed
        test = test.shuffled_audio(seed) if test else None
        train, dev = train.shuffled_audio(seed), dev.shuffled_audio(seed)
    return DataSets(train, dev, test, open_noises(recipe), told)


def _in_both(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Positions in `few` of keys that stand in `many`, a million of those at a time: no second copy of ten million."""
    order = np.argsort(few, kind="stable")
    ranked, found = few[order], np.zeros(len(few), bool)
    for at in range(0, len(many) if len(few) else 0, 1 << 20):
        part = np.sort(many[at : at + (1 << 20)])
        place = np.minimum(np.searchsorted(part, ranked), len(part) - 1)
        found[order] |= part[place] == ranked
    return np.flatnonzero(found)


def filtered(manifest: Manifest, source: Source, root: Path) -> tuple[Manifest, SourceTold]:
    """What a source's own limits leave of its manifest. Raises BadData where that is nothing, or its audit is unfit."""
    durations_s = manifest.column("duration_s")
    keep, counts = np.ones(len(manifest), bool), {}

    def leave(name: str, good: np.ndarray) -> None:
        counts[name] = int((keep & ~good).sum())
        np.logical_and(keep, good, out=keep)

    if source.min_s is not None:
        leave("min_s", durations_s >= source.min_s)
    if source.max_s is not None:
        leave("max_s", durations_s <= source.max_s)
    for name, wanted in source.where.items():
        leave(f"where.{name}", rows_with(manifest, name, {wanted} if isinstance(wanted, str) else set(wanted)))
    left, told = manifest.subset(np.flatnonzero(keep)), None
    if source.keep and len(left):
        good, told = kept(left, source, root)
        left = replace(left.subset(np.flatnonzero(good)), sha256=with_audit(manifest, told.audit_sha256))
    if source.limit is not None:
        counts["limit"] = max(0, len(left) - source.limit)
        left = _limited(left, source.limit)
    if not len(left):
        raise BadData(
            f"{source_name(source)}: its filters leave none of {len(manifest)} utterances",
            f"widen min_s, max_s, where{' or keep' if told else ''} of that source in train.data.train",
        )
    if len(left) < len(manifest):
        log.info("%s: %d of %d utterances, as its filters and limit say", source_name(source), len(left), len(manifest))
    return left, SourceTold(source_name(source), len(manifest), manifest.hours, len(left), left.hours, counts, told)


def _limited(manifest: Manifest, limit: int | None) -> Manifest:
    if limit is None or limit >= len(manifest):
        return manifest
    return manifest.subset(np.sort(np.random.default_rng(0).permutation(len(manifest))[:limit]))
