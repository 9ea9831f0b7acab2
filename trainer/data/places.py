"""Where data lies: what is given on the volume, what is fast on the local disk."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from remote.rundir import DISK_ENV, Volume
from trainer.data.pcm import PcmCache
from trainer.data.store import Store
from trainer.errors import BadRecipe
from trainer.recipe.data import Data

if TYPE_CHECKING:
    from trainer.data.manifest import Manifest

log = logging.getLogger(__name__)

BYTES_A_SECOND = 2 * 16_000


def data_root() -> Path:
    """Where relative data paths resolve: the volume's data/, or here where there is no volume."""
    volume = Volume.from_env()
    return volume.data if volume else Path.cwd()


def cache_root() -> Path:
    """What is small and worth keeping: on the volume, or among the user's caches."""
    volume = Volume.from_env()
    return volume.cache if volume else _users_cache()


def fast_root() -> Path:
    """What must be fast and may be lost: on the local disk, never on the volume."""
    disk = os.environ.get(DISK_ENV, "")
    return Path(disk) / "cache" if disk else _users_cache()


def audio_folder(data: Data) -> Path:
    """Where decoded audio is kept. Raises BadRecipe where that would be on the volume."""
    folder = Path(data.cache_dir) if data.cache_dir else fast_root() / "audio"
    volume = Volume.from_env()
    if data.cache_dir and volume and folder.resolve().is_relative_to(volume.root.resolve()):
        raise BadRecipe.one(
            "train.data.cache_dir", f"{folder} lies on the volume, which is slow: name a folder of the local disk"
        )
    return folder


def open_cache(data: Data) -> PcmCache:
    """The recordings that were decoded before, on this machine."""
    return PcmCache(Store(audio_folder(data), data.cache_gb, "decoded audio") if data.cache_gb > 0 else None)


def open_frozen(data: Data) -> Store | None:
    """What frozen networks said before, on this machine; None where nothing is to be kept."""
    folder = audio_folder(data).with_name("frozen")
    return Store(folder, data.frozen_gb, "frozen outputs") if data.frozen_gb > 0 else None


def say_cache(data: Data, sets: "list[Manifest]") -> None:
    """Whether the decoded audio of these sets fits, in a line of the log."""
    need_gb = sum(m.hours for m in sets) * 3600 * BYTES_A_SECOND / 1e9
    if data.cache_gb <= 0:
        log.info("audio is decoded in every epoch: data.cache_gb is 0")
    elif need_gb <= data.cache_gb:
        log.info("audio is decoded once: %.2f GB of %s", need_gb, audio_folder(data))
    else:
        log.warning(
            "%.2f GB of audio, data.cache_gb allows %g: the rest is decoded in every epoch (see data.cache_gb)",
            *(need_gb, data.cache_gb),
        )


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podctl"
