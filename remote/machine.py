"""The machine as its kernel tells it: which boot this is, which process has a pid, who is left of a group."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from typing import Any, Dict, Iterator, List, NamedTuple

from remote.files import StrPath
from remote.rundir import DISK_ENV, EPOCH_ENV, RUN_ENV

PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "datasets", "huggingface_hub", "tokenizers", "safetensors"),
    *("numpy", "pyarrow", "soundfile", "jiwer"),
)


def boot_id() -> str:
    """Differs after every start of the machine or container; equal for all processes of one. Safe as a file name.

    A container's kernel is its host's, so the start of its first process is part of the answer.
    """
    kernel = _read("/proc/sys/kernel/random/boot_id").decode("ascii", "replace").strip()
    if kernel:
        first = _stat_fields(1)
        return "{}-{}".format(kernel, first[19]) if len(first) > 19 else kernel
    try:  # macOS
        out = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], stdout=subprocess.PIPE, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return out.decode("ascii", "replace").strip()


def is_runner_of(pid: int, run_dir: StrPath) -> bool:
    """Whether this pid is a live runner of this run, and not a stranger who was given the number since."""
    wanted = os.path.realpath(os.fspath(run_dir))
    if os.path.isdir("/proc/self"):
        argv = [os.fsdecode(a) for a in _read("/proc/{}/cmdline".format(pid)).split(b"\0")]  # empty for a zombie
        return any(
            os.path.basename(arg) == "runner.py" and os.path.realpath(argv[i]) == wanted
            for i, arg in enumerate(argv[:-1], 1)
        )
    try:
        out = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], stdout=subprocess.PIPE, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    ends = tuple("runner.py " + name for name in (wanted, os.path.abspath(os.fspath(run_dir))))
    return os.fsdecode(out).rstrip("\n").endswith(ends)


class JobProcess(NamedTuple):
    """A process that a run's job is, or has started: known by the environment that all of them inherit."""

    pid: int
    run_dir: str
    epoch: int
    disk: str


def job_processes() -> Iterator[JobProcess]:
    """Every living process of every run on this machine that we may look at. Linux only, else none."""
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not name.isdigit() or int(name) == os.getpid():
            continue
        data = _read("/proc/{}/environ".format(name))  # empty for a zombie
        if EPOCH_ENV.encode() not in data:
            continue
        entries = [os.fsdecode(e).partition("=") for e in data.split(b"\0")]
        environ = {key: value for key, _, value in reversed(entries)}  # the first of a name counts
        epoch = environ.get(EPOCH_ENV, "")
        if epoch.isdigit() and environ.get(RUN_ENV):
            yield JobProcess(int(name), environ[RUN_ENV], int(epoch), environ.get(DISK_ENV, ""))


def left_by_earlier(run_dir: StrPath, epoch: int) -> List[int]:
    """Processes of this run that an attempt before this epoch started and did not end."""
    return [p.pid for p in job_processes() if p.run_dir == str(run_dir) and p.epoch < epoch]


def group_lives(pgid: int) -> bool:
    """Whether a process group has a member that still runs; the dead that nobody has reaped do not count."""
    try:
        os.killpg(pgid, 0)
    except PermissionError:
        return sys.platform != "darwin"  # there it means that only dead ones are left
    except OSError:
        return False
    if not os.path.isdir("/proc/self"):
        return True
    for name in os.listdir("/proc"):  # a container's first process may never reap orphans: killpg alone would see them
        fields = _stat_fields(int(name)) if name.isdigit() else []
        if len(fields) > 2 and fields[2] == str(pgid) and fields[0] not in "ZX":
            return True
    return False


def oom_kills() -> int:
    """How often this container ran out of memory so far; 0 where the kernel doesn't say."""
    for line in _read("/sys/fs/cgroup/memory.events").decode("ascii", "replace").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdigit():
            return int(count)
    return 0


def facts() -> Dict[str, Any]:
    """What `env.json` says of the machine: host, system, cores, memory, GPUs. Takes seconds where a GPU is sick."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": usable_cpus(),
        "memory_gb": _memory_gb(),
        "gpus": _gpus(),
    }


def python_facts(python: str) -> Dict[str, Any]:
    """What `env.json` says of a Python: its version and those of what decides a training, asked of that Python."""
    code = (
        "import json, sys, importlib.metadata as m\n"
        "def v(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return None\n"
        "print(json.dumps({'executable': sys.executable, 'version': sys.version.split()[0],\n"
        "  'packages': {n: v(n) for n in sys.argv[1:] if v(n)}}))"
    )
    try:
        argv = [python, "-I", "-c", code, *PACKAGES]
        out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60).stdout
        return dict(json.loads(out.decode("utf-8")))
    except (OSError, ValueError, subprocess.SubprocessError):
        return {"executable": python}


def usable_cpus() -> int:
    """The cores this process may use: in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0.0
    limit = _read("/sys/fs/cgroup/memory.max").strip()  # what a container gets of it
    return round(min(total, int(limit)) / 1e9 if limit.isdigit() else total / 1e9, 1)


def _gpus() -> List[str]:
    """One line a GPU: name, memory, driver."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        out = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=15).stdout
    except (OSError, subprocess.SubprocessError) as e:
        return ["nvidia-smi gave no answer: {}".format(type(e).__name__)]
    return [line.strip() for line in out.decode("utf-8", "replace").splitlines() if line.strip()]


def _stat_fields(pid: int) -> List[str]:
    """/proc/PID/stat from its third field on (state, parent, group, …); empty where there is none."""
    _, _, rest = _read("/proc/{}/stat".format(pid)).rpartition(b")")  # the name before it may hold anything
    return rest.decode("ascii", "replace").split()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""
