"""The three sets of a training: what is trained on, what chooses, and what is used once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.manifest import Manifest, open_manifests, split_off
from trainer.data.places import cache_root, data_root
from trainer.errors import BadData
from trainer.recipe.base import Recipe


@dataclass(frozen=True)
class DataSets:
    train: Manifest
    dev: Manifest
    test: Manifest | None

    @property
    def sha256(self) -> dict[str, str]:
        return {"train": self.train.sha256, "dev": self.dev.sha256, "test": self.test.sha256 if self.test else ""}


def open_data(recipe: Recipe) -> DataSets:
    """The recipe's sets, with dev taken out of train where it says so. Raises BadData."""
    d, root, cache = recipe.data, data_root(), cache_root()

    def opened(names: Sequence[str], limit: int | None) -> Manifest:
        return open_manifests([root / n for n in names], d, root, cache, limit=limit)

    if d.dev_from_train:
        whole = opened(d.train, None)
        rest, dev = split_off(whole, len(opened(d.train[:1], None)), d.dev_from_train, recipe.loop.seed)
        train = _limited(rest, d.limit_train)
        dev = _limited(dev, d.limit_dev)
    else:
        train, dev = opened(d.train, d.limit_train), opened(d.dev, d.limit_dev)
        both = np.flatnonzero(np.isin(dev.column("key"), train.column("key")))
        if len(both):
            raise BadData(f"{len(both)} ids stand in train and in dev, {dev[both[0]].id} among them", "keep dev apart")
    test = opened(d.test, d.limit_test) if d.test else None
    if d.shuffle_audio:
        seed = recipe.loop.seed
        test = test.shuffled_audio(seed) if test else None
        train, dev = train.shuffled_audio(seed), dev.shuffled_audio(seed)
    return DataSets(train, dev, test)


def _limited(manifest: Manifest, limit: int | None) -> Manifest:
    if limit is None or limit >= len(manifest):
        return manifest
    return manifest.subset(np.sort(np.random.default_rng(0).permutation(len(manifest))[:limit]))
