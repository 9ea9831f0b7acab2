"""What is sent: the project's files as git knows them, where they came from, and the tool that runs there.

`.podignore`, in the root, takes files out, in the manner of .gitignore: `*` and `?` within one name, `**` over
folders, a `/` at the start or within ties a pattern to the root, a trailing `/` means folders, `!` brings back, and the
last line that fits decides.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podctl import shell
from podctl.errors import BadInput
from podctl.project import Project

IGNORE_FILE = ".podignore"
NEVER = frozenset({".runpod.env", ".env"})  # keys
NEVER_FOLDERS = frozenset({".git", ".podctl"})
PATCH_MAX = 5_000_000
UNTRACKED_MAX = 1_000_000  # bytes of one un-added file within the patch
LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Snapshot:
    """The files of a project at one moment, relative to its root, and their provenance."""

    root: Path
    files: tuple[str, ...]
    n_bytes: int
    in_git: bool = False
    commit: str = ""  # "" outside git, and before the first commit
    branch: str = ""
    changed: tuple[str, ...] = ()  # differ from the commit, deleted ones too
    untracked: tuple[str, ...] = ()
    submodules: tuple[str, ...] = ()  # not sent
    lfs_pointers: tuple[str, ...] = ()  # sent as pointers: the content is not here

    @property
    def dirty(self) -> bool:
        return bool(self.changed or self.untracked)


def snapshot(project: Project, exclude: Path | None = None) -> Snapshot:
    """What would be sent now. `exclude`: a folder that is not the project's, wherever it lies. Writes nothing."""
    root = project.root
    ignored = ignore_rules(root)
    if not project.in_git:
        files = [f for f in _walk(root, exclude) if _may_travel(f) and not ignored(f)]
        return Snapshot(root, tuple(files), _bytes_of(root, files))
    listed = _git_names(root, "ls-files", "-co", "--exclude-standard", "-z")
    present, submodules = [], []
    for name in dict.fromkeys(listed):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            submodules.append(name)
        elif os.path.lexists(path) and _may_travel(name) and not ignored(name):
            present.append(name)
    commit = _git_line(root, "rev-parse", "--verify", "--quiet", "HEAD")
    sent = set(present)
    return Snapshot(
        root=root,
        files=tuple(present),
        n_bytes=_bytes_of(root, present),
        in_git=True,
        commit=commit,
        branch=_git_line(root, "symbolic-ref", "--short", "--quiet", "HEAD"),
        changed=tuple(_git_names(root, "diff", "--name-only", "-z", "HEAD")) if commit else (),
        untracked=tuple(f for f in _git_names(root, "ls-files", "-o", "--exclude-standard", "-z") if f in sent),
        submodules=tuple(submodules),
        lfs_pointers=tuple(f for f in present if _is_lfs_pointer(root / f)),
    )


def provenance(snap: Snapshot, tool_version: str, patch: str) -> dict[str, Any]:
    """`source.json`: enough to know, and with the patch to rebuild, what ran."""
    left_out = [f for f in snap.untracked if _too_big(snap.root / f)]
    return {
        "commit": snap.commit,
        "branch": snap.branch,
        "dirty": snap.dirty,
        "changed": [printable(f) for f in snap.changed],
        "untracked": [printable(f) for f in snap.untracked],
        "files": len(snap.files),
        "bytes": snap.n_bytes,
        "submodules_not_sent": [printable(f) for f in snap.submodules],
        "lfs_pointers": [printable(f) for f in snap.lfs_pointers],
        "in_git": snap.in_git,
        "tool_version": tool_version,
        "patch_sha256": hashlib.sha256(patch.encode("utf-8", "surrogateescape")).hexdigest() if patch else "",
        "patch_cut": len(patch) >= PATCH_MAX,
        "patch_leaves_out": [printable(f) for f in left_out],
    }


def make_patch(snap: Snapshot) -> str:
    """`git diff HEAD` with the un-added files in it, at most 5 MB; a single un-added file over 1 MB is left out.

    Works on copies of git's index and object store, so that the user's own stay as they are.
    """
    if not snap.in_git:
        return ""
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        git_dir = Path(snap.root, _git_line(snap.root, "rev-parse", "--git-dir"))
        objects = Path(snap.root, _git_line(snap.root, "rev-parse", "--git-path", "objects"))
        index = Path(tmp, "index")
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(git_dir / "index", index)
        Path(tmp, "objects").mkdir()
        env = {
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str(Path(tmp, "objects")),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
        }
        added = "\0".join(f for f in snap.untracked if not _too_big(snap.root / f))
        if added:
            _git(snap.root, "add", "-N", "--pathspec-from-file=-", "--pathspec-file-nul", env=env, stdin=added)
        against = snap.commit or _git_line(snap.root, "hash-object", "-t", "tree", "/dev/null")
        never = [f":(exclude,glob)**/{name}" for name in sorted(NEVER)]
        diff = _git(snap.root, "diff", "--binary", "--no-color", "--no-ext-diff", against, "--", ".", *never, env=env)
    return diff[:PATCH_MAX]


