"""What a machine has and what of ours is there already: everything a launch needs to know, asked in one command."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from podctl.errors import MissingThere, PodctlError
from podctl.host import Host
from podctl.pods import Pod

NEEDS_PYTHON = "3.8"  # of what we send; the environment for the training itself may be built from another one

# Plain sh, since nothing of ours may be there yet. Each answer is a line; `~` is that machine's own.
SCRIPT = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
whole() { case $1 in "~") printf %s "$HOME" ;; "~/"*) printf %s "$HOME/${1#"~/"}" ;; *) printf %s "$1" ;; esac; }
volume=$(whole "$1"); disk=$(whole "$2"); run=$volume/runs/$3; project=$4; tree=$5; stamp=$6; given=$7
say home "$HOME"; say uid "$(id -u)"; say system "$(uname -s)"; say now "$(date +%s)"
say volume "$volume"; say disk "$disk"
for c in tmux bash tar rsync nvidia-smi; do command -v "$c" >/dev/null 2>&1 && say has "$c"; done
try() { "$1" -I -S -c 'import sys; v = sys.version_info; print("%d.%d" % v[:2]); sys.exit(v < (3, 8))' 2>/dev/null; }
found=
for p in "$given" python3 /usr/bin/python3 /usr/local/bin/python3 python3.13 python3.12 python3.11
do
  [ -n "$p" ] || continue
  v=$(try "$p"); code=$?
  [ -n "$v" ] && say python_seen "$v"
  if [ $code = 0 ]; then found=$(command -v "$p"); say python "$found"; break; fi
done
for d in "$volume/runs" "$disk/trees/$project" "$disk/src" "$disk/tool"; do
  f=${d%/runs}/.podctl-$$  # not among the runs: whoever lists them would take it for one
  e=$(mkdir -p "$d" 2>&1) && e=$( { date >"$f"; } 2>&1 ) && e=$(rm -f "$f" 2>&1) && continue
  say trouble "$d: $(printf %s "$e" | tr '\n' ' ')"; rm -f "$f" 2>/dev/null; break
done
say volume_free_kb "$(df -Pk "$volume" 2>/dev/null | awk 'NR == 2 { print $4 }')"
say disk_free_kb "$(df -Pk "$disk" 2>/dev/null | awk 'NR == 2 { print $4 }')"
[ -n "$stamp" ] && [ -e "$disk/tool/$stamp/.complete" ] && say has_tool yes
[ -n "$tree" ] && [ -e "$disk/trees/$project/$tree.json" ] && say has_tree yes
say newest_tree "$(cd "$disk/trees/$project" 2>/dev/null && ls -t 2>/dev/null | sed -n 's/\.json$//p' | head -n 1)"
[ -d /dev/shm ] && [ -w /dev/shm ] && say shm /dev/shm
[ -n "$3" ] && [ -d "$run" ] && say has_run yes
[ -f "$run/log" ] && say log_bytes "$(wc -c <"$run/log" | tr -d ' ')"
[ -d "$run/writer" ] && say epoch "$(ls "$run/writer" | sort -n | tail -n 1)"
say end yes
"""


@dataclass(frozen=True)
class Facts:
    """One look at a machine. Paths are whole: no `~` is left in them."""

    host: str
    home: str
    uid: int
    system: str
    now: float  # by its own clock
    volume: PurePosixPath
    disk: PurePosixPath
    has: frozenset[str] = frozenset()  # tmux, bash, tar, rsync, nvidia-smi
    python: str = ""  # 3.8 or newer, "" for none
    python_seen: str = ""  # a version, where all are too old
    trouble: str = ""  # a folder of ours that can't be written, and why
    volume_free_kb: int | None = None
    disk_free_kb: int | None = None
    has_tool: bool = False
    has_tree: bool = False
    newest_tree: str = ""
    shm: str = ""
    has_run: bool = False
    log_bytes: int = 0
    epoch: int = 0  # attempts of this run so far

    @property
    def private(self) -> PurePosixPath:
        """A folder in memory, or at least not on the volume, for its owner alone."""
        return PurePosixPath(self.shm or "/tmp", f"podctl-{self.uid}")

    @property
    def sockets(self) -> PurePosixPath:
        """The same with a short name: a socket's path ends near 104 bytes."""
        return PurePosixPath(f"/tmp/podctl-{self.uid}")

    def socket(self, run_dir: str) -> PurePosixPath:
        """Where a run's tmux server listens; every laptop works out the same."""
        return self.sockets / f"{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}.sock"


