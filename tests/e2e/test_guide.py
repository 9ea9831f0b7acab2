"""The guide is true: what it says to type is typed, in its order, and what it shows is printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import netpod
from support.guide import Block, Reader, Step, chapters, first_missing
from support.netpod import NetPod

ROOT = Path(__file__).resolve().parents[2]
GUIDE = chapters((ROOT / "docs" / "guide.md").read_text(encoding="utf-8"))
LOCAL, SSH = "A first run, on this machine", "On your own machine, over SSH"

# Commands that the guide tells of and podctl has not yet: they must leave this set when they come.
PENDING: frozenset[str] = frozenset()


def commands_there() -> set[str]:
    listed = subprocess.run(
        [sys.executable, "-m", "podctl", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"^  ([a-z][a-z-]*)  ", listed.stdout.partition("Commands:")[2], re.M))


def pending(blocks: list[Block]) -> list[str]:
    typed = [step.command for b in blocks if b.is_run for step in b.steps]
    return sorted({w for c in typed for w in re.findall(r"\bpodctl ([a-z-]+)", c) if w in PENDING})


def laptop_env(tmp: Path) -> dict[str, str]:
    """A HOME, a PATH with podctl and trainer of this tree, no keys, no agent."""
    programs = tmp / "bin"
    programs.mkdir()
    for name, module in (("podctl", "podctl.cli"), ("trainer", "trainer.__main__")):
        text = f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp / "home" / ".ssh").mkdir(mode=0o700, parents=True)
    (tmp / "s").mkdir()
    mine = {k: v for k, v in os.environ.items() if k in ("LANG", "LC_ALL", "VIRTUAL_ENV")}
    return mine | {
        "HOME": str(tmp / "home"),
        "PODCTL_HOME": str(tmp / "state"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",  # as in an activated environment
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip


@pytest.fixture
def reader(tmp_path: Path):
    project = tmp_path / "project"
    project.mkdir()
    reader = Reader(project, laptop_env(tmp_path))
    subprocess.run(["git", "init", "-q"], cwd=project, env=dict(reader.env), check=True)
    yield reader
    end_runs_of(tmp_path)


def end_runs_of(tmp: Path) -> None:
    """Whatever went wrong: no session that began in this test outlives it."""
    ledger = tmp / "state" / "ledger.jsonl"
    sockets = set(re.findall(r'"socket": ?"([^"]+)"', ledger.read_text())) if ledger.exists() else set()
    for socket in sockets:
        subprocess.run(["tmux", "-S", socket, "kill-server"], capture_output=True, check=False)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_first_run_on_this_machine_goes_as_the_guide_says(reader: Reader) -> None:
    for block in GUIDE[LOCAL]:
        if pending([block]):
            continue
        reader.read(block)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(netpod.why_not()), reason=netpod.why_not())
@pytest.mark.skipif(bool(pending(GUIDE[SSH])), reason=f"not there yet: {', '.join(pending(GUIDE[SSH]))}")
def test_a_machine_over_ssh_goes_as_the_guide_says(reader: Reader, tmp_path: Path) -> None:
    with NetPod(tmp_path, "gpubox", tmp_path / "volume", files={"/data/podctl/.keep": ""}) as pod:
        config = Path(reader.env["HOME"]) / ".ssh" / "config"
        known = config.with_name("known_hosts")
        known.write_text(f"{pod.host} {pod.host_key}\n")
        config.write_text(
            f"Host gpubox\n  HostName {pod.host}\n  User root\n  IdentityFile {pod.key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {known}\n"
        )
        for block in GUIDE[SSH]:
            # the machine of a reader has the internet, and builds its Python environment; this one has one
            there = block.text.replace("ssh: gpubox\n", f"ssh: {{host: gpubox, python: {sys.executable}}}\n")
            reader.read(Block(block.kind, there, block.mark, block.note))


def test_every_command_that_the_documentation_names_is_there_or_known_to_come() -> None:
    there = commands_there()
    assert len(there) >= 8
    assert there & PENDING == set(), "these have come: take them out of PENDING"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        (page.name, word)
        for page in pages
        for typed in re.findall(r"`([^`\n]+)`|^\$ (.+)$", page.read_text(encoding="utf-8"), re.M)
        for word in re.findall(r"(?:^|[;|&:] *)podctl ([a-z][a-z-]*)\b", "".join(typed))
    }
    assert {(page, word) for page, word in named if word not in there | PENDING} == set()


def test_the_files_of_the_guide_have_no_mistake(tmp_path: Path) -> None:
    files = [b for blocks in GUIDE.values() for b in blocks if b.mark == "file"]
    assert [b.note for b in files] == ["first.yaml", "box.yaml"]
    for block in files:
        path = tmp_path / block.note
        path.write_text(block.text)
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "check", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_link_within_the_documentation_leads_somewhere() -> None:
    pages = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")] + sorted(
        (ROOT / "docs").rglob("*.md")
    )
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# the reader itself


def test_a_guide_is_read_block_by_block() -> None:
    blocks = chapters(
        "# A\n\n## One\n\n<!-- file: a/x.yaml -->\n```yaml\na: 1\n```\n\ntext\n\n```console\n$ echo a \\\n   b\na b\n"
        "$ sleep 9\nready\n^C\nleft\n```\n\n<!-- not run: why -->\n```console\n$ rm -rf /\n```\n\n## Two\n"
    )
    assert list(blocks) == ["One", "Two"]
    file, run, not_run = blocks["One"]
    assert (file.mark, file.note, file.text) == ("file", "a/x.yaml", "a: 1\n")
    assert run.steps == [Step("echo a    b", ("a b",)), Step("sleep 9", ("ready", "left"), 1)]
    assert run.is_run
    assert not not_run.is_run


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        (("a", "b"), "a\nx\nb\n", None),
        (("b", "a"), "a\nb\n", "a"),
        (("x-… done in … s",), "✓ x-17  done in   0.1 s\n", None),
        (("a.c",), "abc\n", "a.c"),
        (("…", "b"), "b\n", None),
        (("b",), "", "b"),
    ],
)
def test_what_is_shown_must_come_in_its_order(shown: tuple[str, ...], printed: str, missing: str | None) -> None:
    assert first_missing(shown, printed) == missing


def test_the_reader_notices_what_fails_and_what_is_not_printed_and_can_press_ctrl_c(tmp_path: Path) -> None:
    reader = Reader(tmp_path, {"PATH": os.environ["PATH"]})
    reader.do(Step("echo one; echo two >&2", ("one", "two")))
    with pytest.raises(AssertionError, match="ended with 3"):
        reader.do(Step("exit 3"))
    with pytest.raises(AssertionError, match="did not print 'two'"):
        reader.do(Step("echo one", ("two",)))
    assert shutil.which("bash")
    reader.do(Step("trap 'echo left; exit 0' INT; echo ready; while :; do sleep 0.05; done", ("ready", "left"), 1))
    with pytest.raises(AssertionError, match="ended by itself"):
        reader.do(Step("echo gone", ("never",), 1))
