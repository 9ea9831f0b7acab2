"""What every test of the trainer may rely on: a local disk of its own."""

import gc
from collections.abc import Iterator

import pytest

from remote.rundir import DISK_ENV


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
