"""Data arrives whole or not at all, and what arrived before a cut is not sent twice."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from support.pythons import installed
from support.wires import LocalWire

from podctl.courier import DiskFull
from podctl.errors import BadInput, PodctlError, Unreachable
from podctl.parcels import Item, estimate, gather, make_plan, place_for
from podctl.pods import Pod
from podctl.transfer import pull_data, push_data
from podctl.ui import Ui
from podctl.uplink import Desk, measure_uplink
from remote.clock import SystemClock
from remote.holdings import HASHES, PARTS, Hashes

MB = 1_000_000


class NoWaiting(SystemClock):
    def sleep(self, seconds: float) -> None:
        self.slept = getattr(self, "slept", 0.0) + seconds


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "home"))


@pytest.fixture
def wire(tmp_path: Path) -> LocalWire:
    return LocalWire(tmp_path / "w", rsync=False)


@pytest.fixture
def desk() -> Desk:
    return Desk(Ui(), NoWaiting(), yes=True)


def noise(path: Path, n: int, seed: int = 0, age_s: float = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(n))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def contents(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != HASHES)
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_a_folder_arrives_under_its_name_in_the_folder_that_was_named(wire, desk, tmp_path: Path):
    for n in range(30):
        noise(tmp_path / "corpus" / f"d{n % 3}" / f"it's {n}\n.flac", 100 + n, n)
    (tmp_path / "corpus" / "to a file").symlink_to(tmp_path / "corpus" / "d0" / "it's 0\n.flac")
    (tmp_path / "corpus" / "up").symlink_to(tmp_path / "corpus")
    data = tmp_path / "data"
    outcome = push_data(wire, [tmp_path / "corpus"], data, "sets", desk)
    assert outcome.n_files == 31
    there = contents(data / "sets" / "corpus")
    assert there == {n: d for n, d in contents(tmp_path / "corpus").items() if not n.startswith("up/")}
    assert not (data / "sets" / "corpus" / "to a file").is_symlink()
    assert not (data / PARTS).exists()
    assert len(wire.commands) == 2


def test_what_is_there_is_not_sent_again_and_is_hashed_once(wire, desk, tmp_path: Path):
    file, data = noise(tmp_path / "x.bin", 2 * MB), tmp_path / "data"
    push_data(wire, [file], data, "", desk)
    known = (data / HASHES).read_bytes()
    os.utime(file, (1, 1))  # another time is no other content
    sent = wire.sent
    outcome = push_data(wire, [file], data, "", desk)
    assert (outcome.n_files, outcome.n_held, outcome.n_bytes) == (0, 1, 0)
    assert wire.sent - sent < 1000
    assert (data / HASHES).read_bytes() == known


def test_another_content_of_the_same_size_is_sent(wire, desk, tmp_path: Path):
    file, data = noise(tmp_path / "x.bin", 1000), tmp_path / "data"
    push_data(wire, [file], data, "", desk)
    noise(data / "x.bin", 1000, seed=1, age_s=50)
    push_data(wire, [file], data, "", desk)
    assert (data / "x.bin").read_bytes() == file.read_bytes()


def test_a_cut_in_the_middle_of_a_file_costs_only_what_was_on_the_way(wire, desk, tmp_path: Path):
    small, file, data = noise(tmp_path / "a.bin", 1000), noise(tmp_path / "big.bin", 20 * MB), tmp_path / "data"
    wire.cut_after = 12 * MB
    outcome = push_data(wire, [small, file], data, "", desk)
    assert contents(data) == {"a.bin": small.read_bytes(), "big.bin": file.read_bytes()}
    assert wire.sent < 21 * MB
    assert outcome.n_files == 2
    assert desk.clock.slept


def test_a_link_that_stays_cut_is_told_and_the_next_time_goes_on_from_there(wire, desk, tmp_path: Path):
    file, data = noise(tmp_path / "big.bin", 5 * MB), tmp_path / "data"

    class Dead(LocalWire):
        def stream(self, argv, *, stdin=None):
            if len(self.commands) > 2:
                raise Unreachable("no route")
            return super().stream(argv, stdin=stdin)

    dead = Dead(tmp_path / "dead", rsync=False)
    dead.cut_after = 3 * MB
    dead.commands.append(["true"])
    with pytest.raises(Unreachable, match="no route"):
        push_data(dead, [file], data, "", desk)
    assert not (data / "big.bin").exists()
    (part,) = (data / PARTS).iterdir()
    assert part.stat().st_size > 2 * MB
    push_data(wire, [file], data, "", desk)
    assert (data / "big.bin").read_bytes() == file.read_bytes()
    assert wire.sent < 3.1 * MB


def test_a_byte_that_went_bad_over_there_is_found_and_the_file_sent_anew(wire, desk, tmp_path: Path):
    file, data = noise(tmp_path / "big.bin", 5 * MB), tmp_path / "data"
    about = file.stat()
    from remote.holdings import part_name

    part = data / PARTS / part_name("big.bin", about.st_size, about.st_mtime_ns)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" + file.read_bytes()[1 : 3 * MB])
    outcome = push_data(wire, [file], data, "", desk)
    assert (data / "big.bin").read_bytes() == file.read_bytes()
    assert outcome.n_files == 1
    assert wire.sent > 7 * MB


def test_a_hash_that_is_wrong_twice_is_an_error_that_names_the_file(desk, tmp_path: Path):
    file, data = noise(tmp_path / "big.bin", 1 * MB), tmp_path / "data"

    class Bad(LocalWire):
        def stream(self, argv, *, stdin=None):
            def broken():
                for n, piece in enumerate(stdin):
                    yield piece[:-1] + bytes([piece[-1] ^ 1]) if n == 3 and "take" in argv else piece

            return super().stream(argv, stdin=broken())

    with pytest.raises(PodctlError, match=r"big\.bin does not arrive"):
        push_data(Bad(tmp_path / "w", rsync=False), [file], data, "", desk)
    assert contents(data) == {}


def test_a_file_that_changes_while_it_is_sent_is_told_and_left_out(wire, desk, tmp_path: Path, capsys):
    kept, file, data = noise(tmp_path / "a.bin", 10), noise(tmp_path / "big.bin", 4 * MB), tmp_path / "data"

    class Meddler(LocalWire):
        def stream(self, argv, *, stdin=None):
            def meddled():
                for n, piece in enumerate(stdin):
                    if n == 8 and "take" in argv:
                        with file.open("ab") as f:
                            f.write(b"more")
                    yield piece

            return super().stream(argv, stdin=meddled())

    outcome = push_data(Meddler(tmp_path / "m", rsync=False), [kept, file], data, "", desk)
    assert outcome.left_out == ["big.bin"]
    assert contents(data) == {"a.bin": kept.read_bytes()}
    assert "big.bin was left out" in capsys.readouterr().err


def test_a_full_disk_there_is_a_sentence_and_the_rest_goes_on_from_where_it_was(desk, tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        file, wire = noise(tmp_path / "big.bin", 5 * MB), LocalWire(tmp_path / "w", rsync=False)
        with pytest.raises(DiskFull, match=r"full.*0 of 1 files arrived whole"):
            push_data(wire, [file], folder, "", desk)
        assert contents(folder).keys() != {"big.bin"}
        subprocess.run(["mount", "-o", "remount,size=9m", folder], check=True)
        sent = wire.sent
        push_data(wire, [file], folder, "", desk)
        assert contents(folder) == {"big.bin": file.read_bytes()}
        assert wire.sent - sent < 4 * MB
    finally:
        subprocess.run(["umount", folder], check=True)


def test_df_that_finds_too_little_room_is_told_before_anything_is_sent(tmp_path: Path, capsys):
    class Full(LocalWire):
        def stream(self, argv, *, stdin=None):
            return super().stream(["sh", "-c", '"$@" | sed "s/free.: [0-9]*/free\\": 10/"', "sh", *argv], stdin=stdin)

    file, wire = noise(tmp_path / "x", 5 * MB), Full(tmp_path / "f", rsync=False)
    with pytest.raises(BadInput, match="nobody can be asked"):
        push_data(wire, [file], tmp_path / "data", "", Desk(Ui(), SystemClock()))
    assert "df over there finds 10 B free" in capsys.readouterr().err
    assert not (tmp_path / "data" / "x").exists()


def test_a_large_upload_is_measured_priced_and_asked_about_before_it_begins(wire, tmp_path: Path, capsys):
    file = tmp_path / "large"
    with file.open("wb") as f:
        f.truncate(250 * MB)
    for ui in (Ui(), Ui(as_json=True)):
        with pytest.raises(BadInput, match="nobody can be asked"):
            push_data(wire, [file], tmp_path / "data", "", Desk(ui, SystemClock()), usd_per_hour=900.0)
    out, err = capsys.readouterr()
    assert "250.0 MB in 1 file at about" in err
    assert "; the machine costs $" in err
    (told,) = map(json.loads, out.splitlines())
    assert (told["event"], told["bytes"], told["files"]) == ("estimate", 250 * MB, 1)
    assert told["usd"] > 0
    assert wire.sent < 9 * MB  # two probes


def test_pull_brings_what_lacks_and_goes_on_after_a_cut(wire, desk, tmp_path: Path):
    there, here = tmp_path / "there", tmp_path / "here"
    noise(there / "a" / "big.bin", 6 * MB)
    noise(there / "b", 10)
    (there / "l").symlink_to("b")
    noise(here / "mine", 10, 7)

    class Cut(LocalWire):
        def stream(self, argv, *, stdin=None):
            if "give" in argv and not any("give" in a for a in self.commands):
                self.commands.append(argv)
                return super().stream(["sh", "-c", '"$@" | head -c 4000000; kill -9 $$', "sh", *argv], stdin=stdin)
            return super().stream(argv, stdin=stdin)

    outcome = pull_data(Cut(tmp_path / "c", rsync=False), there, here, desk)
    assert (here / "a" / "big.bin").read_bytes() == (there / "a" / "big.bin").read_bytes()
    assert (here / "l").is_symlink()
    assert (here / "mine").exists()
    assert not (here / PARTS).exists()
    assert outcome.n_bytes < 6.1 * MB
    again = pull_data(wire, there, here, desk)
    assert (again.n_files, again.n_bytes, again.n_held) == (0, 0, 2)
    with pytest.raises(FileNotFoundError):
        pull_data(wire, there / "nothing", here, desk)


def test_pull_takes_the_named_alone_and_leaves_out_what_it_is_told_to(wire, desk, tmp_path: Path):
    there, here = tmp_path / "there", tmp_path / "here"
    for name in ("a/1", "a/2", "b/1", "c"):
        noise(there / name, 10)
    pull_data(wire, there, here, desk, names=["a", "c"])
    assert sorted(contents(here)) == ["a/1", "a/2", "c"]
    pull_data(wire, there, tmp_path / "rest", desk, leave=["a", "c"])
    assert sorted(contents(tmp_path / "rest")) == ["b/1"]


def test_an_estimate_says_how_long_and_what_the_machine_costs_meanwhile():
    told = estimate(12_300_000_000, 840, 2_400_000, 0.4917)
    assert told == "12.3 GB in 840 files at about 2.4 MB/s is 1 h 25 m; the machine costs $0.70 meanwhile"
    assert estimate(10, 1, 0, 0) == "10 B in 1 file at about 0 B/s is 10 s"


def test_the_uplink_is_measured_with_four_megabytes_at_most(wire):
    assert measure_uplink(wire, SystemClock()) > MB
    assert wire.sent <= 4.2 * MB


def test_a_plan_sends_what_is_missing_and_ends_what_was_begun():
    items = [Item(n, Path(n), 10) for n in ("a", "b", "c", "d")]
    there = {"files": {"a": [10, 0, "A"], "b": [10, 0, "X"], "c": [9, 0, ""]}, "parts": {"d": 4, "b": 11}}
    asked = []
    plan = make_plan(items, there, lambda item: asked.append(item.name) or item.name.upper())
    assert [i.name for i in plan.send] == ["d", "b", "c"]
    assert (plan.offsets, plan.n_held, plan.n_bytes) == ({"d": 4}, 1, 26)
    assert asked == ["a", "b"]  # what has another size need not be read


def test_sources_that_are_not_there_or_meet_under_one_name_are_told_at_once(tmp_path: Path):
    noise(tmp_path / "a" / "x", 1)
    noise(tmp_path / "b" / "x", 1)
    with pytest.raises(BadInput) as told:
        gather([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "no"])
    assert len(told.value.mistakes) == 2


def test_data_goes_below_data_or_elsewhere_on_the_volume_and_nowhere_else():
    pod = Pod("ssh", "i", "n", "running", 0, Path("/vol"), Path("/disk"))
    assert place_for(pod, "") == (Path("/vol/data"), "")
    assert place_for(pod, "sets/a") == (Path("/vol/data"), "sets/a")
    assert place_for(pod, "/vol/cache/x") == (Path("/vol"), "cache/x")
    for outside in ("/etc", "../../x", "/volume"):
        with pytest.raises(BadInput, match="not on the volume"):
            place_for(pod, outside)


def test_a_hash_is_remembered_until_the_file_changes_and_never_for_a_young_one(tmp_path: Path):
    file, cache = noise(tmp_path / "f", 100), tmp_path / "cache"
    first = Hashes(str(cache)).of(str(file), "f")
    with cache.open("ab") as f:
        f.write(b'["torn')
    assert Hashes(str(cache)).known("f", file.stat()) == first
    noise(file, 100, 1, age_s=50)
    assert Hashes(str(cache)).of(str(file), "f") != first
    young = noise(tmp_path / "young", 1, age_s=0)
    Hashes(str(cache)).of(str(young), "young")
    assert Hashes(str(cache)).known("young", young.stat()) == ""


def test_progress_is_a_line_each_tenth_without_a_terminal_and_events_in_json(tmp_path: Path, capsys):
    from podctl.progress import Progress

    for as_json in (False, True):
        progress = Progress(Ui(as_json=as_json), SystemClock(), "sent", 1000)
        for done in range(0, 1001, 25):
            progress.at(done)
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 9
    assert [json.loads(line)["bytes"] for line in out.splitlines()] == list(range(100, 1000, 100))


@pytest.mark.parametrize("version", ["3.6", "3.8"])
def test_data_travels_both_ways_where_only_an_old_python_is(tmp_path: Path, desk: Desk, version: str):
    """Some machines' python3 is years old, and the newer one that runs are started with has another name."""
    python = installed(version)
    if not python:
        pytest.skip(f"there is no Python {version} here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(python)
    wire = LocalWire(tmp_path / "w", path=f"{tmp_path}/bin:/usr/bin:/bin", rsync=False)
    wire.env["LC_ALL"] = "C"
    assert wire.run(["python3", "-V"]).stdout.startswith(f"Python {version}.")
    for n in range(5):
        noise(tmp_path / "corpus" / f"é {n}\n.flac", 100_000 + n, n)
    push_data(wire, [tmp_path / "corpus"], tmp_path / "data", "", desk)
    assert contents(tmp_path / "data" / "corpus") == contents(tmp_path / "corpus")
    again = push_data(wire, [tmp_path / "corpus"], tmp_path / "data", "", desk)
    assert again is not None
    assert again.n_bytes == 0
    pull_data(wire, tmp_path / "data" / "corpus", tmp_path / "back", desk)
    assert contents(tmp_path / "back") == contents(tmp_path / "corpus")
