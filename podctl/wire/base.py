"""What a wire has to carry; all that differs between OpenSSH and paramiko."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from podctl.host import Stream
from podctl.pods import Result, SshAddress


class Wire(Protocol):
    """One connection to one sshd whose host key is the announced one, shared by everything that runs over it.

    It connects when it is first used and again after it broke; every call raises Unreachable where it can't, saying
    which of these it was: no route, refused, no answer, another host key, no key of ours accepted.
    """

    address: SshAddress

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60) -> Result:
        """As Host.run."""
        ...

    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> AbstractContextManager[Stream]:
        """As Host.stream. A command that is sent input ends over there as its input or its output does: one that
        heeds neither outlives the block."""
        ...

    def forward(self, remote_port: int, local_port: int) -> AbstractContextManager[None]:
        """As Host.forward."""
        ...

    def terminal(self, argv: Sequence[str] = ()) -> int:
        """As Host.terminal."""
        ...

    def rsync_shell(self) -> str | None:
        """What rsync takes after -e to travel over this connection; None where it can't."""
        ...

    def close(self) -> None:
        """End the shared connection, and what ran over it."""
        ...
