"""A machine we can run things on: the protocol, and this machine itself."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Protocol

from podctl.pods import Result


class Host(Protocol):
    """OpenSSH with one shared connection; fabric where there is no OpenSSH; this machine."""

    def run(self, argv: Sequence[str], *, stdin: str = "", timeout_s: float = 60) -> Result:
        """Run a command there. Raises Unreachable; a command's own failure is in the result."""
        ...

    def push(self, source: Path, target: PurePath, *, files_from: Sequence[str] = ()) -> None:
        """Make the target directory hold the source's files, those named or all, and no others."""
        ...

    def pull(self, source: PurePath, target: Path) -> None:
        """Bring a file or a directory; what is here and gone there stays. Raises FileNotFoundError."""
        ...

    def read(self, path: PurePath) -> bytes | None:
        """A small file's bytes; None where there is none."""
        ...

    def follow(self, path: PurePath, *, offset: int = 0) -> Iterator[bytes]:
        """A growing file from a byte offset, for ever. Yields b"" when nothing came for about half a second, so
        that the caller can look up; an absent file is one that has not grown yet."""
        ...

    def forward(self, remote_port: int, local_port: int) -> AbstractContextManager[None]:
        """While open, the local port on loopback answers as the remote one."""
        ...
