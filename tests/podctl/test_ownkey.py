"""podctl's own SSH key: one, private, the same ever after."""

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from podctl import ownkey, shell
from podctl.errors import MissingHere
from podctl.ownkey import own_key


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "ho me"))
    return tmp_path / "ho me"


def test_it_is_made_once_and_its_public_line_is_its_own(home: Path):
    path, public = own_key()
    assert path == home / "keys" / "podctl_ed25519"
    assert own_key() == (path, public)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    told = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert told.split()[:2] == public.split()[:2]
    assert public.split()[2] == "podctl"
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def test_of_several_that_make_it_at_once_all_get_the_same():
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: own_key(), range(4)))) == 1


def test_without_openssh_it_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ownkey.shell, "found", lambda program: False)
    path, public = own_key()
    monkeypatch.undo()
    told = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert told.split()[:2] == public.split()[:2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_mode_that_is_too_wide_is_narrowed():
    path, _ = own_key()
    path.chmod(0o644)
    own_key()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_is_none_is_named_with_what_to_type(home: Path):
    path, _ = own_key()
    for text in ("", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"):
        path.write_text(text)
        with pytest.raises(MissingHere) as e:
            own_key()
        assert str(path) in e.value.hint
    path.unlink()
    shell.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", str(path)])
    with pytest.raises(MissingHere):
        own_key()


def test_a_state_folder_that_is_a_file_is_said(home: Path):
    home.write_text("")
    with pytest.raises(MissingHere, match="can't be made"):
        own_key()
