"""What `podctl doctor` asks a machine: one script there, one command over the wire, names and values back."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from podctl.errors import PodctlError
from podctl.host import Host

BEGIN = "podctl-answers"  # what a login script prints comes before it
PATIENCE_S = 90  # a sick GPU, a slow network file system

SCRIPT = r"""
say() { printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n\r' '  ')"; }
bounded() { if command -v timeout >/dev/null 2>&1; then timeout 20 "$@"; else "$@"; fi; }
home() { case $1 in '~/'*) printf '%s/%s' "$HOME" "${1#??}" ;; *) printf %s "$1" ;; esac; }
folder() {
  say "$1.path" "$2"
  p=$2
  while [ ! -e "$p" ] && [ ! -L "$p" ] && [ "$p" != "${p%/*}" ]; do p=${p%/*}; [ -n "$p" ] || p=/; done
  if [ "$p" = "$2" ]; then
    say "$1.is" "$([ -d "$p" ] && echo folder || echo file)"
    f=$p/.podctl-$$
    if said=$( (umask 077; printf x >"$f") 2>&1); then said=yes; rm -f "$f"; fi
    say "$1.writable" "$said"
  else
    say "$1.is" absent
    say "$1.above" "$p"
    say "$1.writable" "$([ -d "$p" ] && [ -w "$p" ] && [ -x "$p" ] && echo yes || echo "$p is not yours to write")"
  fi
  say "$1.free_kb" "$(bounded df -Pk "$p" 2>/dev/null | awk 'NR==2 {print $4}')"
}
exec </dev/null
echo; echo podctl-answers
say now "$(date +%s)"
say system "$(uname -s)"
say user "$(id -un 2>/dev/null || id -u)"
say host "$(uname -n)"
for program in bash tmux rsync tar espeak-ng nvidia-smi; do
  say "has.$program" "$(command -v "$program" 2>/dev/null)"
done
say tmux "$(tmux -V 2>/dev/null)"
say rsync "$(rsync --version 2>/dev/null | head -n 1)"
version='import sys; print("%d.%d.%d" % sys.version_info[:3])'
newest=
for python in python3 python3.13 python3.12 python3.11; do
  v=$("$python" -I -c "$version" 2>/dev/null) || v=
  say "python.$python" "$v"
  case $v in 3.1[1-9].*|3.[2-9][0-9].*) newest=${newest:-$python} ;; esac
done
[ -z "$newest" ] || say venv "$("$newest" -I -c 'import venv, ensurepip; print("yes")' 2>/dev/null)"
if [ -n "$3" ]; then
  given=$(home "$3")
  say given.version "$("$given" -I -c "$version" 2>/dev/null)"
  has='import importlib.util as u; print("yes" if u.find_spec("torch") else "no")'
  say given.torch "$("$given" -I -c "$has" 2>/dev/null)"
fi
folder volume "$(home "$1")"
folder disk "$(home "$2")"
say shm "$([ -d /dev/shm ] && [ -w /dev/shm ] && echo yes)"
if command -v nvidia-smi >/dev/null 2>&1; then
  n=0
  bounded nvidia-smi -L 2>&1 | while IFS= read -r gpu; do say "gpu.$n" "${gpu%% (UUID*}"; n=$((n + 1)); done
  say cuda "$(bounded nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9.]*\).*/\1/p' | head -n 1)"
  say driver "$(bounded nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
fi
for socket in "/tmp/podctl-$(id -u)"/*.sock; do
  [ -S "$socket" ] || continue
  for name in $(tmux -S "$socket" list-sessions -F '#{session_name}' 2>/dev/null); do say "run.$name" alive; done
done
say end yes
"""


@dataclass(frozen=True)
class Answers:
    """What a machine said of itself. `skew_s`: its clock minus ours. `chatter`: what its shell says to a command."""

    values: Mapping[str, str] = field(default_factory=dict)
    took_s: float = 0.0
    skew_s: float = 0.0
    chatter: str = ""

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")

    def below(self, prefix: str) -> list[str]:
        """The values of `prefix.…`, in the order that they came."""
        return [value for name, value in self.values.items() if name.startswith(prefix + ".")]


def ask(host: Host, *, volume: str, disk: str, python: str = "") -> Answers:
    """Ask a machine everything at once. Raises Unreachable, PodctlError where it can't run a script."""
    wall, begun = time.time(), time.monotonic()
    result = host.run(["sh", "-c", SCRIPT, "sh", volume, disk, python], timeout_s=PATIENCE_S)
    took_s = time.monotonic() - begun
    answers = parse(result.stdout, took_s, wall)
    if "end" not in answers.values:
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise PodctlError(f"{host.name} could not answer: {said[0]}", "can you run a command there by ssh?")
    return answers


def parse(stdout: str, took_s: float = 0.0, wall: float = 0.0) -> Answers:
    """What the script printed. Pure; lines that are no answer are left out."""
    chatter, found, rest = stdout.partition(f"\n{BEGIN}\n")
    if not found:
        return Answers(took_s=took_s)
    values = {}
    for line in rest.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            values[name] = value.strip()
    now = values.get("now", "")
    skew_s = _outside(float(now), wall - 1, wall + took_s + 1) if now.isdecimal() else 0.0
    return Answers(values, took_s, skew_s, chatter.strip())


def _outside(value: float, low: float, high: float) -> float:
    """How far below or above a span; 0 within it."""
    return min(value - low, 0.0) + max(value - high, 0.0)
