"""Archives are unpacked once, whole, and nowhere but where they belong."""

import errno
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from trainer.data.archives import archives_in, unpack
from trainer.errors import BadData, NoSpace

FILES = {f"audio/u{i}.flac": bytes([i]) * (1000 + i) for i in range(12)}


def packed(path: Path, files: dict[str, bytes] = FILES) -> Path:
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for name, data in files.items():
                z.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


def inside(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".unpacked")
    }


KINDS = ("a.zip", "a.tar", "a.tar.gz", "a.tgz")


@pytest.mark.parametrize("name", KINDS)
def test_what_was_packed_is_there(tmp_path: Path, name: str) -> None:
    folder = unpack(packed(tmp_path / name), tmp_path / "to")
    assert folder == tmp_path / "to" / "a"
    assert inside(folder) == FILES
    assert os.listdir(tmp_path / "to") == ["a"]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_archive_is_not_unpacked_again_and_another_one_is(tmp_path: Path, name: str) -> None:
    archive = packed(tmp_path / name)
    seen: list[int] = []
    folder = unpack(archive, tmp_path / "to", seen.append)
    unpack(archive, tmp_path / "to", seen.append)
    assert len(seen) == len(FILES)
    other = {"audio/new.flac": b"new"}
    packed(archive, other)
    unpack(archive, tmp_path / "to", seen.append)
    assert inside(folder) == other, "and nothing of before is left"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("after", [1, 5, len(FILES)])
def test_killed_on_the_way_it_is_not_there_and_goes_on(tmp_path: Path, name: str, after: int) -> None:
    archive = packed(tmp_path / name)

    def kill(n: int) -> None:
        if n == after:
            raise Killed

    with pytest.raises(Killed):
        unpack(archive, tmp_path / "to", kill)
    assert not (tmp_path / "to" / "a").exists()
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "to").rglob("*.flac")}
    assert len(written) == after
    folder = unpack(archive, tmp_path / "to")
    assert inside(folder) == FILES
    again = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.flac")}
    assert {n: again[n] for n in written} == written, "what was whole is not written twice"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bad", ["../out.flac", "/tmp/out.flac", "audio/../../out.flac"])
def test_a_member_that_leaves_the_folder_is_refused_and_nothing_is_unpacked(
    tmp_path: Path, name: str, bad: str
) -> None:
    archive = packed(tmp_path / name, {**FILES, bad: b"stolen"})
    with pytest.raises(BadData, match="does not stay below"):
        unpack(archive, tmp_path / "deep" / "to")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [name]
    assert not Path("/tmp/out.flac").exists()


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as t:
            info = tarfile.TarInfo("audio/u.flac")
            info.type, info.linkname = kind, "/etc/passwd"
            t.addfile(info)
        with pytest.raises(BadData, match=r"is a link|is no plain file"):
            unpack(tmp_path / "a.tar", tmp_path / "to")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as z:
        link = zipfile.ZipInfo("audio/u.flac")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    with pytest.raises(BadData, match="is a link"):
        unpack(tmp_path / "b.zip", tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, name: str) -> None:
    archive = packed(tmp_path / name)
    whole = archive.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) * 9 // 10):
        archive.write_bytes(whole[:cut])
        if name == "a.tar" and cut == len(whole) * 9 // 10:
            cut = len(FILES["audio/u0.flac"]) // 512 * 512 + 1024  # between two members: tarfile takes that for an end
            archive.write_bytes(whole[:cut])
        with pytest.raises(BadData) as e:
            unpack(archive, tmp_path / "to")
        assert "\n" not in e.value.message
        assert e.value.hint
        assert not list((tmp_path / "to").iterdir())


def test_a_damaged_member_is_one_sentence(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    at = data.find(b"u6.flac") + 8
    data[at : at + 4] = bytes(255 - b for b in data[at : at + 4])
    archive.write_bytes(data)
    with pytest.raises(BadData, match=r"a\.zip is damaged"):
        unpack(archive, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_a_disk_that_is_full_says_so_before_it_is_written(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip")
    with pytest.raises(NoSpace, match="GB are free"):
        unpack(archive, tmp_path / "to", free=lambda folder: (64 << 20) + 5000)
    assert not (tmp_path / "to" / "a").exists()
    assert inside(unpack(archive, tmp_path / "to", free=lambda folder: (64 << 20) + 50_000)) == FILES


def test_a_disk_that_fills_up_leaves_what_the_next_time_needs(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar.gz")

    def full(n: int) -> None:
        if n == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        unpack(archive, tmp_path / "to", full)
    assert not (tmp_path / "to" / "a").exists()
    assert inside(unpack(archive, tmp_path / "to")) == FILES


def test_a_member_that_is_there_twice_is_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as t:
        for data in (b"one", b"two"):
            info = tarfile.TarInfo("audio/u.flac")
            info.size = 3
            t.addfile(info, io.BytesIO(data))
    with pytest.raises(BadData, match="twice"):
        unpack(tmp_path / "a.tar", tmp_path / "to")


def test_two_archives_of_one_name_are_named(tmp_path: Path) -> None:
    packed(tmp_path / "a.zip")
    packed(tmp_path / "a.tar")
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(BadData, match=r"a\.tar and .*a\.zip"):
        archives_in(tmp_path)


def test_unkind_names_are_only_names(tmp_path: Path) -> None:
    files = {"a'; rm -rf *": b"1", "audio/ä ö\n.flac": b"2", "-rf/--": b"3"}
    archive = packed(tmp_path / "audio part '0.tar", files)
    assert inside(unpack(archive, tmp_path / "to")) == dict(sorted(files.items()))
