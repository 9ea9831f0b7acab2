"""A store on the local disk for what is dear to make and cheap to lose: bytes by key, memory-mapped, written once.

A folder of shards. A shard is a file of bytes and a file of entries; one process writes it, every process reads it. An
entry is written after its bytes, so what is found is complete; what a kill left half written is never looked at, and
what a power cut spoilt fails its checksum and is made again. What is kept in memory is the kernel's business.
"""

import logging
import mmap
import os
import secrets
import shutil
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30  # a shard is dropped as a whole, and needs an open file
MISSES_A_LOOK = 64  # how often a process looks for what others have written meanwhile
MOST_MAPS = 256  # shards open at once
FREE_BYTES = 2 << 30  # of the disk, left to others
RECORD = np.dtype([("key", "V16"), ("offset", "<u8"), ("n", "<u4"), ("tag", "<i4"), ("crc", "<u4")])


@dataclass
class _Shard:
    """What is known of one shard: entries as far as they were read, and the bytes once they are asked for."""

    name: str
    n: int = 0
    entries: np.ndarray = field(default_factory=lambda: np.zeros(64, RECORD))  # the first n
    checked: np.ndarray = field(default_factory=lambda: np.zeros(64, bool))
    data: mmap.mmap | None = None

    def add(self, fresh: np.ndarray) -> None:
        if self.n + len(fresh) > len(self.entries):
            more = np.zeros(max(len(self.entries), len(fresh)), RECORD)
            self.entries = np.concatenate([self.entries, more])
            self.checked = np.concatenate([self.checked, np.zeros(len(more), bool)])
        self.entries[self.n : self.n + len(fresh)] = fresh
        self.n += len(fresh)


