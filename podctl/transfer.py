"""Data, large: a cut costs what was on the way, and nothing is believed without its hash.

Sending: one look says what is over there (sizes, sha256 of what has our size, remembered there in `.podctl-hashes`),
how much came of a file that was cut off (`.podctl-partial/`), how much room is left. The rest goes as one stream, each
file from where it was cut, and is renamed into place once its hash is right. Fetching is the same the other way; there,
what has the size and time of an earlier fetch is held.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from podctl import courier
from podctl.courier import Carrier
from podctl.errors import PodctlError, Unreachable
from podctl.parcels import Item, SendPlan, gather, make_plan
from podctl.progress import Progress
from podctl.settings import state_dir
from podctl.ui import shown, size
from podctl.uplink import Desk, may_begin
from remote.frames import Pieces, frames_of
from remote.holdings import OURS, PARTS, Hashes, part_name, same_time
from remote.taking import Taker

CUTS = 5  # in a row, nothing arriving between them
PAUSE_S = 1.0  # after a cut, doubled with each


@dataclass
class Outcome:
    """What became of a transfer. `n_bytes` came over the link, `n_held` files need not have."""

    n_files: int = 0
    n_bytes: int = 0
    n_held: int = 0
    left_out: list[str] = field(default_factory=list)  # changed or went away while they were sent


def push_data(
    host: Carrier, sources: Sequence[Path], root: PurePath, below: str, desk: Desk, usd_per_hour: float = 0.0
) -> Outcome | None:
    """Send files and folders to a folder below `root` there; None where the person said no.

    Goes on by itself after a cut; what arrived stays. Raises BadInput, DiskFull, Unreachable where the link stays cut,
    PodctlError naming a file whose hash is wrong twice.
    """
    items = gather(sources, below)
    hashes = Hashes(str(state_dir() / "hashes"))
    there = _look(host, root, items, desk)
    plan = make_plan(items, there, lambda item: hashes.of(str(item.path), str(item.path)))
    if plan.send and not may_begin(host, root, plan, there.get("free"), usd_per_hour, desk):
        return None
    return _Sending(host, root, desk, hashes, Outcome(n_held=plan.n_held)).all_of(plan)


def pull_data(
    host: Carrier,
    source: PurePath,
    target: Path,
    desk: Desk,
    *,
    names: Sequence[str] = (),
    leave: Sequence[str] = (),
) -> Outcome:
    """Bring a folder, or what is named below it; what is here and gone there stays.

    A file that grows meanwhile arrives as it was when its turn came. Raises FileNotFoundError where there is no
    source, OSError for this disk, and as `push_data`.
    """
    outcome, cuts, wrong_before = Outcome(), 0, ""
    while True:
        before = outcome.n_bytes
        try:
            order = {"names": list(names), "leave": [*leave, *OURS], "must": True}
            there = courier.survey(host, source, order)
            _refuse_missing(source, names, there)
            wanted, offsets, n_bytes = _lacking(target, there)
            outcome.n_held = outcome.n_held or len(there["files"]) - len(wanted)
            if not wanted:
                return outcome
            wrong = _fetch(host, source, target, {"names": wanted, "offsets": offsets}, n_bytes, outcome, desk)
            if not wrong:
                return outcome
            if wrong_before:
                raise PodctlError(f"{wrong} does not arrive as it is over there", "try again; is a disk going bad?")
            wrong_before = wrong
        except Unreachable as e:
            cuts = _pause(e, cuts if outcome.n_bytes == before else 0, desk)


class _Sending:
    """A plan's files on their way, until all are there."""

    def __init__(self, host: Carrier, root: PurePath, desk: Desk, hashes: Hashes, outcome: Outcome) -> None:
        self._host, self._root, self._desk, self._hashes, self._outcome = host, root, desk, hashes, outcome
        self._left: dict[str, Item] = {}
        self._wrong: set[str] = set()

    def all_of(self, plan: SendPlan) -> Outcome:
        self._left = {item.name: item for item in plan.send}
        n_all, cuts = len(self._left), 0
        progress = Progress(self._desk.ui, self._desk.clock, "sent", plan.n_bytes)
        while self._left:
            before = self._outcome.n_bytes
            try:
                self._once(plan, progress)
                if self._left:
                    plan = self._again()
            except Unreachable as e:
                cuts = _pause(e, cuts if self._outcome.n_bytes == before else 0, self._desk)
                with contextlib.suppress(Unreachable):
                    plan = self._again()
            except courier.DiskFull as e:
                raise courier.DiskFull(
                    f"{e.message}; {self._outcome.n_files} of {n_all} files arrived whole",
                    "free some space there, then the same again: what arrived is not sent twice",
                ) from e
        self._desk.ui.live("")
        return self._outcome

    def _once(self, plan: SendPlan, progress: Progress) -> None:
        before = self._outcome.n_bytes

        def tell(said: Mapping[str, object]) -> None:
            if "at" in said:
                self._outcome.n_bytes = before + int(str(said["at"]))
                progress.at(self._outcome.n_bytes)
            elif "fate" in said:
                self._settle(str(said["name"]), str(said["fate"]), str(said.get("why") or ""))

        body = frames_of(((item.name, str(item.path)) for item in plan.send), plan.offsets)
        courier.take(self._host, self._root, {"parts": True}, body, tell)

    def _settle(self, name: str, fate: str, why: str) -> None:
        if fate == "wrong" and name not in self._wrong:
            self._wrong.add(name)  # once more, from its beginning
            return
        if fate == "wrong":
            raise PodctlError(f"{name} does not arrive as it is here", "try again; is a disk going bad?")
        self._left.pop(name, None)
        if fate == "whole":
            self._outcome.n_files += 1
        else:
            self._outcome.left_out.append(name)
            self._desk.ui.warn(f"{name} was left out: {why or 'it changed while it was sent'}")

    def _again(self) -> SendPlan:
        """What is still to be sent. One whose arrival was not heard of is there."""
        left = list(self._left.values())
        there = _look(self._host, self._root, left, self._desk)
        plan = make_plan(left, there, lambda item: self._hashes.of(str(item.path), str(item.path)))
        self._outcome.n_files += plan.n_held
        self._left = {item.name: item for item in plan.send}
        return plan


