from pathlib import Path

import pytest
from support.cloud import Api, Laptop
from support.openapi import OpenApi

from podctl.sim.records import Timing
from podctl.sim.sim import Sim

QUICK = Timing(provision_s=0.02, start_s=0.02, address_s=0.02, stop_grace_s=0.2)


@pytest.fixture(scope="session")
def spec() -> OpenApi:
    return OpenApi.runpod()


@pytest.fixture
def sim(tmp_path: Path):
    """A cloud whose pods are a state and a bill."""
    with Sim(tmp_path / "sim", backend="none") as sim:
        yield sim


@pytest.fixture
def api(sim: Sim) -> Api:
    return Api(sim)


@pytest.fixture
def real(tmp_path: Path):
    """A cloud whose pods run."""
    with Sim(tmp_path / "sim", timing=QUICK) as sim:
        yield sim


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)