class Store:
    """Bytes by key (16 bytes, a hash of all that they are made of) with a small number beside. Shared by threads.

    Beyond `limit_gb`, shards that this process has not used make room, the one that was used longest ago first; then no
    more is kept, and the log says so once. A process needs about 150 bytes of memory an entry.
    """

    def __init__(self, folder: Path, limit_gb: float, name: str) -> None:
        self.name = name  # of what is kept, as the log calls it
        self._folder = folder
        self._limit = int(limit_gb * 1e9)
        self._lock = threading.Lock()
        self._shards: list[_Shard] = []
        self._at: dict[int, int] = {}  # half of a key → shard << 32 | entry
        self._used: set[str] = set()  # names of shards that this process has read or written
        self._is_full = False
        self._misses = 0
        self._mine: tuple[int, int, int, int] | None = None  # fds of bytes and entries, shard, bytes so far
        self._total = 0  # bytes in the folder, as last seen

    # ---- finding

    def get(self, key: bytes) -> tuple[memoryview, int] | None:
        """The bytes (read-only, mapped) and their number, or None where they have to be made."""
        with self._lock:
            place = self._at.get(_half(key))
            if place is None:
                self._misses += 1
                if self._misses % MISSES_A_LOOK == 1:
                    self._look()
                    place = self._at.get(_half(key))
            if place is None:
                return None
            shard, row = self._shards[place >> 32], place & 0xFFFFFFFF
            entry = shard.entries[row]
            if entry["key"].tobytes() != key:
                return None  # two keys with one half: the second is made every time
            data = self._bytes(shard, entry)
            checked = bool(shard.checked[row])
        if data is None or (not checked and zlib.crc32(data) != entry["crc"]):
            with self._lock:
                self._at.pop(_half(key), None)
            return None
        shard.checked[row] = True
        return data, int(entry["tag"])

    def _bytes(self, shard: _Shard, entry: Any) -> memoryview | None:
        end = int(entry["offset"]) + int(entry["n"])
        if shard.data is None or len(shard.data) < end:  # a shard that is being written grows
            try:
                with (self._folder / f"{shard.name}.bytes").open("rb") as f:
                    shard.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                os.utime(self._folder / f"{shard.name}.idx")  # when it was used last
            except (OSError, ValueError):
                return None  # dropped by another process, or cut short
            self._used.add(shard.name)
            open_now = [s for s in self._shards if s.data is not None and s is not shard]
            for other in open_now[: max(0, len(open_now) + 1 - MOST_MAPS)]:
                other.data = None
        if len(shard.data) < end:
            return None
        return memoryview(shard.data)[int(entry["offset"]) : end]

    def _look(self) -> None:
        """Entries that were written since the last look, by whomever, and how much the folder holds."""
        known = {s.name: i for i, s in enumerate(self._shards)}
        self._total = 0
        for name, size in _files(self._folder):
            stem, dot, kind = name.rpartition(".")
            self._total += size
            if not dot or kind != "idx":
                continue
            if stem not in known:
                known[stem] = len(self._shards)
                self._shards.append(_Shard(stem))
            self._take_in(known[stem], size // RECORD.itemsize)

    def _take_in(self, number: int, n: int) -> None:
        """Entries of a shard up to the n-th."""
        shard = self._shards[number]
        have = shard.n
        if n <= have:
            return
        try:
            with (self._folder / f"{shard.name}.idx").open("rb") as f:
                f.seek(have * RECORD.itemsize)
                fresh = np.frombuffer(f.read((n - have) * RECORD.itemsize), RECORD)
        except (OSError, ValueError):
            return
        shard.add(fresh)
        for row, key in enumerate(fresh["key"].tolist(), start=have):
            self._at[_half(key)] = number << 32 | row

    # ---- keeping

    def put(self, key: bytes, data: bytes, tag: int = 0) -> None:
        """Kept where there is room. Never an error: what is not kept is made again."""
        with self._lock:
            if self._is_full:
                return
            try:
                if not self._has_room(len(data) + RECORD.itemsize):
                    return
                self._append(key, data, tag)
            except OSError as e:
                self._give_up(f"{e.strerror or e} ({e.filename or self._folder})")

    def _append(self, key: bytes, data: bytes, tag: int) -> None:
        if self._mine is not None and self._mine[3] + len(data) > SHARD_BYTES:
            self._close()
        if self._mine is None:
            self._mine = self._new_shard()
        body, idx, number, offset = self._mine
        _write(body, data)
        entry = (np.void(key), offset, len(data), tag, zlib.crc32(data))
        record = np.array([entry], RECORD)
        _write(idx, record.tobytes())  # what is in here is whole
        self._mine = (body, idx, number, offset + len(data))
        self._at[_half(key)] = number << 32 | self._shards[number].n
        self._shards[number].add(record)
        self._total += len(data) + RECORD.itemsize

    def _new_shard(self) -> tuple[int, int, int, int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        body = os.open(self._folder / f"{name}.bytes", flags, 0o644)
        idx = os.open(self._folder / f"{name}.idx", flags, 0o644)
        self._used.add(name)
        self._shards.append(_Shard(name))
        return body, idx, len(self._shards) - 1, 0

    def _has_room(self, n_bytes: int) -> bool:
        """Looked at the disk itself before a shard, and every 64 MiB of it."""
        if self._total + n_bytes > self._limit and not self._make_room(n_bytes):
            self._give_up(f"{self._limit / 1e9:g} GB are allowed")
            return False
        if self._mine is None or self._mine[3] // (64 << 20) != (self._mine[3] + n_bytes) // (64 << 20):
            there = next(p for p in (self._folder, *self._folder.parents) if p.exists())
            if shutil.disk_usage(there).free < FREE_BYTES + n_bytes:
                self._give_up(f"the disk of {self._folder} is nearly full")
                return False
        return True

    def _make_room(self, n_bytes: int) -> bool:
        """Drop shards that this process has not used, the one used longest ago first."""
        self._look()
        sizes = dict(_files(self._folder))
        times = {}
        for shard in self._shards:
            if shard.name not in self._used and f"{shard.name}.idx" in sizes:
                times[shard.name] = _mtime(self._folder / f"{shard.name}.idx")
        for name in sorted(times, key=times.__getitem__):
            if self._total + n_bytes <= self._limit:
                break
            for kind in ("idx", "bytes"):  # entries first: nobody finds bytes that are gone
                (self._folder / f"{name}.{kind}").unlink(missing_ok=True)
                self._total -= sizes.get(f"{name}.{kind}", 0)
            self._forget(name)
        return self._total + n_bytes <= self._limit

    def _forget(self, name: str) -> None:
        for number, shard in enumerate(self._shards):
            if shard.name == name:
                self._at = {k: v for k, v in self._at.items() if v >> 32 != number}
                self._shards[number] = _Shard(f"{name} (dropped)")

    def _give_up(self, reason: str) -> None:
        """Keep no more; what is kept already stays in use."""
        log.warning("the cache of %s takes no more: %s; the rest is made anew in every epoch", self.name, reason)
        self._is_full = True
        self._close()

    def _close(self) -> None:
        if self._mine is not None:
            os.close(self._mine[0])
            os.close(self._mine[1])
            self._mine = None


def _half(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")


def _write(fd: int, data: bytes) -> None:
    """All of it; a disk that is full in the middle raises OSError, and what was written is no entry."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _files(folder: Path) -> list[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            return [(e.name, e.stat().st_size) for e in entries if e.is_file()]
    except FileNotFoundError:
        return []


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
