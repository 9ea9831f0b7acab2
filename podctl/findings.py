"""What a run needs, and whether it is there: from what was seen to findings, each with its fix. All of it is pure."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from podctl.asking import Answers
from podctl.errors import MissingHere, PodctlError
from podctl.settings import FILE
from podctl.sshkeys import Keys
from podctl.ui import size
from remote.clock import duration

OK, WARN, BAD = "ok", "warn", "bad"
MARKS = {OK: "✓", WARN: "!", BAD: "✗"}
OLD_RSYNC = (3, 0)
NEEDS_PYTHON = (3, 11)  # a training
NEEDS_CUDA = (13, 0)  # torch 2.13.0 as the public index serves it
SKEW_S = 60
LITTLE_KB, NOTHING_KB = 10_000_000, 500_000  # a checkpoint or two; not even a log
ENV_KB = 20_000_000  # a Python environment with CUDA, and its archive


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, and what to type where it is not well."""

    level: str  # ok, warn, bad
    where: str  # here, or the machine's name
    about: str  # one word: python, tmux, …
    text: str
    fix: str = ""
    exit_code: int = MissingHere.exit_code


Say = Callable[..., Finding]  # level, about, text, fix, exit code


@dataclass(frozen=True)
class Need:
    """What the experiment in question asks of this machine and of that one."""

    local: bool = False  # the run is on this machine
    maybe_local: bool = True  # nobody said where
    trains: bool = True  # the trainer itself, not a command of one's own
    espeak: bool = False  # makes the demo's corpus
    key: str = ""  # path of the one key that is to be used
    python: str = ""  # pod.ssh.python
    own_key: bool = False  # podctl's own SSH key opens the machine, no person's


@dataclass(frozen=True)
class Here:
    """What was seen on this machine. Names of keys, never their values."""

    python: tuple[int, ...] = sys.version_info[:3]
    programs: Mapping[str, str] = field(default_factory=dict)  # name → what it says of its version
    hints: Mapping[str, str] = field(default_factory=dict)  # name → what installs it
    shares: str = ""  # "" where ssh can share a connection, else why not
    trainer_python: str = ""
    has_torch: bool | None = None  # None: that Python does not run
    state_dir: str = ""
    state_trouble: str = ""
    free_kb: int = 0
    ledger_runs: int = 0
    ledger_torn: int = 0
    ledger_trouble: str = ""
    tracked: str = ""  # why keys are not safe from git
    env_mode: int | None = None  # None: there is no file
    env_trouble: str = ""
    slips: Mapping[str, str] = field(default_factory=dict)
    keys_in_file: tuple[str, ...] = ()
    keys_in_environment: tuple[str, ...] = ()
    ssh_keys: Keys | None = None


def judge_here(seen: Here, need: Need) -> Iterator[Finding]:
    """What is well and what is not on this machine. Pure."""

    def say(level: str, about: str, text: str, fix: str = "", exit_code: int = 9) -> Finding:
        return Finding(level, "here", about, text, fix if level != OK else "", exit_code)

    local = BAD if need.local else WARN  # a run elsewhere needs none of it
    python = ".".join(map(str, seen.python))
    yield say(OK if seen.python[:2] >= NEEDS_PYTHON else BAD, "python", f"Python {python}", "install Python 3.11")
    for name in ("tmux", "bash"):
        if name in seen.programs:
            yield say(OK, name, seen.programs[name])
        elif need.local or need.maybe_local:
            yield say(local, name, f"{name} is not installed: a run on this machine needs it", seen.hints.get(name, ""))
    yield from _judge_tools(seen, need, say)
    if need.trains and (need.local or need.maybe_local):
        if seen.has_torch:
            yield say(OK, "torch", f"torch, beside {seen.trainer_python}")
        elif seen.has_torch is None:
            text = f"PODCTL_PYTHON is {seen.trainer_python}, which does not run"
            yield say(local, "torch", text, "correct or unset it")
        else:
            text = f"torch is not installed beside {seen.trainer_python}: only other machines can train"
            yield say(local, "torch", text, "pip install 'podctl[train]'")
    if need.espeak and need.local:
        has = "espeak-ng" in seen.programs
        text = "espeak-ng" if has else "espeak-ng is not installed: the demo's corpus is made by it"
        yield say(OK if has else BAD, "espeak-ng", text, seen.hints.get("espeak-ng", ""))
    yield from _judge_state(seen, say)
    yield from _judge_keys(seen, need, say)


