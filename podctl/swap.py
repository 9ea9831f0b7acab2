"""A whole tree by tar, unpacked beside and swapped: for a machine on which nothing of ours can run."""

import os
import stat
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from podctl.courier import Carrier

CHUNK = 1 << 18
YOUNG_S = 2.0  # where a tar keeps whole seconds, such a file is sent as older than it is: the next push looks again
LAST = ".podctl-complete"  # tar itself takes an archive that ends between two files for a whole one

SCRIPT = r"""
set -e
case $1 in */*) mkdir -p -- "${1%/*}" ;; esac
rm -rf -- "$1.podctl-new" "$1.podctl-old"
mkdir -- "$1.podctl-new"
(cd -- "$1.podctl-new" && tar -xpof -)
[ -f "$1.podctl-new/LAST" ] || { echo 'the archive broke off' >&2; exit 1; }
rm -f -- "$1.podctl-new/LAST"
if [ -e "$1" ]; then mv -- "$1" "$1.podctl-old"; fi
mv -- "$1.podctl-new" "$1"
rm -rf -- "$1.podctl-old"
""".replace("LAST", LAST)


def swap(carrier: Carrier, source: Path, target: PurePath, names: Sequence[str]) -> tuple[int, str]:
    """Make the target these files. The exit code over there and what it said. Raises Unreachable."""
    with carrier.stream(["sh", "-c", SCRIPT, "sh", str(target)], stdin=tar_of(source, names)) as stream:
        for _ in stream:
            pass
        return stream.exit_code or 0, stream.stderr


def tar_of(root: Path, names: Sequence[str]) -> Iterator[bytes]:
    """An archive in pieces, whole only where all could be read: else its last member is missing."""
    for name in names:
        try:
            about = (root / name).lstat()
            info = tarfile.TarInfo(name)
            info.mode = stat.S_IMODE(about.st_mode) & 0o777
            info.mtime = int(about.st_mtime) - (time.time() - about.st_mtime < YOUNG_S)
            if stat.S_ISLNK(about.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink(root / name)  # noqa: PTH115 – as text
                yield _header(info, about.st_mtime_ns)
                continue
            with (root / name).open("rb") as f:
                info.size = about.st_size
                yield _header(info, about.st_mtime_ns)
                left = info.size
                while left:
                    chunk = f.read(min(CHUNK, left))
                    if not chunk:
                        return  # it shrank
                    left -= len(chunk)
                    yield chunk
            yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
        except OSError:
            return
    yield _header(tarfile.TarInfo(LAST), 0) + b"\0" * 1024


def _header(info: tarfile.TarInfo, mtime_ns: int) -> bytes:
    """Nanoseconds where every tar reads the rest all the same; one of busybox needs GNU's long names, and no others."""
    words = (info.name, info.linkname)
    if all(word.isascii() and len(word) <= 100 for word in words):
        info.pax_headers = {"mtime": "{}.{:09d}".format(*divmod(mtime_ns, 10**9))}
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
