"""One writer a run: a fencing epoch, taken by making a directory, checked before every rename.

Two pods can live at once when a stop was ignored. The older one learns here that it may no longer write. A directory,
because a network volume has no flock and mkdir is atomic everywhere.
"""

import os
from pathlib import Path

from remote.files import StrPath


class Superseded(Exception):
    """A newer attempt writes this run now; leave with exit code 75."""


def take_epoch(writer: StrPath) -> int:
    """Become the one writer: returns the new highest epoch, from 1."""
    writer = Path(writer)
    writer.mkdir(parents=True, exist_ok=True)
    n = newest_epoch(writer)
    while True:
        n += 1
        try:
            os.mkdir(str(writer / str(n)))
            return n
        except FileExistsError:
            continue


def newest_epoch(writer: StrPath) -> int:
    """The epoch that may write; 0 before the first."""
    try:
        return max((int(e) for e in os.listdir(str(writer)) if e.isdigit()), default=0)
    except FileNotFoundError:
        return 0


class Fence:
    """The right to write, asked before every rename. `epoch` 0 is a run that nobody else can write."""

    def __init__(self, writer: StrPath, epoch: int) -> None:
        self.writer = Path(writer)
        self.epoch = epoch

    def check(self) -> None:
        """Raises Superseded where a newer attempt has begun."""
        newest = newest_epoch(self.writer)
        if self.epoch and newest > self.epoch:
            raise Superseded("attempt {} took over from attempt {}".format(newest, self.epoch))
