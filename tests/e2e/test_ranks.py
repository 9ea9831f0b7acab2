"""Two ranks under podctl and the pod's runner: stopped by `podctl stop`, and on from there by the same command."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from support.podctl_cli import Cli, wait_for
from support.speech import make_corpus, recipe_dict

STEPS = 400


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_run_of_two_ranks_is_stopped_with_everything_saved_and_resumed(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for name, n in (("train", 24), ("dev", 5), ("test", 5)):
        make_corpus(corpus, n, seed=n, name=name)
    loop = {"ranks": 2, "steps": STEPS, "step_utts": 7}
    train = recipe_dict(corpus, loop=loop, eval={"every_steps": 1000}, log={"every_steps": 1})
    cli = Cli(tmp_path)
    cli.env["PODCTL_PYTHON"] = sys.executable
    file = cli.project / "ranks.yaml"
    file.write_text(yaml.safe_dump({"name": "ranks", "pod": {"max_hours": 0.2}, "train": train}))
    try:
        started = cli("train", "-c", file, "--local", "--detach", timeout=120)
        assert started.code == 0, started
        log = cli.run_dir() / "log"
        wait_for(lambda: b"step 3/" in log.read_bytes(), 120)
        cli("stop", timeout=120)
        said = log.read_text()
        assert cli.state() == "stopped", said
        assert said.count("; saved") == 1, said
        assert json.loads((cli.run_dir() / "status.json").read_text())["exit_code"] == 75
        again = cli("train", "-c", file, "--local", "--detach", timeout=120)
        assert again.code == 0, again
        wait_for(lambda: "resumed from step" in log.read_text(), 120)
        cli("stop", timeout=120)
        assert len(cli.runs()) == 1
    finally:
        cli("stop", timeout=120)
        cli.close()
