"""What `podctl doctor` asks a machine, in one command."""

from podctl.asking import WORDS, Answers, ask
from podctl.host import Host

PATIENCE_S = 90  # a sick GPU, a slow network file system

SCRIPT = (
    WORDS
    + r"""
bounded() { if command -v timeout >/dev/null 2>&1; then timeout 20 "$@"; else "$@"; fi; }
folder() {
  say "$1.path" "$(line "$2")"
  p=$2
  while [ ! -e "$p" ] && [ ! -L "$p" ] && [ "$p" != "${p%/*}" ]; do p=${p%/*}; [ -n "$p" ] || p=/; done
  if [ "$p" = "$2" ]; then
    say "$1.is" "$([ -d "$p" ] && echo folder || echo file)"
    f=$p/.podctl-$$
    if said=$( (umask 077; printf x >"$f") 2>&1); then said=yes; rm -f "$f"; fi
    say "$1.writable" "$(line "$said")"
  else
    say "$1.is" absent
    say "$1.above" "$p"
    say "$1.writable" "$([ -d "$p" ] && [ -w "$p" ] && [ -x "$p" ] && echo yes || echo "$p is not yours to write")"
  fi
  say "$1.free_kb" "$(bounded df -Pk "$p" 2>/dev/null | awk 'NR==2 {print $4}')"
}
say system "$(uname -s)"
say user "$(id -un 2>/dev/null || id -u)"
say host "$(uname -n)"
for program in bash tmux rsync tar espeak-ng nvidia-smi; do
  say "has.$program" "$(command -v "$program" 2>/dev/null)"
done
say tmux "$(tmux -V 2>/dev/null)"
say rsync "$(rsync --version 2>/dev/null | head -n 1)"
given=$(program "$3")
python=; the_python "$given"
newest=
for candidate in "$python" python3.13 python3.12 python3.11; do  # as the runner looks for one
  [ -n "$candidate" ] || continue
  v=$(version "$candidate")
  say "candidate.$candidate" "$v"
  case $v in 3.1[1-9].*|3.[2-9][0-9].*) newest=${newest:-$candidate} ;; esac
done
[ -z "$newest" ] || say venv "$("$newest" -I -c 'import venv, ensurepip; print("yes")' 2>/dev/null)"
if [ -n "$given" ]; then
  say given.version "$(version "$given")"
  has='import importlib.util as u; print("yes" if u.find_spec("torch") else "no")'
  say given.torch "$("$given" -I -c "$has" 2>/dev/null)"
fi
folder volume "$(whole "$1")"
folder disk "$(whole "$2")"
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
)


def look(host: Host, *, volume: str, disk: str, python: str = "") -> Answers:
    """Changes nothing there. Raises Unreachable, PodctlError where the machine can't run a script."""
    return ask(host, SCRIPT, volume, disk, python, timeout_s=PATIENCE_S)
