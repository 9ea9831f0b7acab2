"""What is sent: what git knows and what it will, never a key, with its provenance."""

import subprocess
from pathlib import Path

import pytest
from support.podctl_cli import Cli

from podctl.project import find_project, project_id
from podctl.source import ignore_rules, make_patch, provenance, snapshot, stamp_of, tool_tree, train_requirements
from podctl.trainer_check import tool_root


def project_of(cli: Cli):
    return find_project(cli.project, cli.project)


def test_git_decides_with_un_added_files_and_without_deleted_and_secret_ones(cli: Cli):
    root = cli.project
    for name in ("kept.py", "gone.py", "weird \n'\"ü.py", "ignored.log"):
        (root / name).write_text("x\n")
    (root / ".gitignore").write_text("*.log\n")
    cli.git("add", "-A")
    cli.git("commit", "-qm", "x")
    (root / "gone.py").unlink()
    (root / "new.py").write_text("y\n")
    (root / "sub").mkdir()
    for secret in (".env", ".runpod.env", "sub/.env"):
        (root / secret).write_text("KEY=abc123\n")
    (root / "link").symlink_to("nowhere")
    (root / "lfs.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    snap = snapshot(project_of(cli))
    assert set(snap.files) == {"kept.py", "weird \n'\"ü.py", ".gitignore", "new.py", "link", "lfs.bin"}
    assert snap.changed == ("gone.py",)
    assert snap.lfs_pointers == ("lfs.bin",)
    assert snap.dirty
    patch = make_patch(snap)
    assert "abc123" not in patch
    assert "+y" in patch
    account = provenance(snap, "1", patch)
    assert account["commit"] == cli.git("rev-parse", "HEAD").strip()
    assert "new.py" in account["untracked"]


def test_the_commit_and_the_patch_rebuild_what_was_sent(cli: Cli, tmp_path: Path):
    root = cli.project
    (root / "a.bin").write_bytes(bytes(range(256)))
    (root / "b.txt").write_bytes(b"caf\xe9\n")
    cli.git("add", "-A")
    cli.git("commit", "-qm", "x")
    (root / "a.bin").write_bytes(bytes(range(255, -1, -1)))
    (root / "b.txt").write_bytes(b"th\xe9\n")
    (root / "new file.py").write_bytes(b"n\n")
    index_before = (root / ".git" / "index").read_bytes()
    snap = snapshot(project_of(cli))
    patch = make_patch(snap)
    assert (root / ".git" / "index").read_bytes() == index_before
    subprocess.run(["git", "clone", "-q", str(root), str(tmp_path / "clone")], check=True)
    subprocess.run(["git", "apply"], cwd=tmp_path / "clone", input=patch.encode("utf-8", "surrogateescape"), check=True)
    for name in snap.files:
        assert (tmp_path / "clone" / name).read_bytes() == (root / name).read_bytes()


def test_submodules_are_named_and_not_sent(cli: Cli, tmp_path: Path):
    other = Cli(tmp_path / "o") if (tmp_path / "o").mkdir() is None else None
    cli.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.project), "sub")
    snap = snapshot(project_of(cli))
    assert snap.submodules == ("sub",)
    assert set(snap.files) == {".gitmodules"}


def test_a_repository_before_its_first_commit_can_be_sent(cli: Cli, tmp_path: Path):
    root = tmp_path / "young"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / "a.py").write_text("x\n")
    snap = snapshot(find_project(root, root))
    assert (snap.files, snap.commit) == (("a.py",), "")
    assert "+x" in make_patch(snap)


def test_without_git_all_files_are_sent_but_the_state_and_what_is_ignored(tmp_path: Path):
    for name in ("a.py", "data/big.bin", "home/ledger.jsonl", ".podctl/x", ".env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".podignore").write_text("data/\n")
    project = find_project(tmp_path, tmp_path)
    assert not project.in_git
    snap = snapshot(project, exclude=tmp_path / "home")
    assert snap.files == (".podignore", "a.py")
    assert make_patch(snap) == ""


@pytest.mark.parametrize(
    ("lines", "out", "kept"),
    [
        ("*.wav", ["a.wav", "d/e/b.wav"], ["a.wave"]),
        ("/a.py", ["a.py"], ["d/a.py"]),
        ("data/", ["data/x", "d/data/y"], ["data"]),
        ("d/*.py", ["d/a.py"], ["d/e/a.py", "x/d/a.py"]),
        ("d/**/z", ["d/z", "d/e/f/z"], ["z"]),
        ("*.txt\n!keep.txt", ["a.txt"], ["keep.txt"]),
        ("# note\n\n[ab]?.c", ["a1.c", "d/b2.c"], ["c1.c"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_podignore_reads_like_gitignore(tmp_path: Path, lines: str, out: list[str], kept: list[str]):
    (tmp_path / ".podignore").write_text(lines)
    ignored = ignore_rules(tmp_path)
    assert [n for n in out if not ignored(n)] == []
    assert [n for n in kept if ignored(n)] == []


def test_the_tool_is_stamped_by_its_contents_and_says_what_to_install(tmp_path: Path):
    with tool_tree(tool_root()) as (stamp, tree):
        assert (tree / "remote" / "run.sh").exists()
        assert (tree / "trainer" / "__main__.py").exists()
        assert not list(tree.rglob("__pycache__"))
        assert any(r.startswith("torch") for r in (tree / "requirements.txt").read_text().splitlines())
        assert stamp == stamp_of(tree)
        (tree / "remote" / "run.sh").chmod(0o644)
        (tree / "trainer" / "new.py").touch()
        assert stamp != stamp_of(tree)
    assert any(r.startswith("pydantic") for r in train_requirements(tool_root()))


def test_two_clones_are_two_projects_and_a_folder_within_is_the_same(cli: Cli, tmp_path: Path):
    (cli.project / "deep" / "er").mkdir(parents=True)
    assert find_project(cli.project / "deep" / "er", tmp_path).id == project_of(cli).id
    assert project_id(Path("/a/My Project")) != project_id(Path("/b/My Project"))
    assert project_id(Path("/a/My Project")).startswith("my-project-")
