from pathlib import Path

import pytest
from support.podctl_cli import Cli


@pytest.fixture
def cli(tmp_path: Path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()
