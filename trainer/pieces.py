"""Memory that runs out where weights are dealt: every rank writes its pieces, and all begin again, cut finer.

A rank that fails inside a pass leaves the others inside a collective that nobody can finish or call off, so the step
can't be done again. What each rank holds is still the end of the last step: it writes that down, from a thread where
its main thread hangs, and leaves. The launcher starts all ranks anew; the first joins the pieces to a checkpoint.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from remote.files import read_json, write_json
from remote.rundir import RunDir
from trainer.errors import EXIT_SMALLER
from trainer.sharded import Sharded, mapped
from trainer.together import Ranks

log = logging.getLogger(__name__)

LOOK_S = 0.5
WRITE_S = 300.0  # for all ranks to write their pieces; what is not there by then is lost, back to the last checkpoint
PART = "part of"  # marks a tensor of which other ranks hold the rest


class Rescue:
    """Watches for the word of a rank that ran out of memory. `held` gives what this one holds, by name."""

    def __init__(self, run: RunDir, ranks: Ranks, sharded: Sharded, held: Callable[[], Mapping[str, Any]]) -> None:
        self._run, self._ranks, self._sharded, self._held = run, ranks, sharded, held
        self._once = threading.Lock()
        ranks.is_given_up = self._is_given_up
        sharded.begin_anew = self.begin_anew
        threading.Thread(target=self._watch, name="rescue", daemon=True).start()

    def begin_anew(self, padded_s: float, n: int) -> None:
        """This rank's memory holds no more than `n` utterances of that length. Does not return."""
        log.warning("out of memory: what is trained is kept, and all ranks begin anew, cut finer")
        self._ranks.store.set("smaller", json.dumps([padded_s, n]))
        self._leave()

    def _is_given_up(self) -> bool:
        return bool(self._ranks.store.check(["smaller"]))

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            try:
                if self._is_given_up():
                    break
            except RuntimeError:
                return  # the store is gone: the main thread says so
        self._leave()

    def _leave(self) -> None:
        if not self._once.acquire(blocking=False):
            time.sleep(2 * WRITE_S)
        try:
            self._write()
        finally:
            os._exit(EXIT_SMALLER)

    def _write(self) -> None:
        rank, world, store = self._ranks.rank, self._ranks.world, self._ranks.store
        if rank == 0:
            remember(self._run.cut, *json.loads(store.get("smaller")))
        folder = self._run.pieces
        folder.mkdir(parents=True, exist_ok=True)
        with self._sharded.aside():
            pieces = mapped(self._held(), _piece)
        beside = folder / f".{rank}-of-{world}.pt"
        torch.save(pieces, beside)
        os.replace(beside, folder / f"{rank}-of-{world}.pt")
        store.set(f"written/{rank}", "1")
        end = time.monotonic() + WRITE_S
        while rank == 0 and time.monotonic() < end:  # the store lives here
            if all(store.check([f"written/{r}"]) for r in range(world)):
                time.sleep(2 * LOOK_S)
                break
            time.sleep(0.05)


def joined_pieces(folder: Path) -> dict[str, Any] | None:
    """What all ranks held, whole again; None where there are no pieces, or not all of one moment."""
    paths = sorted(folder.glob("[0-9]*.pt"), key=lambda p: int(p.name.partition("-")[0]))
    if not paths or len(paths) != int(paths[0].stem.rpartition("-")[2]):
        return None
    pieces = [torch.load(p, map_location="cpu", mmap=True, weights_only=True) for p in paths]
    if len({p["state"]["step"] for p in pieces}) != 1:
        return None
    whole: dict[str, Any] = _joined(pieces)
    return whole


def forget_pieces(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def remember(path: Path, padded_s: float, n: int) -> None:
    """What memory has taught, for every start of this run to come."""
    write_json(path, [*remembered(path), [padded_s, n]])


def remembered(path: Path) -> list[tuple[float, int]]:
    """Padded seconds, and how many utterances of that length fit at most."""
    return [(float(seconds), int(n)) for seconds, n in read_json(path) or []]


def _piece(t: Tensor) -> Any:
    if isinstance(t, DTensor):
        return {PART: list(t.shape), "mine": t.to_local().detach().cpu()}
    return t.detach().cpu()


def _joined(pieces: Sequence[Any]) -> Any:
    first = pieces[0]
    if isinstance(first, Mapping):
        if PART in first:
            return torch.cat([p["mine"] for p in pieces]).clone()
        return {k: _joined([p[k] for p in pieces]) for k in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined(p) for p in zip(*pieces, strict=True))
    return first