def ignore_rules(root: Path) -> Any:
    """A function that says whether `.podignore` takes a relative path out."""
    try:
        lines = (root / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return lambda name: False
    except (OSError, UnicodeDecodeError):
        raise BadInput(f"{IGNORE_FILE} can't be read as UTF-8 text") from None
    rules = [_rule(line.rstrip()) for line in lines if line.strip() and not line.startswith("#")]

    def ignored(name: str) -> bool:
        parts = name.split("/")
        for bring_back, folders_only, pattern in reversed(rules):
            candidates = ["/".join(parts[:n]) for n in range(1, len(parts) + (not folders_only))]
            if any(pattern.fullmatch(c) for c in candidates):
                return not bring_back
        return False

    return ignored


def printable(name: str) -> str:
    """A file name that any JSON can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def tool_tree(root: Path) -> Iterator[tuple[str, Path]]:
    """What runs on the pod, laid out in a folder for the block's time: `remote/`, `trainer/`, and what to install.

    Yields its stamp, a hash of all contents, and the folder.
    """
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        tree = Path(tmp)
        for part in ("remote", "trainer"):
            shutil.copytree(root / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        if (root / "constraints.txt").is_file():
            shutil.copy2(root / "constraints.txt", tree)
        (tree / "requirements.txt").write_text("\n".join(train_requirements(root)) + "\n", encoding="utf-8")
        yield stamp_of(tree), tree


def stamp_of(tree: Path) -> str:
    """12 hex over names, contents and executable bits."""
    digest = hashlib.sha256()
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        executable = b"x" if os.access(path, os.X_OK) else b"-"
        digest.update(str(path.relative_to(tree)).encode() + b"\0" + executable)
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def train_requirements(root: Path) -> list[str]:
    """What the trainer needs installed: this project's own requirements and its `train` extra."""
    pyproject = root / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "podctl":
            return sorted([*project.get("dependencies", []), *project["optional-dependencies"]["train"]])
    from importlib.metadata import PackageNotFoundError, requires

    try:
        listed = requires("podctl") or []
    except PackageNotFoundError:
        return []
    split = [(r.split(";")[0].strip(), r.partition(";")[2]) for r in listed]
    return sorted(
        name for name, when in split if "extra" not in when or re.search(r"""extra\s*==\s*["']train["']""", when)
    )


def _rule(line: str) -> tuple[bool, bool, re.Pattern[str]]:
    bring_back = line.startswith("!")
    line = line[1:] if bring_back else line
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    tied = "/" in line
    line = line.lstrip("/")
    text = "" if tied else r"(?:.*/)?"
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", line):
        simple = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token)
        if simple is None:
            simple = token.replace("[!", "[^") if len(token) > 1 else re.escape(token)
        text += simple
    try:
        return bring_back, folders_only, re.compile(text, re.DOTALL)
    except re.error:
        raise BadInput(f"{IGNORE_FILE}: {line!r} is no pattern") from None


def _may_travel(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] not in NEVER and not NEVER_FOLDERS & set(parts)


def _walk(root: Path, exclude: Path | None) -> Iterator[str]:
    for directory, folders, files in os.walk(root):
        here = Path(directory)
        links = [f for f in folders if (here / f).is_symlink()]
        folders[:] = sorted(
            f for f in folders if f not in NEVER_FOLDERS and f not in links and (here / f).absolute() != exclude
        )
        for name in sorted([*files, *links]):
            if not (here / name).is_symlink() and not (here / name).is_file():
                continue  # a socket or a pipe
            yield (here / name).relative_to(root).as_posix()


def _bytes_of(root: Path, files: Sequence[str]) -> int:
    total = 0
    for name in files:
        with contextlib.suppress(OSError):
            total += (root / name).lstat().st_size
    return total


def _too_big(path: Path) -> bool:
    try:
        return path.lstat().st_size > UNTRACKED_MAX
    except OSError:
        return False


def _is_lfs_pointer(path: Path) -> bool:
    try:
        if path.is_symlink() or path.stat().st_size > 1024:
            return False
        with path.open("rb") as f:
            return f.read(len(LFS)) == LFS
    except OSError:
        return False


def _git(root: Path, *args: str, env: dict[str, str] | None = None, stdin: str = "") -> str:
    # no optional locks: a look must not touch the user's index
    argv = ["git", "-C", str(root), "-c", "core.quotePath=off", *args]
    result = shell.run(argv, stdin=stdin, timeout_s=300, env={"GIT_OPTIONAL_LOCKS": "0", **(env or {})})
    if not result.ok and args[0] not in ("rev-parse", "symbolic-ref"):
        raise BadInput(f"git {args[0]} failed: {result.stderr.strip()}")
    return result.stdout


def _git_names(root: Path, *args: str) -> list[str]:
    return [name for name in _git(root, *args).split("\0") if name]


def _git_line(root: Path, *args: str) -> str:
    return _git(root, *args).removesuffix("\n")
