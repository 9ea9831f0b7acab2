"""Our own things on their way to a machine: the tool once a version, the project's tree by what it lacks of it."""

import contextlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from podctl.errors import PodctlError
from podctl.facts import Facts, python_words
from podctl.host import Host
from podctl.settings import state_dir
from podctl.trees import Tree, id_of, tar_stream
from remote.files import write_atomic

KEEP = 50  # manifests; one of 500 files has 50 kB

# Python rather than tar: it has to be there anyway, tar need not be. Beside, then renamed: complete or absent.
UNPACK_TOOL = """
import os, shutil, sys, tarfile
target = sys.argv[1]
beside = "{}.{}.tmp".format(target, os.getpid())
try:
    os.makedirs(beside)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as tar:
        tar.extractall(beside)
    open(os.path.join(beside, ".complete"), "w").close()
    if os.path.exists(target) and not os.path.exists(os.path.join(target, ".complete")):
        shutil.rmtree(target, ignore_errors=True)
    if not os.path.exists(target):
        os.rename(beside, target)
finally:
    shutil.rmtree(beside, ignore_errors=True)
"""


@dataclass(frozen=True)
class Sent:
    n_files: int
    n_bytes: int


def send_tool(host: Host, facts: Facts, stamp: str, tree: Path) -> PurePosixPath:
    """remote/ and trainer/, once a version. Raises PodctlError."""
    target = facts.disk / "tool" / stamp
    if facts.has_tool:
        return target
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tree, arcname=".", filter=_nobodys)
    code, said = _pour(host, [facts.python, "-I", "-S", "-c", UNPACK_TOOL, str(target)], [packed.getvalue()])
    if code:
        raise PodctlError(f"podctl's own code could not be laid down on {host.name}: {said}", "is there room?")
    return target


def send_tree(host: Host, facts: Facts, tree: Tree, project: str, tool_dir: PurePosixPath) -> Sent | None:
    """Have the tree there, complete and verified; None where it was. Raises PodctlError."""
    if facts.has_tree or not tree.entries:
        return None
    trees = facts.disk / "trees" / project
    like = facts.newest_tree
    known = Remembered(state_dir() / "trees").manifest(like) or host.read(trees / f"{like}.json") if like else None
    wanted = tree.beyond((known or b"").decode("ascii", "replace"))
    n_files = n_bytes = 0
    wrong: list[str] = []
    for _ in range(2):
        words = ["unpack", str(trees), tree.id, *([like] if known else [])]
        argv = python_words(facts, tool_dir / "remote" / "desk.py", *words)
        code, said = _pour(host, argv, tar_stream(tree, wanted))
        n_files, n_bytes = n_files + len(wanted), n_bytes + sum(tree.entries[n].size for n in wanted)
        answer = answer_of(said)
        if answer is None:
            raise PodctlError(f"the project's code could not be laid down on {host.name}: {said or code}")
        if answer.get("ok"):
            Remembered(state_dir() / "trees").keep(tree)
            return Sent(n_files, n_bytes)
        if "error" in answer:
            raise PodctlError(f"{host.name}: {answer['error']}", str(answer.get("hint", "")))
        wrong = [str(name) for name in answer.get("wrong", [])]
        wanted, known = sorted(tree.entries), None  # what lay there was changed: all of it anew
    raise PodctlError(
        f"files changed while they were sent: {', '.join(wrong[:3])}", "try again when nothing writes them"
    )


class Remembered:
    """Manifests of trees that were sent from here: a round trip less for the next one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def manifest(self, tree_id: str) -> bytes | None:
        """What a tree of that name holds; None where it was sent from elsewhere, long ago, or is not as it was."""
        try:
            text = (self._folder / f"{tree_id}.json").read_bytes()
        except OSError:
            return None
        return text if id_of(text) == tree_id else None

    def keep(self, tree: Tree) -> None:
        """A full disk is no reason for a run not to begin."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self._folder / f"{tree.id}.json", tree.manifest.encode("ascii"), durable=False)
            for old in sorted(self._folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)[KEEP:]:
                old.unlink()


def answer_of(text: str) -> dict[str, Any] | None:
    """The last line's JSON object; a login script may have spoken before it."""
    try:
        value = json.loads((text.strip().splitlines() or [""])[-1])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _pour(host: Host, argv: Sequence[str], data: Iterable[bytes]) -> tuple[int, str]:
    """Run a command there with this stdin; its exit code, and what it said last."""
    with host.stream(argv, stdin=data) as stream:
        out = b"".join(stream)
        code = stream.exit_code or 0
        said = stream.stderr.strip().splitlines()[-1:] or [""]
    text = out.decode("utf-8", "replace")
    return code, text if text.strip() else said[0]


def _nobodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info
