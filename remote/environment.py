"""The Python that a run uses on the pod, found or made; run by path, makes an image's.

The first that fits: `$PODCTL_PYTHON` (no pip at all) → an image whose stamp equals the hash → what this machine already
unpacked or built → `env/<hash>.tar` on the volume → pip, on the local disk, packed for the next time. Virtual
environments never lie on the volume: thousands of small files on a network file system.

Everything is made beside and renamed, or counts only once its stamp is written: a kill leaves nothing that is believed.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

if __name__ == "__main__":  # launched by path: take our own package, not what lies in the working directory
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

from remote.clock import Clock, duration
from remote.files import StrPath, write_atomic
from remote.rundir import Volume

PYTHON_ENV = "PODCTL_PYTHON"
IMAGE_ENV = "PODCTL_IMAGE_ENV"  # where an image keeps its environment
IMAGE_DIR = "/opt/podctl/env"
STAMP = "STAMP"  # in an environment: its hash, and on the second line the path that it was made for
LONGEST_SHEBANG = 127  # Linux before 5.1 cuts there
NEEDS = (3, 11)
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.11")

Run = Callable[[Sequence[str], StrPath], int]  # argv, working directory → exit code


class NoEnvironment(Exception):
    """There is no Python for this run; says why and what to do."""


class Base(NamedTuple):
    """A Python that environments can be made from."""

    python: str
    version: Tuple[int, int]
    platform: str


def resolve(
    tool_dir: Path,
    volume: Volume,
    disk: Path,
    environ: Mapping[str, str],
    clock: Clock,
    say: Callable[[str], None],
    run: Run,
) -> str:
    """Path of the Python to use. `run` runs a command, logged and stoppable. Raises NoEnvironment."""
    given = environ.get(PYTHON_ENV, "")
    if given:
        return _given(given, environ)
    base = _find_base(environ)
    wanted = hash_of(tool_dir, base)
    local = disk / "env" / wanted[:16]  # short: a `#!` line holds 127 characters
    with _alone(local.with_name(local.name + ".lock"), say, run):
        return _find_or_make(tool_dir, volume, local, wanted, base, environ, clock, say, run)


def _find_or_make(
    tool_dir: Path,
    volume: Volume,
    local: Path,
    wanted: str,
    base: Base,
    environ: Mapping[str, str],
    clock: Clock,
    say: Callable[[str], None],
    run: Run,
) -> str:
    image = Path(environ.get(IMAGE_ENV) or IMAGE_DIR)
    for place in (image, local):
        if _stamp(place)[:1] == [wanted] and _works(_python(place)):
            say("✓ environment {} from {}".format(wanted[:12], "the image" if place == image else "this machine"))
            return _python(place)
    began = clock.now()
    packed = volume.env / (wanted + ".tar")
    if packed.exists():
        if _unpack(packed, local, wanted, say, run):
            say("✓ environment {} from the volume {}".format(wanted[:12], duration(clock.now() - began)))
            return _python(local)
        say("{} is not usable: building the environment anew".format(packed))
    _build(tool_dir, local, wanted, base, say, run)
    say("✓ environment {} built {}".format(wanted[:12], duration(clock.now() - began)))
    began = clock.now()
    if _pack(local, packed, say, run):
        say("✓ environment {} kept on the volume {}".format(wanted[:12], duration(clock.now() - began)))
    return _python(local)


@contextlib.contextmanager
def _alone(lock: Path, say: Callable[[str], None], run: Run) -> Iterator[None]:
    """Two runs that start at once on one machine do not build over each other. The lock dies with its holder."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(str(lock), "w") as f:
        waits = False
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waits:
                    say("another run on this machine makes the same environment: waiting for it")
                waits = True
                run(["sleep", "1"], lock.parent)  # a step like any other: stops when asked to
        yield