def _look(host: Carrier, root: PurePath, items: Sequence[Item], desk: Desk) -> Mapping[str, object]:
    """What is there of these, in one command; hashing what is not known there yet can take its time."""
    sizes = {item.name: item.size for item in items}
    parts = {}
    for item in items:
        with contextlib.suppress(OSError):
            parts[item.name] = [item.size, item.path.stat().st_mtime_ns]

    def tell(said: Mapping[str, object]) -> None:
        if "hashed" in said:
            desk.ui.live(f"comparing, {size(float(str(said['hashed'])))} of {size(float(str(said['of'])))}")

    there = courier.survey(host, root, {"names": list(sizes), "hash": sizes, "parts": parts}, tell)
    desk.ui.live("")
    return there


def _refuse_missing(source: PurePath, names: Sequence[str], there: Mapping[str, Any]) -> None:
    found = {
        parent for name in (*there["files"], *there["links"]) for parent in (name, *map(str, PurePath(name).parents))
    }
    for name in names:
        if name not in found:
            raise PodctlError(f"there is no file {shown(name)} in {source}", "podctl pull without a path brings all")


def _lacking(target: Path, there: Mapping[str, Any]) -> tuple[list[str], dict[str, int], int]:
    """What `target` has not, from which offsets, and how many bytes that is."""
    files: Mapping[str, Sequence[Any]] = {
        n: f for n, f in there["files"].items() if not n.endswith(".tmp")
    }  # half of one
    wanted = [name for name, to in there["links"].items() if not _is_link(target / name, to)]
    offsets, n_bytes = {}, 0
    for name, (n, mtime_ns, _) in files.items():
        with contextlib.suppress(OSError):
            about = (target / name).lstat()
            if about.st_size == n and same_time(about.st_mtime_ns, mtime_ns):
                continue
        wanted.append(name)
        with contextlib.suppress(OSError):
            offsets[name] = min(n, (target / PARTS / part_name(name, n, mtime_ns)).stat().st_size)
        n_bytes += n - offsets.get(name, 0)
    return wanted, offsets, n_bytes


def _is_link(path: Path, to: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(path) == to  # noqa: PTH115 – as text, as it is
    return False


def _fetch(
    host: Carrier,
    source: PurePath,
    target: Path,
    order: Mapping[str, object],
    n_bytes: int,
    outcome: Outcome,
    desk: Desk,
) -> str:
    """One stream's worth. The name of a file whose hash was wrong, else ""."""
    before, wrong = outcome.n_bytes, ""
    progress = Progress(desk.ui, desk.clock, "fetched", n_bytes)

    def tell(said: Mapping[str, object]) -> None:
        nonlocal wrong
        if "at" in said:
            outcome.n_bytes = before + int(str(said["at"]))
            progress.at(outcome.n_bytes - before)
        elif said.get("fate") == "whole":
            outcome.n_files += 1
        elif said.get("fate") in ("wrong", "changed"):
            wrong = str(said["name"])

    def receive(pieces: Iterator[bytes]) -> None:
        taker = Taker(str(target), tell, str(target / PARTS), strict=False)
        try:
            taker.take(Pieces(pieces))
        finally:
            outcome.n_bytes = before + taker.at
            with contextlib.suppress(OSError):
                (target / PARTS).rmdir()  # empty, unless something was cut

    courier.give(host, source, order, receive)
    desk.ui.live("")
    return wrong


def _pause(e: Unreachable, cuts: int, desk: Desk) -> int:
    """After a cut, longer each time. Raises it again where it was the last."""
    if cuts + 1 >= CUTS:
        raise e
    desk.ui.live("the link is cut, trying again")
    desk.clock.sleep(PAUSE_S * 2**cuts)
    return cuts + 1
