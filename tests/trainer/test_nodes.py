"""Two machines that share a volume and a network train what one does, started as a cluster's environment says."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.cluster import two_nodes
from support.netpod import why_not
from support.pod import wait_until
from support.speech import make_corpus, recipe_dict, write_experiment
from support.steps import furthest
from support.trainings import command, environment, weights

from remote.rundir import RunDir
from trainer.checkpoint import complete_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, n in (("train", 24), ("dev", 7), ("test", 5)):
        make_corpus(folder, n, seed=n, name=name)
    return folder


def experiment(tmp_path: Path, corpus: Path, **loop: object) -> Path:
    loop = {
        "precision": "fp64",
        "steps": 4,
        "step_utts": 7,
        "ranks": 1,
        "save_every_steps": 1,
        "keep_last": 999,
        **loop,
    }
    how = {"loop": loop, "eval": {"every_steps": 1000}, "log": {"every_steps": 1}}
    return write_experiment(tmp_path / "a.yaml", recipe_dict(corpus, **how))


def started(tmp_path: Path, file: Path, nodes: list[tuple[list[str], str]]) -> list[subprocess.Popen[bytes]]:
    """The same command on each node, as an Instant Cluster's environment has it."""
    found = []
    for n, (inside, _) in enumerate(nodes):
        address = nodes[0][1]
        env = environment(tmp_path) | {
            "MASTER_ADDR": address,
            "MASTER_PORT": "29511",
            "PRIMARY_ADDR": address,
            "PRIMARY_PORT": "29511",
            "HOST_NODE_ADDR": f"{address}:29511",
            "NODE_RANK": str(n),
            "NUM_NODES": "2",
            "WORLD_SIZE": "2",
        }
        with (tmp_path / f"node{n}.log").open("w") as log:
            argv = [*inside, *command("train", file, "--run-dir", tmp_path / "run")]
            found.append(subprocess.Popen(argv, env=env, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True))
    return found


def ended(nodes: list[subprocess.Popen[bytes]]) -> None:
    for node in nodes:
        try:
            os.killpg(node.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        node.wait(10)


def test_two_nodes_train_what_one_machine_trains(corpus: Path, tmp_path: Path) -> None:
    file = experiment(tmp_path, corpus)
    subprocess.run(
        command("train", file, "--run-dir", tmp_path / "one"),
        env=environment(tmp_path), check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    with two_nodes() as nodes:
        both = started(tmp_path, file, nodes)
        try:
            codes = [node.wait(120) for node in both]
        finally:
            ended(both)
    logs = [(tmp_path / f"node{n}.log").read_text() for n in (0, 1)]
    assert codes == [0, 0], logs
    assert "2 rank(s)" in logs[0]
    assert logs[1] == "", "the first node alone tells"
    assert furthest(weights(tmp_path / "one", 4), weights(tmp_path / "run", 4)) < 1e-9


@pytest.mark.parametrize("node", [0, 1])
def test_a_stop_on_one_node_stops_and_saves_both(corpus: Path, tmp_path: Path, node: int) -> None:
    run = RunDir(tmp_path / "run")
    with two_nodes() as nodes:
        both = started(tmp_path, experiment(tmp_path, corpus, steps=400), nodes)
        try:
            wait_until(lambda: len(complete_checkpoints(run.checkpoints)) > 2, "three steps", 120)
            both[node].send_signal(signal.SIGTERM)
            codes = [n.wait(60) for n in both]
        finally:
            ended(both)
    logs = [(tmp_path / f"node{n}.log").read_text() for n in (0, 1)]
    assert codes == [75, 75], logs
    assert logs[0].count("; saved") == 1


def test_a_node_that_is_gone_ends_the_other_within_seconds(corpus: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with two_nodes() as nodes:
        both = started(tmp_path, experiment(tmp_path, corpus, steps=400), nodes)
        try:
            wait_until(lambda: len(complete_checkpoints(run.checkpoints)) > 2, "three steps", 120)
            os.killpg(both[1].pid, signal.SIGKILL)
            assert both[0].wait(30) == 1
        finally:
            ended(both)
    assert "rank 1 of 2 is gone" in (tmp_path / "node0.log").read_text()
