"""This machine as a host keeps what every host promises."""

import os
from pathlib import Path

import pytest

from podctl.errors import MissingHere, PodctlError
from podctl.host import write
from podctl.localhost import LocalHost

HOST = LocalHost()


def tree(root: Path) -> dict[str, object]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o777)
    return found


def test_push_makes_the_target_like_the_source_whatever_was_there(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    (a / "d").mkdir(parents=True)
    (a / "d" / "run.sh").write_text("#!/bin/sh\n")
    (a / "d" / "run.sh").chmod(0o755)
    (a / "link").symlink_to("d/run.sh")
    (a / "dirlink").symlink_to("d")
    (a / "was a folder").write_text("1")
    (a / ("n" * 250)).write_text("long name")
    HOST.push(a, b)
    assert tree(b) == tree(a)
    (b / "was a folder").unlink()
    (b / "was a folder").mkdir()
    (b / "was a folder" / "x").touch()
    (b / "stray").symlink_to("/")
    (b / "old").mkdir()
    (a / "link").unlink()
    (a / "link").write_text("now a file")
    HOST.push(a, b)
    assert tree(b) == tree(a)
    assert not (b / "old").exists()


def test_push_sends_the_named_files_alone_and_sees_a_change_of_the_same_size(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    for name in ("x", "y"):
        (a / name).write_text("1")
    HOST.push(a, b, files_from=["x"])
    assert list(tree(b)) == ["x"]
    (a / "x").write_text("2")
    HOST.push(a, b, files_from=["x"])
    assert (b / "x").read_text() == "2"


def test_push_copies_only_what_changed(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    (a / "x").write_text("1")
    os.utime(a / "x", (1, 1))
    HOST.push(a, b)
    before = (b / "x").stat().st_ino
    HOST.push(a, b)
    assert (b / "x").stat().st_ino == before


def test_pull_brings_files_and_folders_and_lets_the_rest_stay(tmp_path: Path):
    (tmp_path / "a" / "d").mkdir(parents=True)
    (tmp_path / "a" / "d" / "f").write_text("1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    HOST.pull(tmp_path / "a", tmp_path / "b")
    assert sorted(tree(tmp_path / "b")) == ["d/f", "mine"]
    with pytest.raises(FileNotFoundError):
        HOST.pull(tmp_path / "nothing", tmp_path / "c")


def test_follow_yields_every_byte_and_ticks_when_idle(tmp_path: Path):
    path = tmp_path / "log"
    following = HOST.follow(path, offset=2)
    assert next(following) == b""
    path.write_bytes(b"abcdef")
    assert next(following) == b"cdef"
    assert next(following) == b""
    with path.open("ab") as f:
        f.write(b"\xff\x00")
    assert next(following) == b"\xff\x00"


def test_run_tells_output_exit_code_and_time_out():
    assert HOST.run(["sh", "-c", "cat; echo e >&2; exit 3"], stdin="in \udcff").stdout == "in \udcff"
    result = HOST.run(["sh", "-c", "exit 3"])
    assert (result.exit_code, result.ok) == (3, False)
    assert HOST.run(["sleep", "5"], timeout_s=0.1).exit_code == 124
    with pytest.raises(MissingHere):
        HOST.run(["no-such-program"])


def test_write_is_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a'; b\n" / "f"
    write(HOST, path, "text", mode="600")
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    with pytest.raises(PodctlError):
        write(HOST, tmp_path / "file" / "f", "text")


def test_a_port_of_this_machine_is_here_already():
    with HOST.forward(6006, 6006):
        pass
    with pytest.raises(MissingHere), HOST.forward(6006, 6007):
        pass