def _judge_tools(seen: Here, need: Need, say: Say) -> Iterator[Finding]:
    if "git" in seen.programs:
        yield say(OK, "git", seen.programs["git"])
    else:
        yield say(WARN, "git", "git is not installed: no commit is recorded with a run", seen.hints.get("git", ""))
    if "ssh" not in seen.programs:
        text = "there is no OpenSSH client: a slower way is used"
        yield say(WARN, "ssh", text, seen.hints.get("ssh", ""))
    elif seen.shares:
        yield say(WARN, "ssh", f"ssh can't share a connection here ({seen.shares}): a slower way is used", "set TMPDIR")
    else:
        yield say(OK, "ssh", f"{seen.programs['ssh']}, shares connections")
    rsync = seen.programs.get("rsync", "")
    if not rsync:
        text = "rsync is not installed: code is sent whole, by tar"
        yield say(WARN, "rsync", text, seen.hints.get("rsync", ""))
    elif "openrsync" in rsync:
        text = f"{rsync} is macOS's own: slower, and some of its options are missing"
        yield say(WARN, "rsync", text, "brew install rsync")
    else:
        old = _numbers(rsync) < OLD_RSYNC
        yield say(WARN if old else OK, "rsync", f"{rsync}{' is old' * old}", seen.hints.get("rsync", "update rsync"))


def _judge_state(seen: Here, say: Say) -> Iterator[Finding]:
    if seen.state_trouble:
        yield say(BAD, "state", seen.state_trouble, "set PODCTL_HOME to a folder of yours")
    else:
        free, text = seen.free_kb, f"{seen.state_dir}, {size(seen.free_kb * 1024)} free"
        level = BAD if free < NOTHING_KB else WARN if free < LITTLE_KB else OK
        yield say(level, "state", text, "free some space, or set PODCTL_HOME to another disk")
    if seen.ledger_trouble:
        yield say(BAD, "ledger", seen.ledger_trouble, "set PODCTL_HOME to a folder of yours")
    elif seen.ledger_torn:
        lines = "a line" if seen.ledger_torn == 1 else f"{seen.ledger_torn} lines"
        text = f"{lines} of the ledger can't be read; the others tell of {_runs(seen.ledger_runs)}"
        yield say(WARN, "ledger", text, "a newer podctl may have written them, or a machine that lost power")
    else:
        yield say(OK, "ledger", f"{_runs(seen.ledger_runs)} in the ledger")


def _judge_keys(seen: Here, need: Need, say: Say) -> Iterator[Finding]:
    if seen.tracked:
        yield say(BAD, FILE, *seen.tracked.split("\n", 1), exit_code=2)
    if seen.env_trouble:
        yield say(BAD, FILE, seen.env_trouble, f"see {FILE}.example", 2)
    elif seen.env_mode is not None and seen.env_mode & 0o077:
        yield say(WARN, FILE, f"{FILE} can be read by others (mode {seen.env_mode:o})", f"chmod 600 {FILE}")
    for written, meant in seen.slips.items():
        yield say(
            WARN, FILE, f"{FILE} says {written}, which nothing reads: did you mean {meant}?", f"rename it {meant}"
        )
    named = [*(f"{n} (environment)" for n in seen.keys_in_environment)]
    named += [f"{n} ({FILE})" for n in seen.keys_in_file if n not in seen.keys_in_environment]
    yield say(OK, "keys", "keys: " + (", ".join(named) or "none, and none is needed for machines that you have"))
    keys = seen.ssh_keys
    if keys is None:
        yield say(WARN, "ssh-key", "there is no home folder to look for SSH keys in", "set HOME")
    elif need.local or need.own_key:
        return
    elif need.key and Path(need.key) in keys.locked:
        yield say(BAD, "ssh-key", f"{need.key} has a passphrase and no agent holds it", f"ssh-add {need.key}", 3)
    elif keys.usable or need.key:
        named = [str(f) for f in keys.files if f not in keys.locked] + ["the agent's"] * bool(keys.in_agent)
        yield say(OK, "ssh-key", "SSH key: " + (need.key or ", ".join(named)))
    elif keys.locked:
        start = "" if keys.agent else 'eval "$(ssh-agent)"; '
        text = f"{keys.locked[0]} has a passphrase and no agent holds it"
        yield say(WARN, "ssh-key", text, f"{start}ssh-add {keys.locked[0]}")
    else:
        yield say(WARN, "ssh-key", "there is no SSH key", "ssh-keygen -t ed25519, or podctl init")


