"""What a machine has and what of ours is there already: everything a launch needs to know, asked in one command."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from podctl.asking import WORDS, Answers, ask
from podctl.errors import MissingThere
from podctl.host import Host
from podctl.pods import Pod

NEEDS_PYTHON = "3.8"  # of what we send; the environment for the training itself may be built from another one

SCRIPT = (
    WORDS
    + r"""
volume=$(whole "$1"); disk=$(whole "$2"); run=$volume/runs/$3; project=$4; tree=$5; stamp=$6; given=$(program "$7")
say home "$HOME"; say uid "$(id -u)"; say system "$(uname -s)"
say volume "$volume"; say disk "$disk"; say given "$given"
for c in tmux bash tar rsync nvidia-smi; do command -v "$c" >/dev/null 2>&1 && say "has.$c" yes; done
the_python "$given"
for d in "$volume/runs" "$disk/trees/$project" "$disk/src" "$disk/tool"; do
  f=${d%/runs}/.podctl-$$  # not among the runs: whoever lists them would take it for one
  e=$(mkdir -p "$d" 2>&1) && e=$( { date >"$f"; } 2>&1 ) && e=$(rm -f "$f" 2>&1) && continue
  say trouble "$d: $(line "$e")"; rm -f "$f" 2>/dev/null; break
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
)


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
    python_seen: str = ""  # versions that are too old
    given: str = ""  # the pod's own Python, whole
    unusable: str = ""  # the same where it does not run
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
    return facts_of(host.name, ask(host, SCRIPT, *words))


def facts_of(host: str, a: Answers) -> Facts:
    """The script's answers, by name."""
    return Facts(
        host=host,
        home=a["home"],
        uid=a.number("uid") or 0,
        system=a["system"],
        now=float(a.number("now") or 0),
        volume=PurePosixPath(a["volume"]),
        disk=PurePosixPath(a["disk"]),
        has=frozenset(a.below("has")),
        python=a["python"],
        python_seen=", ".join(dict.fromkeys(a.below("old").values())),
        given=a["given"],
        unusable=a["unusable"],
        trouble=a["trouble"],
        volume_free_kb=a.number("volume_free_kb"),
        disk_free_kb=a.number("disk_free_kb"),
        has_tool=bool(a["has_tool"]),
        has_tree=bool(a["has_tree"]),
        newest_tree=a["newest_tree"],
        shm=a["shm"],
        has_run=bool(a["has_run"]),
        log_bytes=a.number("log_bytes") or 0,
        epoch=a.number("epoch") or 0,
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
    if facts.unusable:
        raise MissingThere(
            f"{facts.unusable} does not run as a Python on {facts.host}",
            "correct pod.ssh.python, or PODCTL_PYTHON where it is this machine",
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
    return replace(pod, volume_dir=facts.volume, disk_dir=facts.disk, python=facts.given)


def python_words(facts: Facts, script: PurePosixPath, *words: str) -> Sequence[str]:
    """argv for one of our own programs there: no site-packages, nothing of the working directory."""
    return [facts.python, "-I", "-S", str(script), *words]
