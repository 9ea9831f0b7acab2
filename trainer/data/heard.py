"""Every recording of a list of rows, found in its folder and decoded once, by threads."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.data.children import Row
from trainer.data.finder import AudioFinder
from trainer.data.pool import decoders
from trainer.data.sounds import Heard, hear
from trainer.errors import AudioError
from trainer.task import Bad


@dataclass(frozen=True)
class Found:
    """Where a recording lies, and what it is."""

    path: str
    sound: Heard


def hear_all(
    rows: Sequence[Row], finder: AudioFinder, workers: int, count: Callable[[int], None]
) -> tuple[dict[str, Found], list[Bad]]:
    """What each row's recording is, or why it can't be used; `workers` 0: a thread a processor.

    Raises BadData where a path fits two files.
    """

    def one(r: Row) -> Found | Bad:
        try:
            path = finder.find(r.audio_path)
        except AudioError:
            return Bad(r.id, f"no such file: {r.audio_path} is in none of the folders")
        try:
            sound = hear(path)
        except AudioError as e:
            is_silent = e.message.endswith("is silent")
            why = e.message.replace(path, r.audio_path)  # the same words wherever it lies
            return Bad(r.id, f"silent: {r.audio_path}" if is_silent else f"can't be decoded: {why}")
        if r.size is not None and r.size != sound.size:
            return Bad(r.id, f"another size: the file has {sound.size} bytes, its row says {r.size}")
        if r.md5 and r.md5 != sound.md5:
            return Bad(r.id, f"another md5: the file's is {sound.md5}, its row says {r.md5}")
        return Found(path, sound)

    found: dict[str, Found] = {}
    bad = []
    with decoders(workers or os.cpu_count() or 1, "audio") as pool:
        try:
            for n, (r, answer) in enumerate(zip(rows, pool.map(one, rows), strict=True), 1):
                if isinstance(answer, Bad):
                    bad.append(answer)
                else:
                    found[r.id] = answer
                count(n)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or all others would still be read
            raise
    return found, bad
