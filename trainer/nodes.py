"""Several machines as one training: what their environment says, and the network that they reach each other by.

RunPod's Instant Clusters set MASTER_ADDR, MASTER_PORT, NODE_RANK, NUM_NODES and NUM_TRAINERS on each node (the first
two as PRIMARY_… as well); WORLD_SIZE is the number of all GPUs there, HOST_NODE_ADDR holds address and port at once.
"""

import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import BadRecipe

CLUSTER_INTERFACE = "ens1"  # between the nodes of an Instant Cluster; NCCL takes another one by itself (seen 2026-08)
PORT = 29500  # where nothing else is said, as torchrun's


@dataclass(frozen=True)
class Nodes:
    """The machines of one training. `this` counts from 0; `trainers`: GPUs a node, 0 where nobody says."""

    count: int = 1
    this: int = 0
    address: str = "127.0.0.1"  # of the first
    port: int = 0
    trainers: int = 0


def nodes_in(env: Mapping[str, str]) -> Nodes:
    """What an environment says. Raises BadRecipe where it says only half of it."""
    count = _number(env, "NUM_NODES", 1)
    if count <= 1:
        return Nodes()
    host, _, port = env.get("HOST_NODE_ADDR", "").partition(":")
    address = env.get("MASTER_ADDR") or env.get("PRIMARY_ADDR") or host
    if not address:
        raise BadRecipe.one("NUM_NODES", f"is {count}, and nothing says where the first node is: set MASTER_ADDR")
    if "NODE_RANK" not in env:
        raise BadRecipe.one("NUM_NODES", f"is {count}, and nothing says which of them this is: set NODE_RANK")
    this, trainers = _number(env, "NODE_RANK", 0), _number(env, "NUM_TRAINERS", 0)
    if not 0 <= this < count:
        raise BadRecipe.one("NODE_RANK", f"is {this}, of {count} nodes that count from 0")
    known = env.get("MASTER_PORT") or env.get("PRIMARY_PORT") or port or str(PORT)
    return Nodes(count, this, address, _number({"MASTER_PORT": known}, "MASTER_PORT", PORT), trainers)


def interfaces_for(nodes: Nodes) -> dict[str, str]:
    """Which network interface gloo and NCCL are to use, as far as that is known; what the user sets goes before."""
    if nodes.count == 1:
        return {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    there = [name for _, name in socket.if_nameindex()]
    reaching = CLUSTER_INTERFACE if CLUSTER_INTERFACE in there else _reaching(nodes.address, nodes.port)
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), reaching) if reaching else {}


def _number(env: Mapping[str, str], name: str, otherwise: int) -> int:
    text = env.get(name) or str(otherwise)
    if not text.isdigit():
        raise BadRecipe.one(name, f"{text!r} in the environment is not a number")
    return int(text)


def _reaching(address: str, port: int) -> str:
    """The interface by which packets to an address leave; "" where that can't be told. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((address, port))
            own = s.getsockname()[0]
            return next((name for _, name in socket.if_nameindex() if _address_of(s, name) == own), "")
    except OSError:
        return ""


def _address_of(s: socket.socket, interface: str) -> str:
    if sys.platform != "linux":
        return ""
    import fcntl

    try:
        answer = fcntl.ioctl(s.fileno(), 0x8915, struct.pack("256s", interface.encode()[:15]))  # SIOCGIFADDR
    except OSError:
        return ""  # it has none
    return socket.inet_ntoa(answer[20:24])
