"""Code on its way to a machine: what is there is not sent, what lay there spoilt is."""

import sys
from pathlib import Path, PurePosixPath

import pytest

from podctl.facts import Facts, gather
from podctl.localhost import LocalHost
from podctl.pods import Pod
from podctl.sending import Remembered, send_tree
from podctl.trees import Tree, read_tree

ROOT = PurePosixPath(Path(__file__).parents[2])


class Counting(LocalHost):
    """This machine, and how often it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def read(self, path):
        self.calls.append("read")
        return super().read(path)

    def stream(self, argv, **more):
        self.calls.append("stream")
        return super().stream(argv, **more)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "state"))
    (tmp_path / "project").mkdir()
    for n in range(20):
        (tmp_path / "project" / f"f{n}").write_text(str(n))
    return tmp_path


def look(room: Path) -> tuple[Tree, Facts]:
    project = room / "project"
    tree = read_tree(project, sorted(p.name for p in project.iterdir()))
    places = PurePosixPath(room / "volume"), PurePosixPath(room / "disk")
    pod = Pod("ssh", "x", "x", "running", 0, *places, python=sys.executable)
    return tree, gather(LocalHost(), pod, project="p", tree=tree.id)


def test_a_change_is_one_command_and_no_change_is_none(room: Path):
    host = Counting()
    tree, facts = look(room)
    sent = send_tree(host, facts, tree, "p", ROOT)
    assert (sent.n_files, host.calls) == (20, ["stream"])
    assert send_tree(host, look(room)[1], tree, "p", ROOT) is None
    (room / "project" / "f3").write_text("changed")
    tree, facts = look(room)
    assert send_tree(host, facts, tree, "p", ROOT).n_files == 1
    assert host.calls == ["stream", "stream"]
    assert (room / "disk" / "trees" / "p" / tree.id / "f3").read_text() == "changed"


def test_a_laptop_that_remembers_nothing_asks_what_is_there(room: Path):
    host = Counting()
    tree, facts = look(room)
    send_tree(host, facts, tree, "p", ROOT)
    for memory in (room / "state" / "trees").iterdir():
        memory.write_text("{}")  # as if it were of another tree
    (room / "project" / "new").touch()
    tree, facts = look(room)
    assert send_tree(host, facts, tree, "p", ROOT).n_files == 1
    assert host.calls == ["stream", "read", "stream"]


def test_a_tree_that_was_spoilt_over_there_is_sent_whole(room: Path):
    tree, facts = look(room)
    send_tree(LocalHost(), facts, tree, "p", ROOT)
    (room / "disk" / "trees" / "p" / tree.id / "f7").write_text("spoilt")
    (room / "project" / "new").touch()
    tree, facts = look(room)
    assert send_tree(LocalHost(), facts, tree, "p", ROOT).n_files == 1 + 21
    assert (room / "disk" / "trees" / "p" / tree.id / "f7").read_text() == "7"


def test_only_the_newest_manifests_are_remembered(room: Path):
    memory, tree = Remembered(room / "memory"), look(room)[0]
    memory.keep(tree)
    for n in range(60):
        (room / "memory" / f"{n}.json").touch()
    memory.keep(tree)
    assert len(list((room / "memory").iterdir())) == 50
    assert memory.manifest(tree.id) == tree.manifest.encode()
