"""A tree of files on its way: what is in it by hash, and a tar stream of what the other side lacks.

A tree is named by its contents, sent once, verified there and never changed; each run works in a copy of its own.
"""

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
MANIFEST = ".podctl-tree.json"  # the first member of the stream


@dataclass(frozen=True)
class Entry:
    """One file: a regular one by the hash of its bytes, a link by where it points."""

    kind: str  # file, link
    mode: int
    content: str  # sha256, or the link's target
    size: int

    def as_list(self) -> list[object]:
        return [self.kind, self.mode, self.content, self.size]


@dataclass(frozen=True)
class Tree:
    """Files below a root at one moment."""

    root: Path
    entries: Mapping[str, Entry]

    @property
    def id(self) -> str:
        """16 hex over names, kinds, modes and contents; times have no say."""
        return id_of(self.manifest.encode("ascii"))

    @property
    def manifest(self) -> str:
        """JSON in ASCII; a name that is no UTF-8 is escaped within it."""
        return json.dumps({name: e.as_list() for name, e in sorted(self.entries.items())}, ensure_ascii=True)

    @property
    def n_bytes(self) -> int:
        return sum(e.size for e in self.entries.values())

    def beyond(self, manifest: str) -> list[str]:
        """What another tree, known by its manifest, does not hold under the same name."""
        try:
            there = json.loads(manifest)
        except ValueError:
            there = {}
        if not isinstance(there, dict):
            there = {}
        return [name for name, e in sorted(self.entries.items()) if there.get(name) != e.as_list()]


def id_of(manifest: bytes) -> str:
    """The name of the tree that has this manifest."""
    return hashlib.sha256(manifest).hexdigest()[:16]


def read_tree(root: Path, files: Sequence[str]) -> Tree:
    """Look at the files, all of them, now. One that went away meanwhile is left out."""
    entries = {}
    for name in files:
        entry = _entry(root / name)
        if entry is not None:
            entries[name] = entry
    return Tree(root, entries)


def tar_stream(tree: Tree, names: Sequence[str]) -> Iterator[bytes]:
    """The manifest of the whole tree and the named files of it, as a tar archive in pieces.

    A file that changes while it is read keeps its announced length; the other side sees it by its hash.
    """
    manifest = tree.manifest.encode("ascii")
    info = tarfile.TarInfo(MANIFEST)
    info.size = len(manifest)
    yield _header(info) + manifest + _padding(len(manifest))
    for name in names:
        entry, path = tree.entries[name], tree.root / name
        info = tarfile.TarInfo(name)
        info.mode = entry.mode
        try:
            info.mtime = int(path.lstat().st_mtime)
        except OSError:
            continue  # gone: the other side misses it and says so
        if entry.kind == "link":
            info.type, info.linkname = tarfile.SYMTYPE, entry.content
            yield _header(info)
            continue
        info.size = entry.size
        yield _header(info)
        yield from _exactly(path, entry.size)
        yield _padding(entry.size)
    yield b"\0" * 1024


def _entry(path: Path) -> Entry | None:
    try:
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            return Entry("link", 0o777, os.readlink(path), 0)  # noqa: PTH115 – as text, whatever is in it
        if not stat.S_ISREG(about.st_mode):
            return None
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as f:
            while chunk := f.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return None
    return Entry("file", 0o755 if about.st_mode & 0o100 else 0o644, digest.hexdigest(), size)


def _exactly(path: Path, size: int) -> Iterator[bytes]:
    left = size
    try:
        with path.open("rb") as f:
            while left and (chunk := f.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except OSError:
        pass
    while left:
        chunk = b"\0" * min(CHUNK, left)
        left -= len(chunk)
        yield chunk


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
