"""What travels, over a real sshd by both wires, and from the command line."""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.podctl_cli import Cli
from support.sshd import Sshd, laptop
from support.wires import path_without

from podctl import sync
from podctl.transfer import pull_data, push_data
from podctl.ui import Ui
from podctl.uplink import Desk, measure_uplink
from podctl.wire.base import Wire
from podctl.wire.openssh import OpenSsh
from podctl.wire.paramiko import Paramiko
from remote.clock import SystemClock
from remote.holdings import HASHES, PARTS

MB = 1_000_000
WIRES = {"openssh": OpenSsh, "paramiko": Paramiko}


def tree(root: Path) -> dict[str, object]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file() and path.name != HASHES:
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o777, path.stat().st_mtime_ns)
    return found


def some_tree(root: Path) -> Path:
    for name in ("a\nb", "it's", "-rf", "#comment", "\udcff\udcfe", "é", "$HOME", "!x", "back\\slash"):
        (root / f"d{name}").mkdir(parents=True)
        (root / f"d{name}" / name).write_text(name.encode("utf-8", "surrogateescape").hex())
        (root / f"l{name}").symlink_to(name)
    noise(root / "big", 2 * MB)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


def noise(path: Path, n: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(n))
    os.utime(path, (time.time() - 100,) * 2)
    return path


class Cutting:
    """A wire whose connections are killed once after so many bytes, whichever way they go."""

    def __init__(self, wire: Wire, sshd: Sshd, after: int, which: str) -> None:
        self.wire, self.sshd, self.left, self.which, self.cut = wire, sshd, after, which, False
        self.given = 0

    def stream(self, argv, *, stdin=None):
        from contextlib import contextmanager

        def counted(pieces, cuts: bool):
            for piece in pieces:
                yield piece
                if cuts and self.which in argv and not self.cut:
                    self.left -= len(piece)
                    if self.left <= 0:
                        self.cut = True
                        self.sshd.kill_sessions()
                if cuts and stdin is not None:
                    self.given += len(piece)

        class Heard:
            def __init__(self, stream, cuts: bool) -> None:
                self.stream, self.cuts = stream, cuts

            def __iter__(self):
                return counted(self.stream, self.cuts)

            exit_code = property(lambda self: self.stream.exit_code)
            stderr = property(lambda self: self.stream.stderr)

        @contextmanager
        def streaming():
            sends = self.which == "take"
            fed = counted(stdin, sends) if stdin is not None else None
            with self.wire.stream(argv, stdin=fed) as stream:
                yield Heard(stream, not sends)

        return streaming()


@pytest.fixture(params=sorted(WIRES))
def wired(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Wire, Sshd]]:
    with laptop(tmp_path), Sshd(tmp_path / "sshd") as sshd:
        wire = WIRES[request.param](sshd.address)
        yield wire, sshd
        wire.close()


@pytest.fixture
def desk() -> Desk:
    return Desk(Ui(), SystemClock(), yes=True)


def test_trees_travel_both_ways(wired, tmp_path: Path):
    wire, _ = wired
    a, b, c = some_tree(tmp_path / "a"), tmp_path / "it's\nthere", tmp_path / "c"
    sync.push(wire, a, b, rsync_from=0)
    assert tree(b) == tree(a)
    (a / "big").unlink()
    (a / "big").mkdir()
    noise(a / "big" / "file", MB, 1)
    sync.push(wire, a, b, rsync_from=0)
    assert tree(b) == tree(a)
    sync.pull(wire, b, c)
    assert tree(c) == tree(a)
    sync.pull(wire, b, tmp_path / "some", names=["big", "run.sh"])
    assert sorted(tree(tmp_path / "some")) == ["big/file", "run.sh"]
    with pytest.raises(FileNotFoundError):
        sync.pull(wire, b / "nothing", c)


def test_a_machine_without_rsync_gets_the_same_tree(tmp_path: Path):
    (tmp_path / "far").mkdir()
    path = path_without(tmp_path / "far", "rsync")
    a, b = some_tree(tmp_path / "a"), tmp_path / "b"
    with laptop(tmp_path), Sshd(tmp_path / "sshd", options=(f"SetEnv PATH={path} HOME={tmp_path}",)) as sshd:
        wire = OpenSsh(sshd.address)
        assert not wire.run(["rsync", "--version"]).ok
        sync.push(wire, a, b, rsync_from=0)
        assert tree(b) == tree(a)
        wire.close()


def test_a_connection_killed_in_mid_file_costs_only_what_was_on_the_way(wired, desk, tmp_path: Path):
    wire, sshd = wired
    file, data = noise(tmp_path / "big.bin", 20 * MB), tmp_path / "data"
    cutting = Cutting(wire, sshd, 12 * MB, "take")
    outcome = push_data(cutting, [file], data, "", desk)
    assert cutting.cut
    assert (data / "big.bin").read_bytes() == file.read_bytes()
    assert not (data / PARTS).exists()
    assert outcome.n_files == 1
    # what stood in buffers was lost: a channel's window and the pipes
    assert cutting.given < 26 * MB


