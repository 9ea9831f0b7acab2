"""What podctl asks of a machine when it starts a run, each in one command; on the pod, launched by path.

    python desk.py unpack TREES_DIR ID [LIKE_ID] < tar       a tree of files, verified, complete or absent
    python desk.py start < order.json                         files, source, secrets, tmux: the run goes on by itself
    python desk.py runs VOLUME                                what lies there, for a laptop that has lost its ledger

Each prints one line of JSON: {"ok": true, …}, or {"error": one sentence, "hint": …, "busy": bool}. Both may be
repeated.
"""

import os
import sys

if __name__ == "__main__":  # take our own package, not a folder of the same name beside the user's code
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

import contextlib
import errno
import fcntl
import hashlib
import json
import shutil
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional

import remote
from remote import turn
from remote.control import runner_lives
from remote.fence import newest_epoch
from remote.files import read_json, write_atomic
from remote.rundir import RunDir, Volume

MANIFEST = ".podctl-tree.json"  # the first member of the archive: {path: [kind, mode, sha256 or target, size]}
KEEP_TREES = 3
CHUNK = 1 << 20
SEEN_S = 5.0  # a runner is seen within 0.2 s, or something else is wrong with it
BUSY = "busy"


class Refused(Exception):
    """It can't be done; says why, and what to type next."""

    def __init__(self, message: str, hint: str = "", busy: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.busy = busy


# trees


def unpack(trees: Path, name: str, like: str, archive: BinaryIO) -> Dict[str, Any]:
    """Make the tree `name` of what the archive brings and, for the rest, of the tree `like`. Raises Refused, OSError.

    `NAME.json`, written last, says that it is complete. Nothing that differs from its hash is kept.
    """
    trees.mkdir(parents=True, exist_ok=True)
    beside = trees / ".{}.{}.tmp".format(name, os.getpid())
    try:
        beside.mkdir()
        with tarfile.open(fileobj=archive, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
            members = iter(tar)
            first = next(members, None)
            source = tar.extractfile(first) if first is not None and first.name == MANIFEST else None
            if source is None:
                raise Refused("the archive has no list of its files", "is podctl the same version on both sides?")
            text = source.read().decode("ascii")
            wanted = json.loads(text)
            came = set()
            for member in members:
                if member.name in wanted:
                    _take(tar, member, beside / member.name)
                    came.add(member.name)
        for path in wanted:
            if path not in came and like:
                _copy(trees / like / path, beside / path)
        wrong = [path for path in sorted(wanted) if not _is_as_told(beside / path, wanted[path])]
        if wrong:
            return {"ok": False, "wrong": wrong}
        _put_in_place(beside, trees / name)
        write_atomic(trees / (name + ".json"), text.encode("ascii"))
    finally:
        shutil.rmtree(str(beside), ignore_errors=True)
    _prune(trees, name)
    return {"ok": True, "files": len(wanted), "came": len(came)}


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        os.symlink(member.linkname, str(path))
        return
    source = tar.extractfile(member)
    if source is None:
        return
    with open(str(path), "wb") as f:
        shutil.copyfileobj(source, f, CHUNK)
    os.chmod(str(path), member.mode & 0o777)
    os.utime(str(path), (member.mtime, member.mtime))


def _copy(source: Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(source), str(path), follow_symlinks=False)
    except FileNotFoundError:
        pass  # told as wrong, and sent then


def _is_as_told(path: Path, told: List[Any]) -> bool:
    kind, mode, content, size = told
    try:
        about = os.lstat(str(path))
        if kind == "link":
            return stat.S_ISLNK(about.st_mode) and bool(os.readlink(str(path)) == content)
        if not stat.S_ISREG(about.st_mode) or about.st_size != size:
            return False
        digest = hashlib.sha256()
        with open(str(path), "rb") as f:
            for chunk in iter(lambda: f.read(CHUNK), b""):
                digest.update(chunk)
        if stat.S_IMODE(about.st_mode) != mode:
            os.chmod(str(path), mode)
        return bool(digest.hexdigest() == content)
    except OSError:
        return False


def _put_in_place(beside: Path, target: Path) -> None:
    """A tree is never changed: one that is there already is the same."""
    try:
        os.rename(str(beside), str(target))
    except OSError as e:
        if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if not target.with_name(target.name + ".json").exists():  # half of one, by somebody who died
            shutil.rmtree(str(target), ignore_errors=True)
            os.rename(str(beside), str(target))


def _prune(trees: Path, keep: str) -> None:
    """Only the newest trees are worth their room. A run has its own copy."""

    def age(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    for old in sorted(trees.glob("*.json"), key=age, reverse=True)[KEEP_TREES:]:
        if old.stem != keep:
            old.unlink()
            shutil.rmtree(str(old.with_suffix("")), ignore_errors=True)


# a run


def start(order: Mapping[str, Any]) -> Dict[str, Any]:
    """Lay a run out and start its runner in tmux. Raises Refused, OSError.

    order: run_id, run_dir, disk, token, files {name: text}, attempt_before, tree, source_dir, secrets {name: value},
    secrets_file, socket, env, runner [argv], beside (may others run here?).
    """
    run = RunDir(order["run_dir"])
    socket, token = order["socket"], Path(order["socket"] + ".launch")
    _private(os.path.dirname(socket))
    tmux = ["tmux", "-S", socket, "-f", "/dev/null"]
    if token.exists() and token.read_text("ascii") == order["token"]:
        began = newest_epoch(run.writer) > order["attempt_before"]  # and may be over already
        if began or _lives(tmux, order["run_id"]):
            return {"ok": True, "again": True}  # the answer was lost on its way, not the order
    with _one_launch_at_a_time(order["disk"]):
        _refuse_company(run, order)
        run.root.mkdir(parents=True, exist_ok=True)
        for name, text in order["files"].items():
            _replace(run.root / name, text, order["attempt_before"])
        _lay_out(order["tree"], Path(order["source_dir"]))
        _start_session(run, order, tmux, token)
    return {"ok": True}


def _start_session(run: RunDir, order: Mapping[str, Any], tmux: List[str], token: Path) -> None:
    """Secrets, then tmux; without a session, no secrets stay. Waits until the runner is seen by others, so that the
    next who asks is told of it."""
    env = {k: v for k, v in os.environ.items() if k not in order["secrets"] and k not in ("TMUX", "TMUX_PANE")}
    try:
        if order["secrets"]:
            _private(os.path.dirname(order["secrets_file"]))
            secret = json.dumps(order["secrets"]).encode("utf-8", "surrogateescape")
            write_atomic(order["secrets_file"], secret, mode=0o600, durable=False)
        _quiet([*tmux, "kill-server"], env)  # what is left of an attempt that was given up
        token.write_text(order["token"], "ascii")
        words = ["env", *("{}={}".format(k, v) for k, v in order["env"].items() if v), *order["runner"]]
        words = [w[:-1] + "\\;" if w.endswith(";") else w for w in words]  # tmux ends a command at a word's last ;
        argv = [*tmux, "new-session", "-d", "-s", order["run_id"], "-x", "200", "-y", "50", *words]
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60
        )
        if done.returncode:
            raise Refused("tmux could not start the run: {}".format(done.stderr.decode("utf-8", "replace").strip()))
    except BaseException:
        if order["secrets"]:
            _unlink(order["secrets_file"])
        raise
    until = time.monotonic() + SEEN_S
    while time.monotonic() < until and not runner_lives(run, order["disk"]) and _lives(tmux, order["run_id"]):
        time.sleep(0.02)


@contextlib.contextmanager
def _one_launch_at_a_time(disk: str) -> Iterator[None]:
    """Two laptops that begin at the same moment look one after the other. Where nothing can be locked, nobody waits."""
    try:
        os.makedirs(disk, exist_ok=True)
        fd = os.open(os.path.join(disk, "launch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without flock
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def runs(volume: Volume) -> Dict[str, Any]:
    """Every run of a volume: its id, its job's folders, its status."""
    found = []
    for directory in sorted(volume.runs.glob("*")):
        run = RunDir(directory)
        job, status = read_json(run.job), read_json(run.status)
        if isinstance(job, dict):
            about = {key: job.get(key, "") for key in ("project", "source_dir", "tool_dir")}
            found.append(dict(about, run_id=directory.name, run_dir=str(directory), status=status))
    return {"ok": True, "runs": found}


def _refuse_company(run: RunDir, order: Mapping[str, Any]) -> None:
    if runner_lives(run, order["disk"]):
        raise Refused(
            "{} is running already, started from somewhere else".format(order["run_id"]),
            "podctl attach {}".format(order["run_id"]),
            busy=True,
        )
    others = turn.others(order["disk"], order["run_id"])
    if others and not order["beside"]:
        more = " and {} more".format(len(others) - 1) if len(others) > 1 else ""
        raise Refused(
            "{}{} is going on this machine, and two would share its memory".format(others[0], more),
            "--queue waits for its turn, --beside runs at once",
            busy=True,
        )


def _replace(path: Path, text: str, attempt_before: int) -> None:
    """An earlier attempt's account stays beside the new one, numbered."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        old: Optional[bytes] = path.read_bytes()
    except FileNotFoundError:
        old = None
    if old == data:
        return
    if old is not None and attempt_before:
        write_atomic(path.with_name("{}.{}".format(path.name, attempt_before)), old)
    write_atomic(path, data)


def _lay_out(tree: str, target: Path) -> None:
    """The run's own copy of the project; what an earlier attempt of it left there gives way."""
    beside = target.with_name(".{}.{}.tmp".format(target.name, os.getpid()))
    try:
        if tree:
            os.utime(tree + ".json")  # the trees that are used are the last to go
            shutil.copytree(tree, str(beside), symlinks=True)
        else:
            beside.mkdir(parents=True)
        shutil.rmtree(str(target), ignore_errors=True)
        os.rename(str(beside), str(target))
    finally:
        shutil.rmtree(str(beside), ignore_errors=True)


def _private(folder: str) -> None:
    """A folder of ours alone. Raises Refused where somebody else's stands there."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    about = os.lstat(folder)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise Refused("{} is not a folder of yours".format(folder), "remove it, or ask whoever owns it to")
    os.chmod(folder, 0o700)


def _lives(tmux: List[str], run_id: str) -> bool:
    return _quiet([*tmux, "has-session", "-t", "=" + run_id], None) == 0


def _quiet(argv: List[str], env: Optional[Mapping[str, str]]) -> int:
    try:
        return subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def main(argv: List[str]) -> int:
    """0 with a line of JSON, whatever it says; 2 for a command that is none."""
    try:
        if argv[1:2] == ["unpack"] and len(argv) in (4, 5):
            answer = unpack(Path(argv[2]), argv[3], (argv[4:] or [""])[0], sys.stdin.buffer)
        elif argv[1:2] == ["runs"] and len(argv) == 3:
            answer = runs(Volume(argv[2]))
        elif argv[1:] == ["start"]:
            answer = start(json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogateescape")))
        else:
            print("usage: python desk.py unpack TREES_DIR ID [LIKE_ID] | start | runs VOLUME", file=sys.stderr)
            return 2
    except Refused as e:
        answer = {"ok": False, "error": str(e), "hint": e.hint, BUSY: e.busy}
    except subprocess.TimeoutExpired:
        answer = {"ok": False, "error": "tmux gives no answer", "hint": "tmux kill-server, there", BUSY: False}
    except tarfile.TarError as e:
        answer = {"ok": False, "error": "the archive broke off: {}".format(e), "hint": "try again", BUSY: False}
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space there" if full else "may you write there?"
        where = os.fsdecode(e.filename) if isinstance(e.filename, (str, bytes)) else "a file"
        why = "the disk is full" if full else (e.strerror or str(e))
        answer = {"ok": False, "error": "{} can't be written: {}".format(where, why), "hint": hint, BUSY: False}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(remote.__file__ or "")) != _HERE:
        sys.exit("{} is not this tool's remote package".format(remote.__file__))
    sys.exit(main(sys.argv))