def judge_there(a: Answers, need: Need, machine: str) -> Iterator[Finding]:
    """What is well and what is not on the machine that should train. Pure."""

    def say(level: str, about: str, text: str, fix: str = "", exit_code: int = 9) -> Finding:
        return Finding(level, machine, about, text, fix if level != OK else "", exit_code)

    yield say(OK, "ssh", f"answers within {duration(a.took_s)}, as {a['user']} on {a['host']}, {a['system']}")
    if a.chatter:
        text = f"its shell greets every command ({a.chatter.splitlines()[0][:60]!r}): rsync would stumble over it"
        yield say(WARN, "shell", text, "print nothing in ~/.bashrc where there is no terminal: [ -t 1 ] || return")
    if abs(a.skew_s) > SKEW_S:
        text = f"its clock is {duration(abs(a.skew_s))} {'behind' if a.skew_s < 0 else 'ahead'}"
        yield say(WARN, "clock", text, "sudo timedatectl set-ntp true, there; times in logs are its own")
    for name in ("tmux", "bash"):
        has = bool(a[f"has.{name}"])
        text = (a["tmux"] if name == "tmux" and a["tmux"] else name) if has else f"{name} is not installed"
        yield say(OK if has else BAD, name, text, f"sudo apt-get install {name}, there")
    yield from _judge_pythons(a, need, say)
    yield from _judge_transport(a, say)
    for name, key, least_kb in (("volume", "pod.volume", LITTLE_KB), ("disk", "pod.ssh.disk", 0)):
        builds = name == "disk" and not need.python
        yield from _judge_folder(a, name, key, ENV_KB if builds else least_kb, say)
    shm = "secrets go to /dev/shm, in memory" if a["shm"] else "there is no /dev/shm: secrets lie in /tmp until read"
    yield say(OK if a["shm"] else WARN, "shm", shm, "mount a tmpfs on /dev/shm, there")
    if need.espeak:
        text = "espeak-ng" if a["has.espeak-ng"] else "espeak-ng is not installed: the demo's corpus is made by it"
        yield say(OK if a["has.espeak-ng"] else BAD, "espeak-ng", text, "sudo apt-get install espeak-ng, there")
    yield from _judge_gpus(a, need, say)
    alive = list(a.below("run"))
    if alive:
        text = f"runs there already: {', '.join(alive)}"
        yield say(WARN, "runs", text, f"podctl attach {alive[0]}, or podctl stop {alive[0]}")


def _judge_pythons(a: Answers, need: Need, say: Say) -> Iterator[Finding]:
    old = a.below("old")
    if a["python"]:
        yield say(OK, "python", f"Python {a['python.version']}, {a['python']}")
    elif old:
        text = (
            f"{', '.join(f'{name} is {version}' for name, version in old.items())}: what runs there needs 3.8 or newer"
        )
        yield say(BAD, "python", text, "install a newer python3 there")
    else:
        yield say(BAD, "python", "there is no python3", "sudo apt-get install python3, there")
    if need.python:
        version = a["given.version"]
        if not version:
            yield say(BAD, "environment", f"{need.python} does not run there", "correct pod.ssh.python", 2)
        elif need.trains and _numbers(version) < NEEDS_PYTHON:
            text = f"{need.python} is Python {version}: a training needs 3.11"
            yield say(BAD, "environment", text, "correct pod.ssh.python", 2)
        elif need.trains and a["given.torch"] != "yes":
            text = f"torch is not installed beside {need.python}"
            yield say(BAD, "environment", text, f"{need.python} -m pip install 'podctl[train]', there")
        else:
            yield say(OK, "environment", f"{need.python}, Python {version}{', torch' * (a['given.torch'] == 'yes')}")
        return
    if not need.trains:
        return
    new = max((v for v in a.below("candidate").values() if v and _numbers(v) >= NEEDS_PYTHON), key=_numbers, default="")
    if not new:
        text = "an environment needs Python 3.11 or newer, and there is none"
        yield say(BAD, "environment", text, "install python3.11 there, or name one that has it: pod.ssh.python")
    elif a["venv"] != "yes":
        text = f"Python {new} can make no virtual environment"
        yield say(BAD, "environment", text, "sudo apt-get install python3-venv, there, or set pod.ssh.python")
    else:
        text = f"an environment is built with Python {new} at the first run, in some minutes"
        yield say(OK, "environment", text)


