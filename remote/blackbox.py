"""Writes down what a pod was like at its end. Run as children of the watchdog, which kills what takes too long.

python blackbox.py facts DIR SECONDS              the machine's own words, into DIR/evidence
python blackbox.py keep DIR BOOT RUN_DIR [NAME]   those, and the run's last words, into RUN_DIR/blackbox/NAME;
                                                  without NAME the guard's own files alone, into RUN_DIR/guard/BOOT
"""

import os
import sys

if __name__ == "__main__":  # take our own package, not a folder of the same name beside the user's code
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

import shutil
import stat
import time
from pathlib import Path
from typing import List, Optional

import remote
from remote.files import write_atomic
from remote.guardfiles import GuardDir
from remote.limited import Limited, without_secrets
from remote.rundir import RunDir

TAIL_BYTES = 256 * 1024

# a file each, by what prints it. Names of processes only: their arguments and environments may hold secrets
FACTS = {
    "gpu.txt": ["nvidia-smi"],
    "gpu-errors.txt": ["nvidia-smi", "-q", "-d", "ECC,PAGE_RETIREMENT,ROW_REMAPPER,PERFORMANCE"],
    "disk.txt": ["df", "-h"],
    "kernel.txt": ["dmesg"],
    "processes.txt": ["ps", "-eo", "pid,ppid,stat,etime,rss,pcpu,comm"],
}
KERNEL = ("meminfo", "loadavg", "uptime", "mounts")  # of /proc


def facts(files: GuardDir, limit_s: float) -> None:
    """Ask everybody at once; who does not answer in time has said nothing."""
    files.evidence.mkdir(mode=0o700, exist_ok=True)
    env = without_secrets(os.environ)
    asked = {name: Limited(argv, env, limit_s) for name, argv in FACTS.items() if shutil.which(argv[0])}
    for name in KERNEL:
        _write(files.evidence / (name + ".txt"), tail(Path("/proc") / name))
    until = time.monotonic() + limit_s
    while asked:
        for name, child in list(asked.items()):
            is_over = child.is_over
            if is_over or time.monotonic() > until:
                _write(files.evidence / name, child.output()[-TAIL_BYTES:] or b"no answer in time\n")
                del asked[name]
        time.sleep(0.01)


def keep(files: GuardDir, boot: str, run: RunDir, name: Optional[str]) -> None:
    """Copy what was gathered on tmpfs, then the run's own last words. Both may hang, on a volume."""
    guards = run.guard / boot
    os.makedirs(str(guards), exist_ok=True)
    for path in (files.boot, files.verdict, files.ending, files.log):
        _write(guards / path.name, tail(path))
    if name is None:
        return
    box = run.blackbox / name
    os.makedirs(str(box), exist_ok=True)
    for path in [*sorted(files.evidence.glob("*")), files.verdict, files.ending]:
        _write(box / path.name, tail(path))
    _write(box / "guard.log", tail(files.log))
    for path in (run.log, run.status, run.progress):
        _write(box / path.name, tail(path))


def tail(path: Path) -> Optional[bytes]:
    """The end of a file; None for what is none, such as a pipe, which a reader would wait on for ever."""
    try:
        fd = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as f:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            return None
        try:
            if about.st_size > TAIL_BYTES:
                f.seek(-TAIL_BYTES, os.SEEK_END)
            return f.read(TAIL_BYTES)
        except OSError:
            return None


def _write(path: Path, data: Optional[bytes]) -> None:
    if data is None:
        return
    try:
        write_atomic(path, data)
    except OSError:
        pass  # a full volume: the rest may be shorter


def main(argv: List[str]) -> int:
    words = argv[1:]
    if len(words) == 3 and words[0] == "facts":
        facts(GuardDir(words[1]), float(words[2]))
    elif len(words) in (4, 5) and words[0] == "keep":
        keep(GuardDir(words[1]), words[2], RunDir(words[3]), words[4] if len(words) == 5 else None)
    else:
        print("usage: blackbox.py facts DIR SECONDS | keep DIR BOOT RUN_DIR [NAME]", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(remote.__file__ or "")) != _HERE:
        sys.exit("{} is not this tool's remote package".format(remote.__file__))
    sys.exit(main(sys.argv))
