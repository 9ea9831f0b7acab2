"""rsync as a way for what is large: what each of its kinds understands, and one call of it.

Old: 2.6.9 (macOS up to 15.3), 3.x (Linux, Homebrew), and openrsync (macOS from 15.4, OpenBSD), which calls itself
compatible with 2.6.9 and is not. Who lists, compares and removes is `sync.py`; rsync only brings the named files.
"""

import functools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from podctl import shell
from podctl.errors import MissingHere, PodctlError, Unreachable

CUT_OFF = (10, 12, 30, 35, 255)  # socket, protocol stream, time-outs, ssh's own
SEND_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class RsyncVersion:
    """What a banner says. Compatible with 2.6.9 and protocol 29 is what openrsync says of itself."""

    kind: str  # rsync, openrsync
    version: tuple[int, ...]
    protocol: int


def parse_banner(text: str) -> RsyncVersion | None:
    """The first lines of `rsync --version`; None for anything else. Pure."""
    is_open = re.match(r"openrsync\b", text.strip())
    protocol = re.search(r"protocol version (\d+)", text)
    version = re.search(r"rsync\s+version\s+v?(\d+(?:\.\d+)*)", text)
    if protocol is None or (version is None and not is_open):
        return None
    numbers = tuple(int(n) for n in version[1].split(".")) if version else ()
    return RsyncVersion("openrsync" if is_open else "rsync", numbers, int(protocol[1]))


def rsync_options(here: RsyncVersion, there: RsyncVersion) -> list[str] | None:
    """What makes this pair bring the files that are named on stdin, and nothing else; None where it can't. Pure.

    All of it is understood since 2.6.4. Which files differ is known already, so that it compares no times
    (--ignore-times); it still sends a large file's differences alone. A folder's own mode and time stay as they are.
    """
    if not all(_can_be_told_names(v) for v in (here, there)):
        return None
    options = ["--links", "--perms", "--times", "--omit-dir-times", "--no-implied-dirs", "--ignore-times"]
    options += ["--from0", "--files-from=-"]
    if here.kind == there.kind == "rsync":
        options.append("--compress")  # openrsync's is its youngest part
    if here.kind == there.kind == "rsync" and min(here.version, there.version) >= (3, 1):
        options.append("--timeout=60")  # since 3.1 both ends give signs of life while they work
    return options


def options_with(banner_there: str) -> list[str] | None:
    """The options for this machine's rsync and that one's; None where either has none."""
    here, there = _version_here(), parse_banner(banner_there)
    return rsync_options(here, there) if here is not None and there is not None else None


def send(
    wire_shell: str, host: str, options: Sequence[str], source: Path, target: PurePath, names: Sequence[str]
) -> None:
    """The named files of a tree. Raises Unreachable, PodctlError."""
    # the folder stands in the command that starts rsync there: how a path after the colon is quoted differs by version
    there = f"mkdir -p -- {shlex.quote(str(target))} && cd -- {shlex.quote(str(target))} && rsync"
    host = f"[{host}]" if ":" in host else host
    argv = ["rsync", *options, f"--rsync-path={there}", "-e", wire_shell, f"{source}/", f"{host}:./"]
    listed = "".join(f"./{name}\0" for name in names)  # a name that begins with # would be a comment
    result = shell.run(argv, stdin=listed, timeout_s=SEND_TIMEOUT_S)
    if result.ok:
        return
    said = (result.stderr.strip().splitlines() or [f"exit code {result.exit_code}"])[0]
    if "No space left" in result.stderr or "Disk quota" in result.stderr:
        from podctl.courier import DiskFull

        raise DiskFull(f"the disk over there is full: {said}", "free some space there, then the same again")
    if result.exit_code in CUT_OFF:
        raise Unreachable(f"the link broke while files were sent: {said}", "try again: what arrived is not sent twice")
    raise PodctlError(f"files could not be sent: {said}", "is each of them readable, and is there room over there?")


@functools.cache
def _version_here() -> RsyncVersion | None:
    try:
        return parse_banner(shell.run(["rsync", "--version"]).stdout)
    except MissingHere:
        return None


def _can_be_told_names(version: RsyncVersion) -> bool:
    if version.kind == "openrsync":
        return version.protocol >= 29  # Apple's; OpenBSD's own knows no --files-from
    return version.version >= (2, 6, 9)
