"""Functions run by several gloo ranks at once, forked from a parent that has loaded torch and never used it.

usage: ranks.py WORLD MODULE:FUNCTION ARGUMENT …   → each rank calls FUNCTION(machine, *arguments); rank 0 prints
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from trainer.launch import LISTEN_ENV
from trainer.machine import Machine, start_machine
from trainer.recipe.loop import Loop
from trainer.together import leave

LOOP = {"steps": 1, "step_utts": 1, "precision": "fp64", "threads": 1, "device": "cpu", "wait_s": 60}


def forked(world: int, work: Callable[[Machine], None], **loop: Any) -> list[int]:
    """The wait status of each rank that did the work; the first that fails ends the others."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _child(rank, world, listening, work, loop)
        pids.append(pid)
    listening.close()
    statuses: dict[int, int] = {}
    while len(statuses) < world:
        pid, status = os.wait()
        statuses[pid] = status
    return [statuses[p] for p in pids]


def _child(rank: int, world: int, listening: socket.socket, work: Callable[[Machine], None], loop: Any) -> None:
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listening.getsockname()[1]),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        if rank == 0:
            os.environ[LISTEN_ENV] = str(listening.fileno())
        work(start_machine(Loop.model_validate({**LOOP, **loop})))
        leave()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(argv: list[str]) -> int:
    world, name, *arguments = argv
    module, function = name.split(":")
    work = getattr(import_module(module), function)
    return int(any(forked(int(world), lambda machine: work(machine, *arguments))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
