"""The project's tree arrives complete and verified, or not at all, and only what is new travels."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from podctl.trees import Tree, read_tree, tar_stream

DESK = Path(__file__).parents[2] / "remote" / "desk.py"


def unpack(trees: Path, tree: Tree, names: list[str], like: str = "") -> dict:
    data = b"".join(tar_stream(tree, names))
    argv = [sys.executable, "-I", "-S", str(DESK), "unpack", str(trees), tree.id, *([like] if like else [])]
    done = subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def look(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[os.fsdecode(path.relative_to(root))] = str(path.readlink())
        elif path.is_file():
            found[os.fsdecode(path.relative_to(root))] = (path.read_bytes(), path.stat().st_mode & 0o777)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "d" / "e").mkdir(parents=True)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "d" / "e" / "empty").touch()
    (root / "-rf ' \n").write_bytes(os.urandom(100_000))
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).write_text("no utf-8")
    (root / ("n" * 200)).write_text("long")
    (root / "link").symlink_to("d/e")
    return root


def names(root: Path) -> list[str]:
    return [os.fsdecode(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_symlink() or p.is_file()]


def test_a_tree_arrives_as_it_is(project: Path, tmp_path: Path):
    tree = read_tree(project, names(project))
    assert unpack(tmp_path / "trees", tree, list(tree.entries))["ok"]
    assert look(tmp_path / "trees" / tree.id) == look(project)
    assert (tmp_path / "trees" / f"{tree.id}.json").read_text() == tree.manifest


def test_of_a_changed_tree_only_the_change_travels_and_what_was_removed_is_not_there(project: Path, tmp_path: Path):
    old = read_tree(project, names(project))
    unpack(tmp_path / "trees", old, list(old.entries))
    (project / "run.sh").write_text("#!/bin/sh\necho\n")
    (project / "d" / "e" / "empty").unlink()
    (project / "link").unlink()
    (project / "link").write_text("a file now")
    new = read_tree(project, names(project))
    changed = new.beyond((tmp_path / "trees" / f"{old.id}.json").read_text())
    assert changed == ["link", "run.sh"]
    assert unpack(tmp_path / "trees", new, changed, old.id) == {"ok": True, "files": len(new.entries), "came": 2}
    assert look(tmp_path / "trees" / new.id) == look(project)


def test_a_tree_whose_base_was_spoilt_is_refused_by_name_and_leaves_nothing(project: Path, tmp_path: Path):
    old = read_tree(project, names(project))
    unpack(tmp_path / "trees", old, list(old.entries))
    (tmp_path / "trees" / old.id / "run.sh").write_text("#!/bin/zh\n")
    (project / "new").touch()
    new = read_tree(project, names(project))
    assert unpack(tmp_path / "trees", new, ["new"], old.id) == {"ok": False, "wrong": ["run.sh"]}
    assert not (tmp_path / "trees" / new.id).exists()
    assert not [p for p in (tmp_path / "trees").iterdir() if p.name.endswith(".tmp")]


def test_a_file_that_changes_while_it_is_sent_is_refused(project: Path, tmp_path: Path):
    tree = read_tree(project, names(project))
    (project / "run.sh").write_text("something longer than it was before\n")
    assert unpack(tmp_path / "trees", tree, list(tree.entries)) == {"ok": False, "wrong": ["run.sh"]}


def test_an_archive_that_breaks_off_leaves_nothing(project: Path, tmp_path: Path):
    tree = read_tree(project, names(project))
    data = b"".join(tar_stream(tree, list(tree.entries)))
    for cut in (0, 100, 600, len(data) // 2):
        argv = [sys.executable, "-I", "-S", str(DESK), "unpack", str(tmp_path / "trees"), tree.id]
        done = subprocess.run(argv, input=data[:cut], stdout=subprocess.PIPE, check=True)
        assert not json.loads(done.stdout)["ok"]
        assert not list((tmp_path / "trees").iterdir())


def test_only_the_newest_trees_are_kept(project: Path, tmp_path: Path):
    ids = []
    for n in range(5):
        (project / "n").write_text(str(n))
        tree = read_tree(project, names(project))
        unpack(tmp_path / "trees", tree, list(tree.entries))
        os.utime(tmp_path / "trees" / f"{tree.id}.json", (n, n))
        ids.append(tree.id)
    assert {p.name for p in (tmp_path / "trees").iterdir() if p.is_dir()} == set(ids[-3:])


def test_a_trees_name_is_its_contents(tmp_path: Path):
    ids = set()
    for n, (name, text, mode) in enumerate(
        [("a", "1", 0o644), ("a", "1", 0o755), ("a", "2", 0o644), ("b", "1", 0o644)]
    ):
        root = tmp_path / str(n)
        root.mkdir()
        (root / name).write_text(text)
        (root / name).chmod(mode)
        ids.add(read_tree(root, [name]).id)
    assert len(ids) == 4
    (tmp_path / "0" / "a").touch()
    assert read_tree(tmp_path / "0", ["a"]).id in ids
    assert io.BytesIO(b"".join(tar_stream(read_tree(tmp_path / "0", ["a"]), ["a"])))
