"""Archives of audio unpacked once, and never believed: no name leaves the folder, nothing is there half.

Members go into a folder beside, which is renamed when all of them are in it. Killed on the way, the next time goes on
where it was; the same archive (size, time) is not unpacked again.
"""

import errno
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from remote.files import read_json, write_json
from trainer.errors import BadData, NoSpace

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
MARK = ".unpacked.json"  # in a folder: of which archive it is
CHUNK = 1 << 20
LEAVE_BYTES = 64 << 20  # of a disk, for everything else
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    *(NotImplementedError, ValueError),
)


@dataclass(frozen=True)
class Member:
    """A file of an archive: a path that stays below where it is unpacked."""

    name: str
    size: int
    opened: Callable[[], IO[bytes]]


def archives_in(folder: Path) -> list[Path]:
    """The archives that lie in a folder, by name. Raises BadData where two would be unpacked as one."""
    found = sorted(p for p in folder.iterdir() if stem_of(p) and p.is_file() and not p.name.startswith("."))
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(stem_of(path), path)
        if other is not path:
            raise BadData(f"{other} and {path} would be unpacked into one folder", "keep one of them, or rename it")
    return found


def stem_of(path: Path) -> str:
    """An archive's name without its ending; empty for what is none."""
    return next((path.name[: -len(e)] for e in ENDINGS if path.name.lower().endswith(e)), "")


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder lies on."""
    return shutil.disk_usage(folder).free


def unpack(
    archive: Path,
    root: Path,
    on_member: Callable[[int], None] = lambda n: None,
    free: Callable[[Path], int] = free_bytes,
) -> Path:
    """The folder `root/STEM` with all files of the archive; unpacked before, it is only looked up.

    Raises BadData where the archive is damaged or a member is not a plain file below it, NoSpace where the disk is
    full; the folder then is not there, or is that of before.
    """
    stem = stem_of(archive)
    folder, beside = root / stem, root / f".{stem}.part"
    try:
        facts = archive.stat()
    except OSError as e:
        raise BadData(f"{archive}: {e.strerror}", "name the folder that the archives lie in") from None
    identity = {"archive": archive.name, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    if read_json(folder / MARK) == identity:
        return folder
    if read_json(beside / MARK) != identity:  # of another archive, or none
        shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True, exist_ok=True)
    write_json(beside / MARK, identity)
    try:
        _fill(archive, beside, on_member, free)
    except BadData:
        shutil.rmtree(beside, ignore_errors=True)
        raise  # after anything else, what is whole stays beside: the next time goes on
    _replace(folder, beside)
    return folder


def _fill(archive: Path, beside: Path, on_member: Callable[[int], None], free: Callable[[Path], int]) -> None:
    seen: set[str] = set()
    is_zip = archive.name.lower().endswith(".zip")
    try:
        for n, member in enumerate(_of_zip(archive, beside, free) if is_zip else _of_tar(archive), 1):
            if member.name in seen:
                raise BadData(f"{archive}: holds {member.name!r} twice", "which of the two is meant? pack it again")
            seen.add(member.name)
            _write(member, beside / member.name, archive)
            on_member(n)
    except DAMAGED as e:
        raise BadData(f"{archive} is damaged ({_reason(e)})", "fetch it again, and compare its size") from None
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadData(
            f"{archive} can't be unpacked: {e.filename or archive.name}: {e.strerror or e}",
            "pack it again, with plain names, or unpack it by hand into a folder beside it",
        ) from None


def _of_zip(archive: Path, beside: Path, free: Callable[[Path], int]) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as z:
        infos = [i for i in z.infolist() if not i.is_dir()]
        for info in infos:  # all names before the first is written
            _check_name(archive, info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _refused(archive, info.filename, "is a link")
            if info.flag_bits & 1:
                raise _refused(archive, info.filename, "is encrypted")
        _check_room(archive, beside, sum(i.file_size for i in infos), free(beside))
        for info in infos:
            yield Member(info.filename, info.file_size, lambda info=info: z.open(info))  # type: ignore[misc]


def _of_tar(archive: Path) -> Iterator[Member]:
    """Forwards only: a compressed archive is read through once."""
    is_plain = archive.name.lower().endswith(".tar")
    with archive.open("rb") if is_plain else gzip.open(archive) as f, tarfile.open(fileobj=f, mode="r:") as t:
        for info in t:
            if info.isdir():
                continue
            _check_name(archive, info.name)
            if not info.isreg():
                raise _refused(archive, info.name, "is a link" if info.issym() or info.islnk() else "is no plain file")
            yield Member(info.name, info.size, lambda info=info: _there(t.extractfile(info)))  # type: ignore[misc]
        f.seek(t.offset)
        if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut for an end
            raise EOFError("it ends early")
        while f.read(CHUNK):  # to gzip's checksum
            pass


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name or path.parts[0] == MARK:
        raise _refused(archive, name, "does not stay below the folder that it is unpacked into")


def _refused(archive: Path, name: str, why: str) -> BadData:
    return BadData(f"{archive}: its member {name!r} {why}", "nothing of it was unpacked; pack plain files alone")


def _check_room(archive: Path, beside: Path, needed: int, free: int) -> None:
    there = sum(p.stat().st_size for p in beside.rglob("*") if p.is_file())
    if needed - there > free - LEAVE_BYTES:
        raise NoSpace(
            f"the disk is too full for {archive}: {needed / 1e9:.2f} GB are in it, {free / 1e9:.2f} GB are free",
            "free space there, or name another disk with --unpack",
        )


def _write(member: Member, target: Path, archive: Path) -> None:
    """Beside and renamed; one that is there with its size was written before a kill."""
    if target.is_file() and target.stat().st_size == member.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(".part")
    try:
        with member.opened() as source, part.open("wb") as f:
            shutil.copyfileobj(source, f, CHUNK)
            size = f.tell()
        if size != member.size:
            raise BadData(f"{archive}: its member {member.name!r} ends early", "fetch it again, and compare its size")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _replace(folder: Path, beside: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _there(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # of a regular file
    return stream


def _reason(e: BaseException) -> Any:
    return str(e).strip().rstrip(".") or type(e).__name__
