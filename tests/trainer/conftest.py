"""What every test of the trainer may rely on: a place of its own, and a small corpus to train on."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.speech import make_corpus

from remote.rundir import DISK_ENV, EPOCH_ENV


@pytest.fixture(autouse=True, scope="session")
def local_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DISK_ENV, str(tmp_path_factory.mktemp("disk")))
        yield


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """What is there already is not looked through again, each time that memory is freed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches of its own, no volume, no runner; and a training that took the signals gives them back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PODCTL_VOLUME", EPOCH_ENV):
        monkeypatch.delenv(name, raising=False)
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twenty utterances to train on, four to choose by, four to test with."""
    for name, n in (("train", 20), ("dev", 4), ("test", 4)):
        make_corpus(tmp_path / "corpus", n, seed=n, name=name)
    return tmp_path / "corpus"
