"""A machine we can run things on: the protocol, and the two things every caller needs on top of it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Protocol

from podctl.errors import PodctlError, Unreachable
from podctl.pods import Pod, Result

IDLE_S = 0.5  # a stream that has nothing to say lets its reader look up about this often


class Stream(Protocol):
    """A command that runs on a host, heard while it speaks."""

    def __iter__(self) -> Iterator[bytes]:
        """Its stdout in pieces as they come, b"" after about `IDLE_S` without any; ends when the command does.

        Raises Unreachable where the link breaks before that.
        """
        ...

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        ...

    @property
    def stderr(self) -> str:
        """What it said there so far."""
        ...


class Host(Protocol):
    """OpenSSH with one shared connection; fabric where there is no OpenSSH; this machine.

    Every call raises Unreachable where the machine does not answer or is not the one that was announced.
    """

    name: str  # as a person calls the machine

    def run(self, argv: Sequence[str], *, stdin: str | bytes = "", timeout_s: float = 60) -> Result:
        """Run a command there. Its own failure is in the result; a time-out is exit code 124. Surrogate escapes in
        stdin and in the result stand for bytes that are no UTF-8."""
        ...

    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> AbstractContextManager[Stream]:
        """A command there for as long as the block lasts. `stdin` is sent while it runs, then closed; None keeps it
        open and empty. A block that is left, and a link that breaks, end the command there too; one that is sent
        something, by its input or output ending, which it must heed."""
        ...

    def push(self, source: Path, target: PurePath, *, files_from: Sequence[str] = ()) -> None:
        """Make the target directory hold the source's files, those named or all, and no others."""
        ...

    def pull(self, source: PurePath, target: Path, *, names: Sequence[str] = ()) -> None:
        """Bring a file or a directory, or what is named below it and there; what is here and gone there stays. Raises
        FileNotFoundError where there is no source."""
        ...

    def read(self, path: PurePath) -> bytes | None:
        """A small file's bytes; None where there is none."""
        ...

    def follow(self, path: PurePath, *, offset: int = 0) -> Iterator[bytes]:
        """A growing file from a byte offset, for ever. Yields b"" when nothing came for about half a second, so
        that the caller can look up; an absent file is one that has not grown yet."""
        ...

    def forward(self, remote_port: int, local_port: int) -> AbstractContextManager[None]:
        """While open, the local port on loopback answers as the remote one's loopback does."""
        ...

    def terminal(self, argv: Sequence[str] = ()) -> int:
        """Hand this terminal to a command there, or to a login shell. Its exit code."""
        ...


def host_of(pod: Pod) -> Host:
    """The way onto a pod. Raises Unreachable for a rented one that has no address yet."""
    if pod.is_here:
        from podctl.localhost import LocalHost

        return LocalHost()
    if pod.ssh is None:
        raise Unreachable(f"{pod.name} is {pod.state}, without an address yet", "try again in a minute")
    from podctl.wire import ssh_host

    return ssh_host(pod.ssh)


def write(host: Host, path: PurePath, text: str, *, mode: str = "644") -> None:
    """Put a small file there, over stdin, whole or not at all; its folder is made. Raises PodctlError."""
    script = (  # counted: what a broken link cuts off looks like an end over there
        'umask 077; t="$1.$$.tmp"; mkdir -p -- "${1%/*}" && cat >"$t" && [ "$(wc -c <"$t")" -eq "$3" ] && '
        'chmod "$2" "$t" && mv -f -- "$t" "$1" || { r=$?; rm -f -- "$t"; exit "$r"; }'
    )
    data = text.encode("utf-8", "surrogateescape")
    result = host.run(["sh", "-c", script, "sh", str(path), mode, str(len(data))], stdin=data)
    if not result.ok:
        raise PodctlError(
            f"{path} can't be written: {result.stderr.strip()}", "is there room, and may you write there?"
        )
