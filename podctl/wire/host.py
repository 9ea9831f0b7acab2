"""A host made of a wire: what every host promises, over SSH."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath

from podctl import shell
from podctl.errors import MissingHere, PodctlError
from podctl.host import Stream
from podctl.pods import Result, SshAddress
from podctl.wire.base import Wire

READ_S = 60

# by offset, not by `tail -F`: that one begins anew where a file was replaced or cut, and bytes come twice
_FOLLOW = (
    'o=$2; while :; do s=$(wc -c <"$1") && [ "$s" -gt "$o" ] && tail -c "+$((o+1))" -- "$1" | head -c "$((s-o))" && '
    "o=$s || sleep 0.2; done 2>/dev/null"
)


class SshHost:
    """The machine at the other end of a wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.name = wire.address.host

    def run(self, argv: Sequence[str], *, stdin: str | bytes = "", timeout_s: float = 60) -> Result:
        data = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
        return self.wire.run(argv, stdin=data, timeout_s=timeout_s)

    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> AbstractContextManager[Stream]:
        return self.wire.stream(argv, stdin=stdin)

    def push(self, source: Path, target: PurePath, *, files_from: Sequence[str] = ()) -> None:
        from podctl import sync

        sync.push(self.wire, source, target, files_from=files_from)

    def pull(self, source: PurePath, target: Path, *, names: Sequence[str] = ()) -> None:
        from podctl import sync

        sync.pull(self.wire, source, target, names=names)

    def read(self, path: PurePath) -> bytes | None:
        """Raises PodctlError where there is something that can't be read."""
        said = self.wire.run(["env", "LC_ALL=C", "cat", "--", str(path)], timeout_s=READ_S)
        if said.ok:
            return said.stdout.encode("utf-8", "surrogateescape")
        reason = (said.stderr.strip().splitlines() or [f"exit code {said.exit_code}"])[-1].rpartition(": ")[2]
        if reason in ("No such file or directory", "Not a directory"):
            return None
        raise PodctlError(f"{path} on {self.name} can't be read: {reason}", "may you read it there?")

    def follow(self, path: PurePath, *, offset: int = 0) -> Iterator[bytes]:
        """One command over there for as long as it is followed. Raises Unreachable where the link breaks."""
        with self.wire.stream(["sh", "-c", _FOLLOW, "sh", str(path), str(offset)]) as stream:
            yield from stream
        raise PodctlError(f"{path} on {self.name} can't be followed: {stream.stderr.strip()}", "try again")

    def forward(self, remote_port: int, local_port: int) -> AbstractContextManager[None]:
        return self.wire.forward(remote_port, local_port)

    def terminal(self, argv: Sequence[str] = ()) -> int:
        return self.wire.terminal(argv)

    def close(self) -> None:
        self.wire.close()


def best_wire(address: SshAddress) -> Wire:
    """OpenSSH where there is one that can share connections, else paramiko. `PODCTL_SSH=openssh` or `fabric` chooses.

    Raises MissingHere where `PODCTL_SSH` is anything else.
    """
    wanted = os.environ.get("PODCTL_SSH", "")
    if wanted not in ("", "openssh", "fabric"):
        raise MissingHere(f"PODCTL_SSH={wanted!r} is no way over SSH", "PODCTL_SSH is openssh or fabric")
    if wanted == "openssh" or (not wanted and sys.platform != "win32" and shell.found("ssh")):
        from podctl.wire.openssh import OpenSsh

        return OpenSsh(address)
    from podctl.wire.paramiko import Paramiko

    return Paramiko(address)