def gather(host: Host, pod: Pod, *, run_id: str = "", project: str = "", tree: str = "", stamp: str = "") -> Facts:
    """Ask. Makes our folders there. Raises Unreachable, PodctlError."""
    words = [str(pod.volume_dir), str(pod.disk_dir), run_id, project, tree, stamp, pod.python]
    result = host.run(["sh", "-c", SCRIPT, "sh", *words])
    facts = parse(host.name, result.stdout)
    if facts is None:
        said = (result.stderr or result.stdout).strip().splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise PodctlError(f"{host.name} does not answer as a machine with a POSIX shell: {said[0]}")
    return facts


def parse(host: str, text: str) -> Facts | None:
    """The script's answer; None where it did not come to its end. A login script's own words are passed over."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            values.setdefault(name, []).append(value)
    if "end" not in values:
        return None

    def one(name: str) -> str:
        return values.get(name, [""])[-1]

    def number(name: str) -> int:
        return int(one(name)) if one(name).isdigit() else 0

    return Facts(
        host=host,
        home=one("home"),
        uid=number("uid"),
        system=one("system"),
        now=float(number("now")),
        volume=PurePosixPath(one("volume")),
        disk=PurePosixPath(one("disk")),
        has=frozenset(values.get("has", ())),
        python=one("python"),
        python_seen=", ".join(dict.fromkeys(values.get("python_seen", ()))),
        trouble=one("trouble"),
        volume_free_kb=number("volume_free_kb") if one("volume_free_kb") else None,
        disk_free_kb=number("disk_free_kb") if one("disk_free_kb") else None,
        has_tool=bool(one("has_tool")),
        has_tree=bool(one("has_tree")),
        newest_tree=one("newest_tree"),
        shm=one("shm"),
        has_run=bool(one("has_run")),
        log_bytes=number("log_bytes"),
        epoch=number("epoch"),
    )


def refuse_what_is_missing(facts: Facts) -> None:
    """What a run needs of its machine. Raises MissingThere with what to type there."""
    for program in ("tmux", "bash"):
        if program not in facts.has:
            raise MissingThere(
                f"{facts.host} has no {program}, and a run needs it", f"there: {install_there(facts, program)}"
            )
    if not facts.python:
        seen = f"only Python {facts.python_seen}" if facts.python_seen else "no Python"
        raise MissingThere(
            f"{facts.host} has {seen}, {NEEDS_PYTHON} or newer is needed",
            f"there: {install_there(facts, 'python3')}, or name one by pod.ssh.python",
        )
    if facts.trouble:
        where, _, why = facts.trouble.partition(": ")
        reason = why.rpartition(": ")[2] or why or "it is refused"
        key = "pod.volume" if where.startswith(str(facts.volume)) else "pod.ssh.disk"
        raise MissingThere(
            f"{where} on {facts.host} can't be written: {reason}",
            f"make room or mount it writable, or correct {key}",
        )


def install_there(facts: Facts, program: str) -> str:
    """What usually installs a program on such a system."""
    if facts.system == "Darwin":
        return f"brew install {program}"
    return f"{'' if facts.uid == 0 else 'sudo '}apt-get install {program}"


def whole(pod: Pod, facts: Facts) -> Pod:
    """The pod with that machine's own paths: no `~` in them."""
    return replace(pod, volume_dir=facts.volume, disk_dir=facts.disk)


def python_words(facts: Facts, script: PurePosixPath, *words: str) -> Sequence[str]:
    """argv for one of our own programs there: no site-packages, nothing of the working directory."""
    return [facts.python, "-I", "-S", str(script), *words]
