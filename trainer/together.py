"""The ranks of one training: how they find each other, and what is said when one of them does not come any more.

Whatever waits for other ranks waits inside `Ranks.together`. A rank that is gone closes its connections, which gloo
notices at once; one that is stuck is given up after `loop.wait_s`. Those that are left sign in the store: who did not
sign did not come.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from trainer.errors import RankLost, TrainerError
from trainer.launch import LISTEN_ENV

JOIN_S = 600.0  # for all ranks to start: other nodes may come up minutes later
SIGN_S = 3.0  # for the ranks that are left, to say so
LOOK_S = 1.0  # between two looks whether another rank was asked to stop
BROKEN = (
    "closed",
    "reset",
    "Timed out",
    "timed out",
    "timeout",
    "Broken pipe",
    "refused",
    "gloo",
    "NCCL",
    "recv",
    "Store",
)
AGAIN = "run the same command again: it goes on from the last checkpoint"


@dataclass
class Ranks:
    """This process among all of a training."""

    rank: int
    world: int
    control: Any  # the gloo group over which counts and flags travel: no GPU waits for them
    store: Any
    wait_s: float
    is_given_up: Callable[[], bool] = lambda: False  # all ranks leave, from a thread (trainer/pieces.py)
    _looked_at: float = 0.0
    _told: bool = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Something that needs every rank. Raises RankLost, which names those that did not come."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as e:
            if isinstance(e, torch.OutOfMemoryError) or not _is_broken(e):
                raise
            if self._quietly(self.is_given_up):
                time.sleep(3600)
            raise RankLost(self._lost(time.monotonic() - began), AGAIN) from e

    def any_asked(self, asked: bool) -> bool:
        """Whether some rank was asked to stop, where this one's answer is known; looks once a second."""
        if asked and not self._told:
            self._told = True
            self._quietly(lambda: self.store.set("asked", "1"))
        if not self._told and time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            self._told = bool(self._quietly(lambda: self.store.check(["asked"])))
        return self._told

    def _lost(self, waited_s: float) -> str:
        missing = self._unsigned()
        if not missing:
            return "the connection between the ranks broke"
        who = f"rank {missing[0]} of {self.world}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        if waited_s >= 0.9 * self.wait_s:
            return f"{who} did not come within {self.wait_s:g} s (loop.wait_s)"
        return f"{who} {'is' if len(missing) == 1 else 'are'} gone"

    def _unsigned(self) -> list[int]:
        """Ranks that don't say that they are left too. Rank 0 holds the store: it goes with it."""
        try:
            self.store.set_timeout(timedelta(seconds=SIGN_S))
            self.store.set(f"left/{self.rank}", "1")
            end = time.monotonic() + SIGN_S
            while True:
                missing = [r for r in range(self.world) if not self.store.check([f"left/{r}"])]
                if not missing or time.monotonic() >= end:
                    return missing
                time.sleep(0.05)
        except RuntimeError:
            return [0]

    @staticmethod
    def _quietly(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError:
            return None  # the next collective says what is the matter


def join(backend: str, wait_s: float) -> Ranks:
    """Finds the other ranks, as the environment says. Raises TrainerError where not all of them answer."""
    env = os.environ
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    is_host = rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listening = env.pop(LISTEN_ENV, None)
    try:
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            world,
            is_host,
            timeout=timedelta(seconds=JOIN_S),
            wait_for_workers=False,
            master_listen_fd=int(listening) if listening and is_host else None,
        )
        store = c10d.PrefixStore(f"trainer/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        store.set(f"here/{rank}", "1")
        try:
            store.wait([f"here/{r}" for r in range(world)])
        except RuntimeError:
            missing = [r for r in range(world) if not store.check([f"here/{r}"])]
            raise TrainerError(
                f"of {world} ranks, {', '.join(map(str, missing))} did not come within {JOIN_S:g} s",
                "start the trainer on every node, with the same NUM_NODES and one NODE_RANK each",
            ) from None
        limit = timedelta(seconds=wait_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    except RuntimeError as e:
        raise TrainerError(
            f"rank {rank} can't reach the others at {address}:{port}: {str(e).splitlines()[0]}",
            "look at the first node's log, and at MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME",
        ) from e
    return Ranks(rank, world, control, c10d.PrefixStore("lost", store), wait_s)


def leave() -> None:
    """At the end: connections are closed in order."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _is_broken(e: RuntimeError) -> bool:
    return isinstance(e, dist.DistError) or any(word in str(e) for word in BROKEN)
