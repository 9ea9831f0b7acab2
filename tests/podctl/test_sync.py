"""After a push the trees are equal, whatever was there, whatever the names, over any wire."""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.wires import LocalWire, path_without

from podctl import sync
from podctl.courier import DiskFull
from podctl.errors import PodctlError, Unreachable
from podctl.rsync import RsyncVersion, parse_banner, rsync_options

DEBIAN = """rsync  version 3.2.7  protocol version 31
Copyright (C) 1996-2022 by Andrew Tridgell, Wayne Davison, and others.
Web site: https://rsync.samba.org/
Capabilities:
    64-bit files, 64-bit inums, 64-bit timestamps, 64-bit long ints,
    socketpairs, symlinks, symtimes, hardlinks, hardlink-specials,
    hardlink-symlinks, IPv6, atimes, batchfiles, inplace, append, ACLs,
    xattrs, optional protect-args, iconv, prealloc, stop-at, no crtimes
"""
OLD_MAC = """rsync  version 2.6.9  protocol version 29
Copyright (C) 1996-2006 by Andrew Tridgell, Wayne Davison, and others.
<http://rsync.samba.org/>
Capabilities: 64-bit files, socketpairs, hard links, symlinks, batchfiles,
              inplace, IPv6, 64-bit system inums, 64-bit internal inums
"""
NEW_MAC = "openrsync: protocol version 29\nrsync version 2.6.9 compatible\n"
OPENBSD = "openrsync: protocol version 27\n"
WEIRD = [
    "a\nb",
    "it's",
    'q"q',
    "-rf",
    "#comment",
    ";x",
    " lead",
    "trail ",
    "*",
    "[a]",
    "a\\b",
    "$HOME",
    "\udcff\udcfe",
    "é",
]


def tree(root: Path) -> dict[str, object]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            about = path.stat()
            found[name] = (path.read_bytes(), about.st_mode & 0o777, about.st_mtime_ns)
    return found


def make_weird(root: Path) -> None:
    for name in WEIRD:
        (root / ("d" + name)).mkdir(parents=True)
        (root / ("d" + name) / name).write_text(name.encode("utf-8", "surrogateescape").hex())
        (root / ("l" + name)).symlink_to(name)
    (root / ("n" * 250)).write_text("long")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "dirlink").symlink_to("/")
    (root / "empty").touch()


def age(root: Path, seconds: float = 100) -> None:
    then = time.time_ns() - int(seconds * 1e9)
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, ns=(then, then))


class Way:
    """One way to push: always by rsync, always by our own program, or to a machine that has neither it nor Python."""

    def __init__(self, kind: str, tmp: Path) -> None:
        self.kind = kind
        tmp.mkdir(exist_ok=True)
        path = {"rsync": None, "stream": ("rsync",), "tar": ("rsync", "python*")}[kind]
        on_path = path_without(tmp, *path) if path else None
        self.wire = LocalWire(tmp, path=on_path, rsync=kind != "tar", no_python=kind == "tar")

    def push(self, source: Path, target: Path, **more) -> None:
        sync.push(self.wire, source, target, rsync_from=0, **more)

    def like(self, a: Path, b: Path) -> bool:
        """Are they equal? An old archive format keeps whole seconds, and makes a young file older."""
        one, other = tree(a), tree(b)
        if self.kind == "tar":
            assert {n: e[:-1] for n, e in one.items()} == {n: e[:-1] for n, e in other.items()}
            return True
        assert one == other
        return True


@pytest.fixture(params=["rsync", "stream", "tar"])
def way(request, tmp_path: Path) -> Way:
    return Way(request.param, tmp_path / "way")


