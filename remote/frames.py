"""Files as a stream that can be cut anywhere: what was whole is taken, what was not is no file.

A frame is a line of JSON that says what comes; a regular file's is followed by chunks (four bytes of length, then as
many bytes), a chunk of none, and a line with the hash of the whole file. Only the frame `end` ends a stream.
"""

import hashlib
import json
import os
import stat
import struct
import zlib
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional, Tuple

CHUNK = 1 << 18
GATHERED = 1 << 16


class Broken(Exception):
    """The stream ended before its end, or is none of ours."""


class Pieces:
    """A stream that comes in pieces, read by lines and lengths."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = b""

    def read(self, n: int) -> bytes:
        """Exactly n bytes. Raises Broken."""
        held = [self._held]
        length = len(self._held)
        while length < n:
            piece = next(self._pieces, None)
            if piece is None:
                raise Broken("it broke off")
            held.append(piece)
            length += len(piece)
        data = b"".join(held)
        self._held = data[n:]
        return data[:n]

    def line(self) -> Dict[str, Any]:
        """One line of JSON. Raises Broken."""
        while b"\n" not in self._held:
            piece = next(self._pieces, None)
            if piece is None:
                raise Broken("it broke off")
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        try:
            value = json.loads(line.decode("ascii"))
        except ValueError:
            raise Broken("it does not speak as we do") from None
        if not isinstance(value, dict):
            raise Broken("it does not speak as we do")
        return value

    def rest(self) -> Iterator[bytes]:
        """All that was not read yet."""
        held, self._held = self._held, b""
        if held:
            yield held
        for piece in self._pieces:
            yield piece


def line_of(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=True) + "\n").encode("ascii")


def packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same, compressed."""
    press = zlib.compressobj(1)
    for piece in pieces:
        out = press.compress(piece)
        if out:
            yield out
    yield press.flush()


def unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same, as it was."""
    press = zlib.decompressobj()
    for piece in pieces:
        try:
            out = press.decompress(piece)
        except zlib.error:
            raise Broken("it does not speak as we do") from None
        if out:
            yield out


# sending


def frames(root: str, names: Iterable[str], offsets: Optional[Mapping[str, int]] = None) -> Iterator[bytes]:
    """The named files below a root, "" being the root itself; each from an offset that the other side holds already.

    Nothing raises in here: what can't be read is said in its frame.
    """
    return frames_of(((name, os.path.join(root, name) if name else root) for name in names), offsets)


def frames_of(named: Iterable[Tuple[str, str]], offsets: Optional[Mapping[str, int]] = None) -> Iterator[bytes]:
    """The same for names and paths."""

    def small() -> Iterator[bytes]:
        for name, path in named:
            for piece in _frame(path, name, (offsets or {}).get(name, 0)):
                yield piece
        yield line_of({"kind": "end"})

    held, length = [], 0  # a small file is four pieces, and each piece a write
    for piece in small():
        held.append(piece)
        length += len(piece)
        if length >= GATHERED:
            yield b"".join(held)
            held, length = [], 0
    yield b"".join(held)


def _frame(path: str, name: str, offset: int) -> Iterator[bytes]:
    try:
        about = os.lstat(path)
        if stat.S_ISLNK(about.st_mode):
            yield line_of({"kind": "link", "name": name, "to": os.readlink(path)})
            return
        if not stat.S_ISREG(about.st_mode):
            return
        with open(path, "rb") as f:
            for piece in _file_frame(f, name, offset):
                yield piece
    except OSError as e:
        yield line_of({"kind": "gone", "name": name, "why": e.strerror or str(e)})


def _file_frame(f: Any, name: str, offset: int) -> Iterator[bytes]:
    before = os.fstat(f.fileno())
    offset = offset if offset <= before.st_size else 0
    head = {"kind": "file", "name": name, "mode": before.st_mode & 0o777, "offset": offset}
    yield line_of(dict(head, size=before.st_size, mtime_ns=before.st_mtime_ns))
    digest, why, at = hashlib.sha256(), "", 0
    try:
        while at < before.st_size:
            # up to the offset only to be hashed: the other side has it, and checks the whole
            chunk = f.read(min(CHUNK, (offset if at < offset else before.st_size) - at))
            if not chunk:
                break
            digest.update(chunk)
            if at >= offset:
                yield struct.pack(">I", len(chunk)) + chunk
            at += len(chunk)
    except OSError as e:
        why = e.strerror or str(e)
    after = os.fstat(f.fileno())
    same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    yield struct.pack(">I", 0)
    yield line_of({"sha256": digest.hexdigest(), "short": at < before.st_size, "changed": not same, "why": why})