def hash_of(tool_dir: Path, base: Base) -> str:
    """Names an environment by constraints, requirements, Python minor, platform. Raises NoEnvironment without files."""
    texts = []
    for name in ("constraints.txt", "requirements.txt"):
        try:
            texts.append((tool_dir / name).read_bytes())
        except FileNotFoundError:
            texts.append(b"")
    if not any((tool_dir / n).exists() for n in ("constraints.txt", "requirements.txt")):
        raise NoEnvironment(
            "there is no Python environment to use or build: set {} to a Python that has what the run needs, "
            "or put requirements.txt into {}".format(PYTHON_ENV, tool_dir)
        )
    parts = [*texts, "{}.{}".format(*base.version).encode(), base.platform.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _given(given: str, environ: Mapping[str, str]) -> str:
    found = shutil.which(given, path=environ.get("PATH"))
    if not found:
        raise NoEnvironment("{} is {}, which is not a program: correct or unset it".format(PYTHON_ENV, given))
    found = os.path.abspath(found)  # never resolved: a venv is its link
    if not _works(found):
        raise NoEnvironment("{} is {}, which does not run as a Python: correct or unset it".format(PYTHON_ENV, given))
    return found


def _find_base(environ: Mapping[str, str]) -> Base:
    """The runner's own Python where it is new enough, else the newest on the PATH."""
    seen = []
    for name in (sys.executable, *NEWER_PYTHONS):
        path = shutil.which(name, path=environ.get("PATH"))
        base = _probe(path) if path else None
        if base and base.version >= NEEDS:
            return base
        if base:
            seen.append("{}.{}".format(*base.version))
    raise NoEnvironment(
        "this machine has Python {}, an environment needs {}.{} or newer: choose an image that has it, "
        "or set {}".format(", ".join(seen) or "none", NEEDS[0], NEEDS[1], PYTHON_ENV)
    )


def _probe(python: str) -> Optional[Base]:
    code = "import sys, sysconfig; print(sys.version_info[0], sys.version_info[1], sysconfig.get_platform())"
    try:
        out = subprocess.run([python, "-I", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        major, minor, platform = out.stdout.decode("utf-8", "replace").split()
        return Base(python, (int(major), int(minor)), platform)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _works(python: str) -> bool:
    return _probe(python) is not None


def _python(env: Path) -> str:
    return str(env / "bin" / "python")


def _stamp(env: Path) -> List[str]:
    try:
        return (env / STAMP).read_text(encoding="utf-8").split("\n", 1)
    except (OSError, ValueError):
        return []


def _unpack(packed: Path, local: Path, wanted: str, say: Callable[[str], None], run: Run) -> bool:
    """Whether the volume's tar is now a working environment at `local`."""
    beside = local.with_name("{}.{}.tmp".format(local.name, os.getpid()))
    _remove(beside)
    _remove(local)
    beside.mkdir(parents=True)
    try:
        code = run(["tar", "-xf", str(packed), "-C", str(beside)], local.parent)
        stamp = _stamp(beside)  # the last member of the tar: with it, all of it is there
        if code or stamp[:1] != [wanted] or len(stamp) < 2:
            return False
        made_for = stamp[1].rstrip("\n")
        if made_for != str(local) and not _move_scripts(beside / "bin", made_for, str(local)):
            say("the packed environment was made for {}: its scripts cannot run from {}".format(made_for, local))
            return False
        os.replace(str(beside), str(local))
        return _works(_python(local))  # its base may be missing in this image
    except OSError as e:
        say("cannot unpack {}: {}".format(packed, e.strerror or e))
        return False
    finally:
        _remove(beside)


def _move_scripts(bin_dir: Path, old: str, new: str) -> bool:
    """Have an environment's scripts start the Python of where it lies now; False where `#!` cannot name that."""
    if any(c.isspace() or c in "'\"\\$`" for c in new):
        return False
    for script in bin_dir.iterdir():
        if script.is_symlink() or not script.is_file() or script.stat().st_size > 1 << 16:
            continue
        text = script.read_bytes()
        if b"\0" not in text and old.encode() in text:
            text = text.replace(old.encode(), new.encode())
            if text.startswith(b"#!") and (text + b"\n").index(b"\n") > LONGEST_SHEBANG:
                return False
            mode = script.stat().st_mode & 0o777
            write_atomic(script, text, mode)
            script.chmod(mode)
    return True


def _build(tool_dir: Path, local: Path, wanted: str, base: Base, say: Callable[[str], None], run: Run) -> None:
    """Make the environment at `local`, where it stays: its scripts hold the path. The stamp comes last."""
    _remove(local)
    local.parent.mkdir(parents=True, exist_ok=True)
    say("building the environment {} with Python {}.{}".format(wanted[:12], *base.version))
    lists = [tool_dir / n for n in ("requirements.txt", "constraints.txt") if (tool_dir / n).exists()]
    is_empty = not any(line.strip() and line[:1] != b"#" for line in lists[0].read_bytes().splitlines())
    if run([base.python, "-I", "-m", "venv", *(["--without-pip"] if is_empty else []), str(local)], local.parent):
        raise NoEnvironment(
            "{} cannot make a virtual environment (see the log): install python3-venv, choose another image, "
            "or set {}".format(base.python, PYTHON_ENV)
        )
    pip = [_python(local), "-I", "-m", "pip", "install", "--no-input", "--no-cache-dir", "--progress-bar", "off"]
    pip += ["-r", str(lists[0])]  # constraints alone: nothing was chosen, so all that is pinned
    for constraints in lists[1:]:
        pip += ["-c", str(constraints)]
    code = 0 if is_empty else run(pip, tool_dir)
    if code:
        raise NoEnvironment("pip failed with exit code {}: its last lines in the log say why".format(code))
    write_atomic(local / STAMP, "{}\n{}\n".format(wanted, local).encode("utf-8", "surrogateescape"))


def _pack(local: Path, packed: Path, say: Callable[[str], None], run: Run) -> bool:
    """Keep the environment on the volume. A volume without room costs the next pod time, never this run."""
    tar = local.with_name(local.name + ".tar")
    beside = packed.with_name("{}.{}.tmp".format(packed.name, os.getpid()))
    try:
        packed.parent.mkdir(parents=True, exist_ok=True)
        members = sorted(name for name in os.listdir(str(local)) if name != STAMP)
        argv = ["tar", "-cf", str(tar), "-C", str(local), *("./" + m for m in members), "./" + STAMP]
        if run(argv, local.parent) or run(["cp", str(tar), str(beside)], local.parent):
            say("the environment is not kept on the volume: packing it failed")
            return False
        os.replace(str(beside), str(packed))
        return True
    except OSError as e:
        say("the environment is not kept on the volume: {}".format(e.strerror or e))
        return False
    finally:
        _remove(tar)
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path), ignore_errors=True)
    else:
        try:
            path.unlink()
        except OSError:
            pass


def make(tool_dir: Path, env: Path) -> None:
    """An image's environment, stamped so that `resolve` finds that it fits. Raises NoEnvironment."""
    base = _find_base(os.environ)
    _build(tool_dir, env, hash_of(tool_dir, base), base, print, lambda argv, cwd: subprocess.call(argv, cwd=str(cwd)))


def main(argv: Sequence[str]) -> int:
    """`environment.py hash TOOL_DIR`: the first line of an image's STAMP; `make TOOL_DIR ENV`: all of it."""
    verbs = {"hash": 3, "make": 4}
    if len(argv) < 2 or verbs.get(argv[1]) != len(argv):
        print("usage: python environment.py hash TOOL_DIR | make TOOL_DIR ENV", file=sys.stderr)
        return 2
    try:
        if argv[1] == "hash":
            print(hash_of(Path(argv[2]), _find_base(os.environ)))
        else:
            make(Path(argv[2]), Path(argv[3]))
    except NoEnvironment as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
