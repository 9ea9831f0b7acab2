"""One look at a machine tells all that a launch needs, and what is missing there is one sentence."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from podctl.asking import BEGIN, parse
from podctl.errors import MissingThere, PodctlError
from podctl.facts import SCRIPT, Facts, facts_of, gather, refuse_what_is_missing, whole
from podctl.localhost import LocalHost
from podctl.pods import Pod, Result

READY = Facts(
    "gpubox", "/home/me", 1000, "Linux", 0.0, PurePosixPath("/data"), PurePosixPath("/home/me/.cache/podctl"),
    frozenset({"tmux", "bash", "tar"}), "/usr/bin/python3",
)  # fmt: skip


def pod(volume: object, disk: object, python: str = "") -> Pod:
    return Pod("ssh", "x", "x", "running", 0, PurePosixPath(str(volume)), PurePosixPath(str(disk)), python=python)


def test_a_look_makes_our_folders_and_tells_what_is_there(tmp_path: Path):
    volume, disk = tmp_path / "a'; rm -rf $HOME; \"volume", tmp_path / "disk"
    run = volume / "runs" / "r-1"
    (run / "writer" / "9").mkdir(parents=True)
    (run / "writer" / "10").mkdir()
    (run / "log").write_bytes(b"x" * 1234)
    (disk / "trees" / "p").mkdir(parents=True)
    for n, name in enumerate(("old", "new")):
        (disk / "trees" / "p" / f"{name}.json").touch()
        os.utime(disk / "trees" / "p" / f"{name}.json", (n, n))
    facts = gather(LocalHost(), pod(volume, disk), run_id="r-1", project="p", tree="old", stamp="s")
    assert (facts.has_run, facts.log_bytes, facts.epoch) == (True, 1234, 10)
    assert (facts.has_tree, facts.newest_tree, facts.has_tool) == (True, "new", False)
    assert (facts.volume, facts.disk) == (PurePosixPath(volume), PurePosixPath(disk))
    assert facts.uid == os.getuid()
    assert facts.python
    assert not facts.trouble
    assert {"tmux", "bash"} <= facts.has
    assert (disk / "src").is_dir()
    refuse_what_is_missing(facts)


def test_home_is_that_machines_own(tmp_path: Path):
    class Elsewhere(LocalHost):
        def run(self, argv, **more):
            return super().run(["env", f"HOME={tmp_path}", *argv], **more)

    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    there = pod("~/my volume", "~", "~/venv/bin/python")
    facts = gather(Elsewhere(), there)
    assert facts.volume == PurePosixPath(tmp_path, "my volume")
    assert facts.disk == PurePosixPath(tmp_path)
    assert facts.python == str(python)
    assert whole(there, facts).python == str(python), "the runner, which is told of it, knows no ~"


def test_the_given_python_comes_first_and_one_that_is_none_is_passed_over(tmp_path: Path):
    assert gather(LocalHost(), pod(tmp_path, tmp_path, sys.executable)).python == sys.executable
    other = gather(LocalHost(), pod(tmp_path, tmp_path, "/bin/false"))
    assert other.python, "what only looks needs none but any"
    with pytest.raises(MissingThere, match="/bin/false does not run as a Python on") as caught:
        refuse_what_is_missing(other)
    assert "pod.ssh.python" in caught.value.hint


def test_a_python_beside_one_is_whole_wherever_the_run_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    there = pod(tmp_path, tmp_path, "./python")
    assert whole(there, gather(LocalHost(), there)).python == f"{tmp_path}/./python"
    by_name = pod(tmp_path, tmp_path, "python3")
    assert whole(by_name, gather(LocalHost(), by_name)).python == "python3"


def test_a_newer_python_beside_an_old_one_is_found(tmp_path: Path):
    (tmp_path / "python3").write_text("#!/bin/sh\necho 3.6.8\n")
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "python3.12").symlink_to(sys.executable)
    script = SCRIPT.replace(" /usr", " /no")
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    argv = ["sh", "-c", script, "sh", str(tmp_path), str(tmp_path), "", "", "", "", ""]
    facts = facts_of("x", parse(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout))
    assert (facts.python, facts.python_seen) == (f"{tmp_path}/python3.12", "3.6.8")
    refuse_what_is_missing(facts)


def test_an_old_python_is_told_by_its_version(tmp_path: Path):
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "python3").write_text("#!/bin/sh\necho 3.6\nexit 1\n")
    (bin_dir / "python3").chmod(0o755)
    for name in (
        "sh",
        "id",
        "uname",
        "date",
        "mkdir",
        "rm",
        "tr",
        "df",
        "awk",
        "ls",
        "sed",
        "head",
        "wc",
        "sort",
        "tail",
    ):
        (bin_dir / name).symlink_to(shutil.which(name) or "/bin/sh")
    script = SCRIPT.replace("/usr/bin/python3", "").replace("/usr/local/bin/python3", "")
    out = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(tmp_path), str(tmp_path), "", "", "", "", ""],
        env={"PATH": str(bin_dir), "HOME": "/"}, stdout=subprocess.PIPE, text=True, check=False,
    ).stdout  # fmt: skip
    facts = facts_of("gpubox", parse(out))
    assert not facts.python
    with pytest.raises(MissingThere, match="no tmux"):
        refuse_what_is_missing(facts)
    with pytest.raises(MissingThere, match=r"only Python 3\.6, 3\.8 or newer"):
        refuse_what_is_missing(replace(facts, has=READY.has))


@pytest.mark.skipif(os.getuid() != 0, reason="needs a mount")
def test_a_volume_that_is_read_only_is_named_with_the_reason(tmp_path: Path):
    volume = tmp_path / "volume"
    volume.mkdir()
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(volume)]

    class ReadOnly(LocalHost):
        def run(self, argv, **more):
            return super().run([*mount, *argv], **more)

    facts = gather(ReadOnly(), pod(volume, tmp_path / "disk"))
    with pytest.raises(MissingThere, match="can't be written: Read-only file system") as caught:
        refuse_what_is_missing(facts)
    assert "pod.volume" in caught.value.hint


def test_an_answer_without_its_end_is_none_and_a_login_scripts_words_do_no_harm():
    assert not parse(f"Welcome!\n\n{BEGIN}\nhome=/root\n").is_whole
    facts = facts_of("x", parse(f"Welcome!\nhome=/x\n\n{BEGIN}\nhome=/root\nuid=0\nvolume=/v\ndisk=/d\nend=yes\n"))
    assert facts.home == "/root"
    assert facts.volume_free_kb is None


def test_a_shell_that_answers_nothing_is_said_with_its_own_last_word():
    class Menu(LocalHost):
        def run(self, argv, **more):
            return Result(1, "Choose:\n 1) mail\n", "")

    with pytest.raises(PodctlError, match=r"does not answer as a machine with a POSIX shell:  1\) mail"):
        gather(Menu(), pod("/v", "/d"))


def test_what_is_missing_says_what_to_type_there():
    for changed, words in [
        ({"has": frozenset({"bash"})}, ("gpubox has no tmux", "sudo apt-get install tmux")),
        ({"has": frozenset({"bash"}), "uid": 0}, ("no tmux", "there: apt-get install tmux")),
        ({"has": frozenset({"bash"}), "system": "Darwin"}, ("no tmux", "brew install tmux")),
        ({"python": ""}, ("no Python", "pod.ssh.python")),
        ({"trouble": "/data/runs: mkdir: x: No space left on device"}, ("No space left on device", "pod.volume")),
        ({"trouble": "/home/me/.cache/podctl/src: y: Permission denied"}, ("Permission denied", "pod.ssh.disk")),
    ]:
        with pytest.raises(MissingThere) as caught:
            refuse_what_is_missing(replace(READY, **changed))
        told = f"{caught.value.message} → {caught.value.hint}"
        assert all(word in told for word in words), told
