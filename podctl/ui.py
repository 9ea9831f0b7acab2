"""Everything that podctl shows: data on stdout, talk on stderr, and nothing that waits without a terminal.

The only module that prints. A command makes one `Ui` and hands it down.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from podctl.errors import BadInput, Cancelled, PodctlError


class ReaderGone(Exception):
    """Whoever read our stdout closed it: `podctl logs | head`."""


class Ui:
    """One command's voice. With `as_json`, what a command has to say on stdout is JSON, an object a line."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.live_wanted = sys.stderr.isatty() and not as_json
        self._colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._live = ""
        self._at_line_start = True  # of the log on the terminal

    # talk

    def note(self, text: str) -> None:
        """A line of talk."""
        self._talk(text)

    def done(self, text: str) -> None:
        """A line that long work leaves behind."""
        self._talk(f"{self._paint('32', '✓')} {text}")

    def warn(self, text: str) -> None:
        """A line that should not be missed."""
        self._talk(f"{self._paint('33', '!')} {text}")

    def fail_line(self, text: str) -> None:
        """A line that says what went wrong."""
        self._talk(f"{self._paint('31', '✗')} {text}")

    def hint(self, text: str) -> None:
        """What to type next."""
        self._talk(self._paint("2", f"→ {text}"))

    def fail(self, error: PodctlError) -> None:
        """An error: what is the case, each mistake on a line, what to type next; in JSON, one object on stdout."""
        mistakes = error.mistakes if isinstance(error, BadInput) else ()
        if self.as_json:
            told = {"event": "error", "error": error.message, "hint": error.hint, "mistakes": list(mistakes)}
            self.emit({**told, "exit_code": error.exit_code})
        self.fail_line(error.message)
        for mistake in mistakes:
            self._talk(f"  {mistake}")
        if error.hint:
            self.hint(error.hint)

    def live(self, text: str) -> None:
        """Replace the live line; without a terminal nothing is shown."""
        if not self.can_live:
            return
        text = cut(text, self.width)
        if text != self._live:
            _write(sys.stderr, f"\r\x1b[K{self._paint('2', text)}" if text else "\r\x1b[K")
            self._live = text

    @property
    def can_live(self) -> bool:
        """Would a live line be seen now? Not without a terminal, and not while the log stands in mid-line."""
        return self.live_wanted and self._at_line_start

    @property
    def width(self) -> int:
        """Characters that a live line may have: the last column makes some terminals wrap, and a `^C` that is echoed
        behind it would begin a line of its own."""
        return columns_of(sys.stderr) - 3

    def confirm(self, question: str) -> bool:
        """Ask; Enter means no. Raises BadInput where nobody can answer."""
        self.refuse_without_terminal()
        self.live("")
        _write(sys.stderr, f"{question} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def ask(self, question: str, *, default: str = "", hidden: bool = False) -> str:
        """A line of text; Enter means the default. `hidden`: what is typed is not shown.

        Raises BadInput where nobody can answer, Cancelled at the end of the input.
        """
        self.refuse_without_terminal()
        self.live("")
        _write(sys.stderr, f"{question} [{default}] " if default else f"{question} ")
        with _without_echo() if hidden else contextlib.nullcontext():
            line = sys.stdin.readline()
        if not line:
            raise Cancelled("nothing was changed", "type the command again when you have the answers")
        return line.strip() or default

    def agree(self, question: str) -> bool:
        """Ask about what does no harm; Enter means yes. Raises as `ask` does."""
        return self.ask(question, default="Y/n").lower() in ("y", "yes", "y/n")

    def refuse_without_terminal(self) -> None:
        """Raises BadInput where nobody can answer."""
        if self.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise BadInput("nobody can be asked here: this is not a terminal", "add --yes")

    # data

    def data(self, text: str) -> None:
        """A line of data."""
        self.live("")
        _write(sys.stdout, text + "\n")

    def emit(self, value: Mapping[str, Any]) -> None:
        """One JSON object on a line of its own."""
        self.live("")
        _write(sys.stdout, json.dumps(_finite(value), ensure_ascii=True, default=str) + "\n")

    def log(self, chunk: bytes) -> None:
        """A piece of a run's log, byte for byte."""
        live, shown = self._live, self.live_wanted
        self.live("")
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        self._at_line_start = chunk.endswith((b"\n", b"\r")) or not sys.stdout.isatty()
        if shown:
            self.live(live)

    def pass_on(self, data: bytes, *, error: bool = False) -> None:
        """What somebody else says, to the same stream here, byte for byte; in JSON, a line for a piece."""
        if self.as_json:
            self.emit(
                {"event": "output", "stream": "stderr" if error else "stdout", "text": data.decode("utf-8", "replace")}
            )
            return
        stream = sys.stderr if error else sys.stdout
        try:
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        except BrokenPipeError:
            raise ReaderGone from None

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, drop: Sequence[str] = ()) -> None:
        """Columns as wide as they need to be; numbers are right-aligned by their heading's leading `>`. On a terminal
        that is too narrow the columns of `drop` go, the first one first; whoever pipes it away gets them all."""
        width = columns_of(sys.stdout) if sys.stdout.isatty() else 0
        for line in table_lines(head, rows, width=width, drop=drop):
            self.data(line)

    def facts(self, facts: Sequence[tuple[str, str]], *, talk: bool = False) -> None:
        """Names and values, aligned; an empty value is left out."""
        facts = [(name, value) for name, value in facts if value]
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            line = f"{name.ljust(width)}  {value}"
            self._talk(f"  {line}") if talk else self.data(line)

    def _talk(self, text: str) -> None:
        self.live("")
        if not self._at_line_start:
            text, self._at_line_start = "\n" + text, True
        _write(sys.stderr, text + "\n")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def table_lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 0, drop: Sequence[str] = ()
) -> list[str]:
    """What `Ui.table` prints; width 0 is as wide as it takes. Where leaving out is not enough, the first is cut."""
    right = {h.lstrip(">"): h.startswith(">") for h in head}
    names = list(right)
    columns = {n: [n, *(str(row[i]) for row in rows)] for i, n in enumerate(names)}
    wide = {n: max(map(len, column)) for n, column in columns.items()}

    def needed() -> int:
        return sum(wide[n] for n in names) + 2 * (len(names) - 1)

    for name in drop:
        if width and needed() > width and name in names:
            names.remove(name)
    if width and needed() > width:
        wide[names[0]] = max(len(names[0]), wide[names[0]] - (needed() - width))
    lines = []
    for i in range(len(rows) + 1):
        cells = [(cut(columns[n][i], wide[n]), n) for n in names]
        lines.append("  ".join(c.rjust(wide[n]) if right[n] else c.ljust(wide[n]) for c, n in cells).rstrip())
    return lines


