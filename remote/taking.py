"""Puts what comes into a folder, each file at once: beside, checked, renamed."""

import contextlib
import errno
import hashlib
import os
import shutil
import struct
import time
from typing import Any, Iterable, Mapping, Optional

from remote.frames import CHUNK, Broken, Pieces
from remote.holdings import TELL_S, Hashes, Tell, part_name

FSYNC_FROM = 1 << 20  # bytes: waiting for the disk at each small file would take longer than the way here
LONGEST = 1 << 24  # a chunk


class Taker:
    """Takes frames below a root; one without a name is the root itself.

    `parts`: a folder in which a cut file waits for its rest; without it, it is dropped. `strict`: a file that changed
    while it was read is not taken. Tells {"at": bytes so far} now and then, and {"name": …, "fate": …} for each:
    whole, wrong (its hash differs), changed, gone.
    """

    def __init__(
        self, root: str, tell: Tell, parts: str = "", strict: bool = True, hashes: Optional[Hashes] = None
    ) -> None:
        self.root, self.parts, self.strict, self.hashes = root, parts, strict, hashes
        self._tell, self._told_at = tell, 0.0
        self.at = 0  # bytes of files that came

    def take(self, pieces: Pieces) -> None:
        """All frames. Raises Broken, OSError."""
        while True:
            head = pieces.line()
            if head.get("kind") == "end":
                break
            self._one(head, pieces)
        self._tell({"at": self.at})

    def _one(self, head: Mapping[str, Any], pieces: Pieces) -> None:
        kind, name = head.get("kind"), str(head.get("name", ""))
        if kind == "gone":
            self._tell({"name": name, "fate": "gone", "why": str(head.get("why", ""))})
            return
        path = self._place(name)
        if kind == "link":
            beside = self._beside(path)
            os.symlink(str(head["to"]), beside)
            _replace(beside, path)
        elif kind == "file":
            self._file(head, path, name, pieces)
            return
        else:
            raise Broken("it does not speak as we do")
        self._tell({"name": name, "fate": "whole"})

    def _file(self, head: Mapping[str, Any], path: str, name: str, pieces: Pieces) -> None:
        beside = os.path.join(self.parts, part_name(name, head["size"], head["mtime_ns"])) if self.parts else ""
        if beside:
            os.makedirs(self.parts, exist_ok=True)
        beside = beside or self._beside(path)
        offset, digest = int(head["offset"]), hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | (0 if offset else os.O_TRUNC)
        try:
            with os.fdopen(os.open(beside, flags, 0o600), "r+b") as f:
                _digest(f, digest, offset)
                f.truncate(offset)
                f.seek(offset)
                while True:
                    (length,) = struct.unpack(">I", pieces.read(4))
                    if not length:
                        break
                    if length > LONGEST:
                        raise Broken("it does not speak as we do")
                    chunk = pieces.read(length)
                    f.write(chunk)
                    digest.update(chunk)
                    self._count(length)
                tail = pieces.line()
                os.fchmod(f.fileno(), int(head["mode"]) & 0o777)
                f.flush()
                if self.parts and head["size"] >= FSYNC_FROM:
                    os.fsync(f.fileno())
            fate = self._fate(tail, digest.hexdigest())
            if fate == "whole":
                os.utime(beside, ns=(int(head["mtime_ns"]), int(head["mtime_ns"])))
                _replace(beside, path)
                if self.hashes is not None:
                    self.hashes.note(name, os.lstat(path), digest.hexdigest())
            else:
                os.unlink(beside)
        except BaseException:
            if not self.parts:
                with contextlib.suppress(OSError):
                    os.unlink(beside)
            raise
        self._tell({"name": name, "fate": fate, "why": str(tail.get("why", ""))})

    def _fate(self, tail: Mapping[str, Any], sha256: str) -> str:
        if tail.get("sha256") != sha256:
            return "wrong"
        return "changed" if tail.get("short") or (self.strict and tail.get("changed")) else "whole"

    def _place(self, name: str) -> str:
        """Where it goes, its folders made. A name that leads out of the root is refused, through a link too."""
        if not name:
            if os.path.isdir(self.root):  # what is in it was not meant to go
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.root)
            os.makedirs(os.path.dirname(self.root) or ".", exist_ok=True)
            return self.root
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise Broken("it names {!r}".format(name))
        os.makedirs(self.root, exist_ok=True)
        place = self.root
        for part in parts[:-1]:
            place = os.path.join(place, part)
            try:
                os.mkdir(place)
            except FileExistsError:
                if os.path.islink(place) or not os.path.isdir(place):
                    os.unlink(place)
                    os.mkdir(place)
        return os.path.join(place, parts[-1])

    def _beside(self, path: str) -> str:
        # not the target's name: that may be 255 bytes long
        return os.path.join(os.path.dirname(path), ".podctl-{}.tmp".format(os.getpid()))

    def _count(self, n: int) -> None:
        self.at += n
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell({"at": self.at})


def remove(root: str, names: Iterable[str]) -> None:
    """Files, links and whole folders below a root; what is gone already is no error."""
    for name in names:
        _clear(os.path.join(root, name))


def _replace(beside: str, path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    os.replace(beside, path)


def _clear(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _digest(f: Any, digest: Any, n: int) -> None:
    while n:
        chunk = f.read(min(CHUNK, n))
        if not chunk:
            raise Broken("what was here of a cut file is gone")
        digest.update(chunk)
        n -= len(chunk)