def test_push_makes_the_target_like_the_source_whatever_the_names(way: Way, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "it's a\n'target"
    make_weird(a)
    age(a)
    way.push(a, b)
    assert way.like(a, b)
    assert way.wire.used_rsync == (way.kind == "rsync")
    before = len(way.wire.commands)
    way.push(a, b)
    assert len(way.wire.commands) == before + 1  # one look, and nothing else


def test_what_is_gone_here_goes_there_and_kinds_may_change(way: Way, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_weird(a)
    (b / "run.sh" / "was a folder").mkdir(parents=True)
    (b / "d-rf").symlink_to("/tmp")
    (b / "dirlink").write_text("was a file")
    (b / "stray" / "deep").mkdir(parents=True)
    (b / "stray" / "deep" / "f").touch()
    (b / "stray link").symlink_to("/tmp")
    os.mkfifo(b / "pipe")
    way.push(a, b)
    assert way.like(a, b)
    assert not (b / "stray").exists()
    assert not (b / "pipe").exists()


def test_only_the_named_files_travel(way: Way, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_weird(a)
    (b / "other").mkdir(parents=True)
    way.push(a, b, files_from=["d-rf/-rf", "l-rf", "run.sh"])
    assert sorted(tree(b)) == ["d-rf/-rf", "l-rf", "run.sh"]


def test_only_what_changed_travels(tmp_path: Path):
    way, a, b = Way("stream", tmp_path / "way"), tmp_path / "a", tmp_path / "b"
    make_weird(a)
    (a / "big").write_bytes(random.Random(0).randbytes(1_000_000))
    age(a)
    way.push(a, b)
    kept, before = (b / "big").stat().st_ino, way.wire.sent
    (a / "run.sh").write_text("changed")
    (a / "empty").chmod(0o600)
    way.push(a, b)
    assert tree(b) == tree(a)
    assert (b / "big").stat().st_ino == kept
    assert way.wire.sent - before < 1000


def test_a_change_of_the_same_size_within_a_moment_is_seen(way: Way, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    for text in "123":
        (a / "x").write_text(text)
        way.push(a, b)
        assert (b / "x").read_text() == text


def test_rsync_sends_only_the_differences_of_a_large_file(tmp_path: Path):
    way, a, b = Way("rsync", tmp_path / "way"), tmp_path / "a", tmp_path / "b"
    a.mkdir()
    (a / "big").write_bytes(b"0" * 3_000_000)
    age(a)
    way.push(a, b)
    with (a / "big").open("r+b") as f:
        f.write(b"1")
    age(a, 50)
    way.push(a, b)
    assert tree(b) == tree(a)
    assert way.wire.rsync_calls.read_text().count("rsync") == 2


def test_an_old_rsync_over_there_is_spoken_to_in_its_own_words(tmp_path: Path):
    folder = tmp_path / "far"
    folder.mkdir()
    path = path_without(folder, "rsync")
    refuse = "*--info*|*--append-verify*|*--compress-choice*|*--mkpath*|*--secluded-args*|*--timeout*|-s|*--old-args*"
    (Path(path) / "rsync").write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && {{ printf '%s\\n' 'rsync  version 2.6.9  protocol version 29'; exit; }}
for word; do case $word in {refuse}) echo "rsync: $word: unknown option" >&2; exit 1 ;; esac; done
exec {shutil.which("rsync")} "$@"
"""
    )
    (Path(path) / "rsync").chmod(0o755)
    wire, a, b = LocalWire(folder, path=path), tmp_path / "a", tmp_path / "b"
    make_weird(a)
    age(a)
    sync.push(wire, a, b, rsync_from=0)
    assert tree(b) == tree(a)
    assert wire.used_rsync


def test_banners_are_read():
    debian, mac = RsyncVersion("rsync", (3, 2, 7), 31), RsyncVersion("rsync", (2, 6, 9), 29)
    apple, openbsd = RsyncVersion("openrsync", (2, 6, 9), 29), RsyncVersion("openrsync", (), 27)
    assert [parse_banner(t) for t in (DEBIAN, OLD_MAC, NEW_MAC, OPENBSD)] == [debian, mac, apple, openbsd]
    assert parse_banner("") is parse_banner("sh: rsync: not found") is None


def test_each_pair_of_rsyncs_gets_options_that_both_understand():
    versions = [v for v in map(parse_banner, (DEBIAN, OLD_MAC, NEW_MAC)) if v]
    debian, mac, apple = versions
    for here in versions:
        for there in versions:
            options = rsync_options(here, there)
            assert options is not None
            assert "--files-from=-" in options
            assert ("--timeout=60" in options) == (here == there == debian)
            assert ("--compress" in options) == (apple not in (here, there))
            assert not [o for o in options if o.startswith(("--info", "--append", "--compress-", "--protect", "-s"))]
    assert rsync_options(debian, RsyncVersion("openrsync", (), 27)) is None
    assert rsync_options(mac, RsyncVersion("rsync", (2, 5, 7), 26)) is None


def test_a_push_that_is_cut_leaves_whole_files_alone_and_the_next_one_mends_it(tmp_path: Path):
    way, a, b = Way("stream", tmp_path / "way"), tmp_path / "a", tmp_path / "b"
    a.mkdir()
    for n in range(5):
        (a / f"f{n}").write_bytes(random.Random(n).randbytes(400_000))
    way.wire.cut_after = 1_000_000
    with pytest.raises(Unreachable):
        way.push(a, b)
    there = tree(b)
    assert there
    assert all(tree(a)[name] == what for name, what in there.items() if not name.startswith(".podctl-"))
    sent = way.wire.sent
    way.push(a, b)
    assert tree(b) == tree(a)
    assert way.wire.sent - sent < 1_700_000


def test_a_tar_that_is_cut_leaves_the_old_tree(tmp_path: Path):
    way, a, b = Way("tar", tmp_path / "way"), tmp_path / "a", tmp_path / "b"
    a.mkdir()
    (a / "old").write_text("old")
    way.push(a, b)
    before = tree(b)
    (a / "big").write_bytes(random.Random(0).randbytes(2_000_000))
    way.wire.cut_after = 1_000_000
    with pytest.raises(PodctlError):
        way.push(a, b)
    assert tree(b) == before
    way.push(a, b)
    assert tree(b) == tree(a)


def test_a_disk_that_is_full_there_is_said_in_a_sentence(tmp_path: Path):
    wire, a = LocalWire(tmp_path / "w", rsync=False), tmp_path / "a"
    a.mkdir()
    (a / "x").write_text("x")
    with pytest.raises(PodctlError, match=r"can't be|over there"):
        sync.push(wire, a, Path("/proc/nowhere"))
    assert issubclass(DiskFull, PodctlError)


def test_pull_brings_a_tree_in_one_command_and_lets_the_rest_stay(tmp_path: Path):
    wire, a, b = LocalWire(tmp_path / "w"), tmp_path / "a", tmp_path / "b"
    make_weird(a)
    (b / "mine").mkdir(parents=True)
    (b / "mine" / "f").touch()
    (b / "run.sh").mkdir()
    sync.pull(wire, a, b)
    assert len(wire.commands) == 1
    theirs = tree(b)
    del theirs["mine/f"]
    assert theirs == tree(a)
    inode = (b / "run.sh").stat().st_ino
    sync.pull(wire, a, b)
    assert (b / "run.sh").stat().st_ino == inode


def test_pull_brings_named_paths_one_file_or_nothing(tmp_path: Path):
    wire, a, b = LocalWire(tmp_path / "w"), tmp_path / "a", tmp_path / "b"
    make_weird(a)
    sync.pull(wire, a, b, names=["d-rf", "run.sh", "not there"])
    assert sorted(tree(b)) == ["d-rf/-rf", "run.sh"]
    sync.pull(wire, a / "run.sh", b / "deep" / "copy")
    assert (b / "deep" / "copy").read_text() == "#!/bin/sh\n"
    with pytest.raises(FileNotFoundError):
        sync.pull(wire, a / "nothing", b / "nothing")
    with pytest.raises(PodctlError):  # a file does not take a whole folder's place
        sync.pull(wire, a / "run.sh", b)
    assert (b / "run.sh").exists()


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path):
    from remote.frames import Broken, Pieces, frames, line_of
    from remote.taking import Taker

    root = tmp_path / "root"
    (root / "link").parent.mkdir()
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "x").write_text("evil")
    (whole,) = [b"".join(frames(str(tmp_path / "src"), ["x"]))]
    for name in ("../x", "/x", "a/../../x", "a//x", "."):
        head, _, rest = whole.partition(b"\n")
        bad = head.replace(b'"x"', line_of({"n": name})[6:-2]) + b"\n" + rest
        with pytest.raises(Broken):
            Taker(str(root), lambda said: None).take(Pieces([bad]))
    through = whole.replace(b'"x"', b'"link/x"')
    Taker(str(root), lambda said: None).take(Pieces([through]))
    assert not (tmp_path / "x").exists()
    assert (root / "link" / "x").read_text() == "evil"


NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "b/c", "-d", "x\ny", "x\ny/z"])
STEP = st.tuples(NAMES, st.sampled_from(["file", "folder", "link", "gone", "mode"]), st.integers(0, 9))


def mutate(root: Path, steps) -> None:
    for name, kind, n in steps:
        path = root / name
        if any(p.is_symlink() or p.is_file() for p in path.parents if p != root and root in p.parents):
            continue
        if kind == "mode":
            if path.is_file() and not path.is_symlink():
                path.chmod(0o600 + n)
            continue
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file":
            path.write_text(str(n) * n)
        elif kind == "folder":
            path.mkdir()
            (path / "inner").write_text(str(n))
        elif kind == "link":
            path.symlink_to(["a", "..", "/", "nowhere"][n % 4])


@pytest.mark.parametrize("kind", ["rsync", "stream", "tar"])
def test_after_a_push_the_trees_are_equal_whatever_happened_before(kind: str):
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        way, n = Way(kind, Path(tmp, "way")), 0

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(STEP, max_size=8), st.lists(STEP, max_size=6), st.lists(STEP, max_size=4), st.booleans())
        def holds(first, second, behind_our_back, old):
            nonlocal n
            n += 1
            a, b = Path(tmp, f"a{n}"), Path(tmp, f"b{n}")
            a.mkdir()
            b.mkdir()
            for here, there in ((first, []), (second, behind_our_back)):
                mutate(a, here)
                mutate(b, there)
                if old:
                    age(a)
                way.push(a, b)
                assert way.like(a, b)

        holds()
