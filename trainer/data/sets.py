"""The three sets of a training: what is trained on, what chooses, and what is used once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
class DataSets:
    train: Manifest
    dev: Manifest
    test: Manifest | None
    noises: Mapping[str, NoiseFolder] = field(default_factory=dict)

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

    if d.is_mixed:
        sources = [filtered(opened([s.manifest], None) if s.manifest else open_hub(s, d, cache), s) for s in d.sources]
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
    return DataSets(train, dev, test, open_noises(recipe))


def _in_both(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Positions in `few` of keys that stand in `many`, a million of those at a time: no second copy of ten million."""
    order = np.argsort(few, kind="stable")
    ranked, found = few[order], np.zeros(len(few), bool)
    for at in range(0, len(many) if len(few) else 0, 1 << 20):
        part = np.sort(many[at : at + (1 << 20)])
        place = np.minimum(np.searchsorted(part, ranked), len(part) - 1)
        found[order] |= part[place] == ranked
    return np.flatnonzero(found)


def filtered(manifest: Manifest, source: Source) -> Manifest:
    """What a source's own limits leave of its manifest. Raises BadData where that is nothing."""
    durations_s = manifest.column("duration_s")
    keep = np.ones(len(manifest), bool)
    if source.min_s is not None:
        keep &= durations_s >= source.min_s
    if source.max_s is not None:
        keep &= durations_s <= source.max_s
    for name, wanted in source.where.items():
        values = {wanted} if isinstance(wanted, str) else set(wanted)
        if name in ("speaker", "language", "source"):
            keep &= np.isin(manifest.column(name), list(values))
        else:
            among = np.flatnonzero(keep)
            keep[among] = [manifest[int(i)].bucket(name) in values for i in among]
    left = _limited(manifest.subset(np.flatnonzero(keep)), source.limit)
    if not len(left):
        raise BadData(
            f"{source_name(source)}: its filters leave none of {len(manifest)} utterances",
            "widen min_s, max_s or where of that source in train.data.train",
        )
    if len(left) < len(manifest):
        log.info("%s: %d of %d utterances, as its filters and limit say", source_name(source), len(left), len(manifest))
    return left


def _limited(manifest: Manifest, limit: int | None) -> Manifest:
    if limit is None or limit >= len(manifest):
        return manifest
    return manifest.subset(np.sort(np.random.default_rng(0).permutation(len(manifest))[:limit]))