def _judge_transport(a: Answers, say: Say) -> Iterator[Finding]:
    if a["rsync"]:
        odd = "openrsync" in a["rsync"] or _numbers(a["rsync"]) < OLD_RSYNC
        yield say(WARN if odd else OK, "rsync", f"{a['rsync']}{' is old' * odd}", "sudo apt-get install rsync, there")
    elif a["has.tar"]:
        text = "rsync is not installed: code is sent whole, by tar"
        yield say(WARN, "rsync", text, "sudo apt-get install rsync, there")
    else:
        yield say(BAD, "rsync", "neither rsync nor tar is there", "sudo apt-get install rsync tar, there")


def _judge_folder(a: Answers, name: str, key: str, least_kb: int, say: Say) -> Iterator[Finding]:
    path, kind, writable = a[f"{name}.path"], a[f"{name}.is"], a[f"{name}.writable"]
    if kind == "file":
        yield say(BAD, name, f"{path} is a file, {key} must be a folder", f"correct {key}", 2)
        return
    if writable != "yes":
        why = writable if kind == "absent" else re.sub(r"^.*: ", "", writable)
        what = f"{path} can't be made: {why}" if kind == "absent" else f"{path} can't be written: {why}"
        yield say(BAD, name, what, f"sudo install -d -o {a['user']} {path}, there, or correct {key}")
        return
    free = a[f"{name}.free_kb"]
    text = f"{name} {path}{' will be made' * (kind == 'absent')}"
    if not free.isdecimal():
        yield say(OK, name, text)
        return
    kb = int(free)
    level = BAD if kb < NOTHING_KB else WARN if kb < least_kb else OK
    fix = (
        "free some space there" if level != WARN or name == "volume" else f"about {size(ENV_KB * 1024)} are needed once"
    )
    yield say(level, name, f"{text}, {size(kb * 1024)} free", fix)


def _judge_gpus(a: Answers, need: Need, say: Say) -> Iterator[Finding]:
    gpus = list(a.below("gpu").values())
    if not a["has.nvidia-smi"] or not any(g.startswith("GPU") for g in gpus):
        said = f" ({gpus[0]})" if gpus else ""
        yield say(
            WARN, "gpu", f"no GPU answers{said}: it would train on the CPU", "nvidia-smi there says what is wrong"
        )
        return
    yield say(OK, "gpu", "; ".join(gpus))
    if a["cuda"] and _numbers(a["cuda"]) < NEEDS_CUDA and need.trains and not need.python:
        text = f"its driver {a['driver']} speaks CUDA {a['cuda']}: the environment that is built needs 13.0"
        yield say(WARN, "cuda", text, "update the driver there, or name a Python with an older torch: pod.ssh.python")


def verdict(findings: Sequence[Finding]) -> int:
    """0 where nothing is bad; the one exit code that all bad ones share, else 9."""
    codes = {f.exit_code for f in findings if f.level == BAD}
    return codes.pop() if len(codes) == 1 else MissingHere.exit_code if codes else 0


def finding_of(e: PodctlError, where: str, about: str) -> Finding:
    """An error as a finding."""
    lines = [e.message, *(f"  {m}" for m in getattr(e, "mistakes", ()))]
    return Finding(BAD, where, about, "\n".join(lines), e.hint, e.exit_code)


def _runs(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"


def _numbers(text: str) -> tuple[int, ...]:
    """The first version number in a text."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(int(n) for n in found[0].split(".")) if found else (0,)
