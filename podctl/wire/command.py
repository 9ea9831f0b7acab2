"""The line that makes any login shell over there run exactly these words, and end them when nobody listens."""

import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

LINK_CODE = 255  # ssh's own exit code, when the link and not the command is to blame

# sshd starts a command as the leader of a session, and `exec` all the way keeps it so: the group is the command.
# The watcher reads the channel's input. Its end means that the block was left or the link broke, which a command
# that never writes would never learn. It alone is in the background: what a shell starts there ignores Ctrl-C.
_WATCH = (
    "exec 3<&0 </dev/null; "
    '( trap "" TERM; while read -r _; do :; done <&3; kill -TERM -$$; sleep 2; kill -KILL -$$ ) >/dev/null 2>&1 & '
    '"$@" 3<&-; r=$?; kill -KILL $! 2>/dev/null; '
)
_PLAIN = '"$@"; r=$?; '  # no exec: killed by a signal, it has the shell's exit code and not ssh's 255


@dataclass(frozen=True)
class Command:
    """A line for the login shell, and what it says on stderr should the command itself exit with 255."""

    line: str
    mark: str

    def code_and_stderr(self, exit_code: int, stderr: str) -> tuple[int | None, str]:
        """The command's exit code, None where the link broke before there was one; stderr without the mark."""
        if exit_code != LINK_CODE:
            return exit_code, stderr
        before, found, after = stderr.rpartition(self.mark + "\n")
        return (LINK_CODE, before + after) if found else (None, stderr)


def command_of(argv: Sequence[str], *, watched: bool) -> Command:
    """`watched`: the command gets no input, and ends when its channel's input does."""
    mark = f"podctl-{secrets.token_hex(8)}"  # of this call alone: a command that prints it has not read it anywhere
    script = f"{_WATCH if watched else _PLAIN}[ $r -ne {LINK_CODE} ] || echo {mark} >&2; exit $r"
    return Command(line_of(["sh", "-c", script, "sh", *argv]), mark)


def line_of(argv: Sequence[str]) -> str:
    """One line for bash, zsh, fish, csh or a plain sh: where quotes mean different things to them, they are
    avoided."""
    line = "exec " + shlex.join(argv)
    if line.isascii() and line.isprintable() and not re.search(r"\\|!(?! )", line):
        return line
    data = line.encode("utf-8", "surrogateescape")
    safe = "".join(chr(b) if chr(b).isalnum() and b < 128 else f"\\0{b:03o}" for b in data)
    return f"exec sh -c 'eval \"$(printf %b \"$1\")\"' sh '{safe}'"
