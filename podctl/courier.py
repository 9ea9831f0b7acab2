"""The far end of carrying files: one program, sent along with each call, spoken to over stdin and stdout.

Works over any wire and any host: all it needs there is a POSIX shell and Python 3.
"""

import base64
import errno
import functools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Any, Protocol

import remote
from podctl.asking import PYTHONS
from podctl.errors import MissingThere, PodctlError, Unreachable
from podctl.host import Stream
from remote.carry import ABSENT
from remote.frames import Broken, line_of

MODULES = ("frames", "holdings", "taking", "carry")  # each after those that it imports
NO_PYTHON = 127  # as a shell says that it found no program
# names of files are UTF-8 whatever the locale: by -X utf8, and before Python 3.7 by the locale itself
SCRIPT = (
    "LC_ALL=C.UTF-8; export LC_ALL; "
    'for p in {}; do command -v "$p" >/dev/null 2>&1 && exec "$p" -I -S -X utf8 -c "$@"; done; exit 127'
)

LOADER = """
import sys, types
sys.modules["remote"] = types.ModuleType("remote")
for name, text in %s:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
sys.exit(module.main(*sys.argv[1:]))
"""

Tell = Callable[[Mapping[str, Any]], None]


class Carrier(Protocol):
    """What a wire and a host have in common."""

    def stream(
        self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None
    ) -> AbstractContextManager[Stream]: ...


def argv(verb: str, root: PurePath) -> list[str]:
    """The command that runs `remote/carry.py` there; exit code `NO_PYTHON` where it can't."""
    return ["sh", "-c", SCRIPT.format(" ".join(PYTHONS)), "sh", _program(), verb, str(root)]


def take(
    carrier: Carrier, root: PurePath, order: Mapping[str, Any], body: Iterable[bytes], tell: Tell = lambda said: None
) -> None:
    """Send frames; `tell` hears its answers while they come. Raises PodctlError, Unreachable."""

    def sent() -> Iterator[bytes]:
        yield line_of(order)
        yield from body

    done = False
    for said in _answers(carrier, "take", root, sent()):
        done = done or bool(said.get("done"))
        tell(said)
    if not done:
        raise Unreachable("the machine fell silent while files were sent", "try again: what arrived is not sent twice")


def survey(
    carrier: Carrier, root: PurePath, order: Mapping[str, Any], tell: Tell = lambda said: None
) -> Mapping[str, Any]:
    """What is there, in one command. Raises PodctlError, FileNotFoundError, Unreachable."""
    last: Mapping[str, Any] = {}
    for said in _answers(carrier, "survey", root, iter([line_of(order)])):
        last = said
        tell(said)
    if "files" not in last:
        raise Unreachable("the machine fell silent before it had said what is there", "try again")
    return last


def give(
    carrier: Carrier, root: PurePath, order: Mapping[str, Any], receive: Callable[[Iterator[bytes]], None]
) -> None:
    """Hand what comes to `receive`. Raises FileNotFoundError, PodctlError, Unreachable."""
    with carrier.stream(argv("give", root), stdin=[line_of(order)]) as stream:
        pieces = (piece for piece in stream if piece)
        first = next(pieces, None)
        if first is None or first.startswith(b'{"error"'):
            _fail(stream, first or b"", root)

        def all_of_it() -> Iterator[bytes]:
            assert first is not None
            yield first
            yield from pieces

        try:
            receive(all_of_it())
        except Broken as e:
            raise Unreachable(f"{root} did not come whole: {e}", "try again: what is here is not sent twice") from None


def _answers(carrier: Carrier, verb: str, root: PurePath, stdin: Iterator[bytes]) -> Iterator[Mapping[str, Any]]:
    """Each line of JSON that it says. Raises PodctlError for its last word where that is an error."""
    held = b""
    with carrier.stream(argv(verb, root), stdin=stdin) as stream:
        for piece in stream:
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                said = _object(line)
                if "error" in said:
                    _fail(stream, line, root)
                yield said
        if stream.exit_code:
            _fail(stream, held, root)


def _fail(stream: Stream, line: bytes, root: PurePath) -> None:
    said = _object(line.partition(b"\n")[0])
    if said.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFull(f"the disk over there is full: {said['error']}", "free some space there, then the same again")
    if "error" in said:
        raise PodctlError(f"over there, {said['error']}", "may you read and write there?")
    for _ in stream:  # to its end, where it has not come yet
        pass
    code = stream.exit_code
    if code == ABSENT:
        raise FileNotFoundError(errno.ENOENT, "there is no such file or folder over there", str(root))
    if code == NO_PYTHON:
        raise NoPython("there is no Python over there", "there: apt-get install python3")
    last = stream.stderr.strip().splitlines()[-1:] or [f"exit code {code}"]
    raise PodctlError(f"carrying files failed over there: {last[0]}")


class DiskFull(PodctlError):
    """No more room over there."""


class NoPython(MissingThere):
    """Nothing there can run us."""


@functools.cache
def _program() -> str:
    """`remote`'s own text, packed, and what unpacks it: one line of letters that no shell takes amiss."""
    here = Path(str(remote.__file__)).parent
    texts = [[f"remote.{name}", (here / f"{name}.py").read_text(encoding="utf-8")] for name in MODULES]
    load = base64.b64encode(zlib.compress((LOADER % json.dumps(texts)).encode("ascii"), 9)).decode("ascii")
    return f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{load}')))"


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