def test_a_fetch_that_was_cut_goes_on_from_where_it_was(wired, desk, tmp_path: Path):
    wire, sshd = wired
    file = noise(tmp_path / "run" / "export" / "big.bin", 20 * MB)
    cutting = Cutting(wire, sshd, 12 * MB, "give")
    outcome = pull_data(cutting, tmp_path / "run", tmp_path / "here", desk)
    assert cutting.cut
    assert (tmp_path / "here" / "export" / "big.bin").read_bytes() == file.read_bytes()
    assert outcome.n_bytes < 20.6 * MB


def test_the_uplink_is_measured_over_the_wire(wired):
    assert measure_uplink(wired[0], SystemClock()) > MB


# the command line, to this machine


def test_push_puts_data_where_a_training_looks_for_it(cli: Cli):
    path = cli.experiment()
    noise(cli.project / "corpus" / "a.flac", 1000)
    done = cli("push", "corpus", "--config", path, "--to", "sets")
    assert done.code == 0, done
    place = cli.home / "volume" / "data" / "sets"
    assert done.stdout.strip() == str(place)
    assert "1 file, 1.0 kB sent" in done.err
    assert (place / "corpus" / "a.flac").read_bytes() == (cli.project / "corpus" / "a.flac").read_bytes()
    (again,) = cli("push", "corpus", "--config", path, "--to", "sets", "--json").lines
    assert (again["event"], again["files"], again["held"], again["left_out"]) == ("pushed", 0, 1, [])


def test_push_goes_to_the_machine_of_the_newest_run(cli: Cli):
    cli("train", "-c", cli.experiment(), "--local")
    noise(cli.project / "x", 10)
    assert cli("push", "x").code == 0
    assert (cli.home / "volume" / "data" / "x").exists()


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(cli: Cli):
    path = cli.experiment()
    assert cli("push", "x.yaml").code == 2  # no run yet, and no experiment named
    missing = cli("push", "no such", "--config", path)
    assert (missing.code, "no such" in missing.err) == (2, True)
    outside = cli("push", "x.yaml", "--config", path, "--to", "/etc")
    assert (outside.code, "not on the volume" in outside.err) == (2, True)


def test_pull_brings_only_what_is_named_and_again_only_what_changed(cli: Cli, tmp_path: Path):
    script = (
        "cd $PODCTL_RUN_DIR; mkdir -p reports checkpoints/step-1; echo 1 > reports/r; echo c > checkpoints/step-1/c"
    )
    cli("train", "-c", cli.experiment(script), "--local")
    run = cli.run_dir().name
    assert cli("pull", run, "reports", "checkpoints/step-1/c", "--to", tmp_path / "some").code == 0
    assert sorted(tree(tmp_path / "some")) == ["checkpoints/step-1/c", "reports/r"]
    none = cli("pull", run, "nothing", "--to", tmp_path / "some")
    assert (none.code, "nothing" in none.err) == (1, True)
    assert cli("pull", run, "../x").code == 2
    assert cli("pull", run, "--to", tmp_path / "all").code == 0
    (cli.run_dir() / "reports" / "r").write_text("2")
    (again,) = cli("pull", run, "--to", tmp_path / "all", "--json").lines
    assert again["files"] == 1
    assert again["held"] > 3
    assert (tmp_path / "all" / "reports" / "r").read_text() == "2"


def test_sync_sends_the_code_and_starts_nothing(cli: Cli):
    path = cli.experiment()
    done = cli("sync", "--config", path)
    assert done.code == 0, done
    assert (Path(done.stdout.strip()) / "x.yaml").read_text() == path.read_text()
    assert not cli.runs()


def test_a_machine_over_ssh_has_a_home_of_its_own(cli: Cli, tmp_path: Path):
    with laptop(tmp_path) as home, Sshd(tmp_path / "sshd") as sshd:
        env = {"HOME": str(home), "TMPDIR": os.environ["TMPDIR"]}
        ssh = {"host": "127.0.0.1", "port": sshd.port, "user": sshd.user, "key": str(sshd.key)}
        ssh |= {"host_key": sshd.host_key, "disk": "~/disk"}
        path = cli.experiment(provider="ssh", ssh=ssh, volume="~/vol")
        noise(cli.project / "corpus" / "a", 5000)
        done = cli("push", "corpus", "-c", path, "--json", env=env)
        assert done.code == 0, done
        assert json.loads(done.stdout)["to"] == str(sshd.home / "vol" / "data")
        assert (sshd.home / "vol" / "data" / "corpus" / "a").stat().st_size == 5000
