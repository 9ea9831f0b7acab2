"""Asking a machine many things at once: one POSIX shell script there, one command over the wire, names and values back.

Nothing of ours need be there yet. `facts.py` asks so what a launch must know, `probe.py` what a doctor looks at.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from podctl.errors import PodctlError
from podctl.host import Host

BEGIN = "podctl-answers"  # what a login script prints comes before it
PYTHONS = (  # where a machine has one that what we send may run on; the first that is new enough
    "python3",
    "/usr/bin/python3",
    "/usr/local/bin/python3",
    "/opt/conda/bin/python3",
    "python3.13",
    "python3.12",
    "python3.11",
)

# What every such script begins with. Values are a line each; `~` is that machine's own.
# program WORD: a program's whole path, or its name · version PYTHON
# the_python GIVEN: which one runs what we send (3.8 or newer; sets `python`), which are too old, and whether GIVEN runs
WORDS = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
line() { printf %s "$1" | tr '\n\r' '  '; }
whole() { case $1 in '~') printf %s "$HOME" ;; '~/'*) printf %s "$HOME/${1#??}" ;; *) printf %s "$1" ;; esac; }
program() { p=$(whole "$1"); case $p in /*) ;; */*) p=$PWD/$p ;; esac; printf %s "$p"; }
version() { "$1" -I -S -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
the_python() {
  for p in "$1" PYTHONS; do
    [ -n "$p" ] || continue
    v=$(version "$p")
    case $v in
      '') [ "$p" != "$1" ] || say unusable "$p" ;;
      2.* | 3.[0-7] | 3.[0-7].*) say "old.$p" "$v" ;;
      [0-9]*) python=$(command -v "$p"); say python "$python"; say python.version "$v"; return ;;
    esac
  done
}
exec </dev/null
echo; echo podctl-answers; say now "$(date +%s)"
""".replace("PYTHONS", " ".join(PYTHONS))


@dataclass(frozen=True)
class Answers:
    """What a machine said of itself. `skew_s`: its clock minus ours. `chatter`: what its shell says to a command."""

    values: Mapping[str, str] = field(default_factory=dict)
    took_s: float = 0.0
    skew_s: float = 0.0
    chatter: str = ""

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")

    @property
    def is_whole(self) -> bool:
        """Did the script come to its end?"""
        return "end" in self.values

    def number(self, name: str) -> int | None:
        """None where it is none."""
        return int(self[name]) if self[name].isdecimal() else None

    def below(self, prefix: str) -> dict[str, str]:
        """The answers named `prefix.…`, in the order that they came."""
        start = prefix + "."
        return {name.removeprefix(start): value for name, value in self.values.items() if name.startswith(start)}


def ask(host: Host, script: str, *words: str, timeout_s: float = 60) -> Answers:
    """Run a script that begins with WORDS and ends with `say end yes`. Raises Unreachable, PodctlError."""
    wall, begun = time.time(), time.monotonic()
    result = host.run(["sh", "-c", script, "sh", *words], timeout_s=timeout_s)
    answers = parse(result.stdout, time.monotonic() - begun, wall)
    if not answers.is_whole:
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise PodctlError(
            f"{host.name} does not answer as a machine with a POSIX shell: {said[0]}",
            "can you run a command there by ssh?",
        )
    return answers


def parse(stdout: str, took_s: float = 0.0, wall: float = 0.0) -> Answers:
    """What the script printed. Pure; lines that are no answer are left out."""
    chatter, found, rest = stdout.partition(f"\n{BEGIN}\n")
    if not found:
        return Answers(took_s=took_s)
    values = {}
    for text in rest.split("\n"):
        name, equals, value = text.partition("=")
        if equals:
            values[name] = value
    now = values.get("now", "")
    skew_s = _outside(float(now), wall - 1, wall + took_s + 1) if now.isdecimal() else 0.0
    return Answers(values, took_s, skew_s, chatter.strip())


def _outside(value: float, low: float, high: float) -> float:
    """How far below or above a span; 0 within it."""
    return min(value - low, 0.0) + max(value - high, 0.0)