def fit(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Parts in their order, ` · ` between; where that is too long, those of the highest rank go first, whole."""
    kept = [(rank, text) for rank, text in parts if text]
    while len(kept) > 1 and len(" · ".join(text for _, text in kept)) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return cut(" · ".join(text for _, text in kept), width)


def cut(text: str, width: int) -> str:
    """At most so many characters, the last one then `…`."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def columns_of(stream: Any) -> int:
    """How wide the terminal behind a stream is; 80 where there is none."""
    with contextlib.suppress(ValueError):
        said = int(os.environ.get("COLUMNS", ""))
        if said > 0:
            return said
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def money(usd: float) -> str:
    """`$3.20`."""
    return f"${usd:,.2f}"


def size(n_bytes: float) -> str:
    """`840 B`, `12.3 kB`, `1.2 GB`."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} TB"


def shown(path: object) -> str:
    """A path on one line, whatever is in it; relative to here where that is shorter."""
    text = str(path)
    here = str(_cwd()) + os.sep
    text = text[len(here) :] if text.startswith(here) else text
    return text if text.isprintable() and text.strip() == text and text else repr(text)


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """The terminal shows nothing of what is typed. A terminal that can't is refused: a key would stay on its screen."""
    import termios

    fd = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        raise BadInput("this terminal can't hide what is typed", "add --yes, and write .runpod.env by hand") from None
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        _write(sys.stderr, "\n")


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for: a loss that diverged."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _cwd() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 – a directory that was removed raises, and that is all we ask
    except OSError:
        return "/nowhere"


def _write(stream: Any, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a terminal that knows no ✓, or a file name that is not UTF-8
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    try:
        stream.flush()
    except BrokenPipeError:
        raise ReaderGone from None
