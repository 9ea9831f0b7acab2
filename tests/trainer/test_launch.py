"""How many ranks there are, where, and what their ends come to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import EXIT_ALONE, EXIT_SMALLER, BadRecipe
from trainer.launch import ranks_of, verdict
from trainer.nodes import Nodes, interfaces_for, nodes_in

ROOT = Path(__file__).parents[2]
CLUSTER = {
    "MASTER_ADDR": "10.65.0.2",
    "MASTER_PORT": "29400",
    "NODE_RANK": "1",
    "NUM_NODES": "2",
    "NUM_TRAINERS": "8",
    "HOST_NODE_ADDR": "10.65.0.2:29400",
    "WORLD_SIZE": "16",
}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0}, (0, None)),
        ({0: 75, 1: 75}, (75, None)),
        ({0: 75, 1: EXIT_ALONE}, (75, None)),  # rank 0 left in order, for a newer attempt
        ({0: 2, 1: 2}, (2, None)),  # rank 0 has said so
        ({0: EXIT_ALONE, 1: 2}, (2, 1)),
        ({0: EXIT_ALONE, 1: -9}, (1, 1)),
        ({0: -9, 1: EXIT_ALONE}, (1, 0)),
        ({0: 1, 1: EXIT_ALONE, 2: EXIT_ALONE}, (1, None)),
        ({0: EXIT_ALONE, 1: EXIT_ALONE}, (1, None)),
        ({2: EXIT_ALONE, 3: EXIT_ALONE}, (1, 2)),  # on a node whose first rank speaks for nobody
        ({0: EXIT_ALONE, 1: 1, 2: -11}, (1, 2)),
        ({0: EXIT_SMALLER, 1: EXIT_SMALLER}, (EXIT_SMALLER, None)),  # to be started again
        ({0: EXIT_SMALLER, 1: -9}, (EXIT_SMALLER, None)),  # it did not write its pieces in time
        ({0: EXIT_ALONE, 1: EXIT_SMALLER}, (EXIT_SMALLER, None)),
    ],
)
def test_what_the_ends_of_all_ranks_come_to(codes: dict[int, int], expected: tuple[int, int | None]) -> None:
    assert verdict(codes) == expected


def test_asked_to_stop_before_anything_began_it_ends_as_one_process_would() -> None:
    assert verdict({0: -15, 1: EXIT_ALONE}, [15]) == (143, None)
    assert verdict({0: -9, 1: -15}, [15]) == (1, 0), "nobody asked for that"


def test_auto_is_a_rank_a_gpu() -> None:
    assert ranks_of("auto", None, Nodes()).world == 1
    assert ranks_of("auto", 0, Nodes()).world == 1
    assert ranks_of("auto", 4, Nodes()).world == 4
    assert ranks_of(2, None, Nodes()).world == 2, "on a CPU, as many as are asked for"
    with pytest.raises(BadRecipe, match="4 ranks need a GPU each, and 2 are here"):
        ranks_of(4, 2, Nodes())


def test_a_cluster_says_all_that_is_needed() -> None:
    nodes = nodes_in(CLUSTER)
    ranks = ranks_of("auto", 8, nodes)
    assert (nodes.address, nodes.port) == ("10.65.0.2", 29400)
    assert (ranks.here, ranks.world, ranks.first) == (8, 16, 8)
    only_host = {k: v for k, v in CLUSTER.items() if not k.startswith("MASTER")}
    assert nodes_in(only_host) == nodes
    primary = {k.replace("MASTER", "PRIMARY"): v for k, v in CLUSTER.items() if k != "HOST_NODE_ADDR"}
    assert nodes_in(primary) == nodes
    assert nodes_in({**CLUSTER, "NUM_NODES": "1"}) == Nodes(), "a cluster of one is a machine"


@pytest.mark.parametrize(
    ("without", "said"),
    [(("MASTER_ADDR", "HOST_NODE_ADDR"), "set MASTER_ADDR"), (("NODE_RANK",), "set NODE_RANK")],
)
def test_half_a_cluster_is_refused(without: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        nodes_in({k: v for k, v in CLUSTER.items() if k not in without})
    for name in ("NODE_RANK", "NUM_NODES", "MASTER_PORT"):
        with pytest.raises(BadRecipe, match=name):
            nodes_in({**CLUSTER, name: "many"})
    with pytest.raises(BadRecipe, match="of 2 nodes"):
        nodes_in({**CLUSTER, "NODE_RANK": "2"})


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked of Linux")
def test_one_machine_talks_to_itself() -> None:
    assert interfaces_for(Nodes()) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert interfaces_for(Nodes(2, 0, "127.0.0.1", 29500)) == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }, "the interface that reaches the first node"


def test_a_training_on_one_rank_starts_no_other_process_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, trainer.launch, trainer.nodes\n"
        "assert trainer.launch.count_gpus('cpu') is None\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=30)


def test_a_reader_that_has_had_enough_is_no_accident() -> None:
    """`trainer … | head`."""
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "trainer", "check", "no.yaml", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(argv, stdout=gone, stderr=subprocess.PIPE, env=env, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
