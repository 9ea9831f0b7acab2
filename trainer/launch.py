"""One process a rank, started, stopped and watched by the process that the user started; no torch in here.

With one rank there is nothing to do. With several, each is this same program again, with its place in the environment
that torch's own launcher sets too. torchrun itself is not used: it kills ranks that still save 30 s after they were
asked to stop, and makes 1 of every exit code (torch 2.13).
"""

import os
import signal
import site
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import EXIT_ALONE, EXIT_SMALLER, BadRecipe
from trainer.nodes import Nodes, interfaces_for

LISTEN_ENV = "TRAINER_LISTEN_FD"  # rank 0's: the socket at MASTER_PORT, bound here, so that nobody else can take it
ALIVE_ENV = "TRAINER_ALIVE_FD"  # the end of a pipe that is closed when the launcher is gone, however it went
SAVED = 75
LOOK_S = 0.05
PIECES_S = 400.0  # for ranks that write what they hold, because another's memory ran out
MOST_STARTS = 6
LAST_LINES = 20  # of a rank that failed
ENDING_S = 15.0  # for ranks whose fellow died, to say so and leave
SAVING_S = 120.0  # for ranks whose launcher died, or whose fellow left in order


@dataclass(frozen=True)
class Ranks:
    """How many processes run on this machine, and which of all they are."""

    here: int
    nodes: Nodes

    @property
    def world(self) -> int:
        return self.here * self.nodes.count

    @property
    def first(self) -> int:
        return self.here * self.nodes.this


def ranks_of(asked: str | int, n_gpus: int | None, nodes: Nodes) -> Ranks:
    """`asked`: auto is one a GPU, or one where there is none (`n_gpus` None). Raises BadRecipe."""
    if isinstance(asked, int):
        if n_gpus is not None and asked > n_gpus:
            raise BadRecipe.one(
                "train.loop.ranks", f"{asked} ranks need a GPU each, and {n_gpus} are here; or say auto"
            )
        return Ranks(asked, nodes)
    return Ranks(nodes.trainers or max(1, n_gpus or 1), nodes)


def is_rank() -> bool:
    """Whether somebody has started this process as a rank already: the launcher, or torchrun."""
    return "LOCAL_RANK" in os.environ


def count_gpus(device: str) -> int | None:
    """CUDA devices that a training on `device` (auto, cuda, mps, cpu) may use; None where it does not use any."""
    if device not in ("auto", "cuda"):
        return None
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else None


def launch(argv: Sequence[str], ranks: Ranks, threads: int) -> int:
    """Run `trainer ARGV` once a rank; the exit code of all of them together (see `verdict`)."""
    for _ in range(MOST_STARTS):
        code = _run(argv, ranks, threads)
        if code != EXIT_SMALLER:
            return code
    sys.stderr.write("memory ran out again and again, however finely the steps were cut\n→ lower loop.micro_s\n")
    return 1


def _run(argv: Sequence[str], ranks: Ranks, threads: int) -> int:
    listening, port = (None, ranks.nodes.port) if ranks.nodes.count > 1 else _listen()
    alive_r, alive_w = os.pipe()  # nobody ever writes
    asked: list[int] = []
    running: list[_Rank] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        for rank in running:
            rank.signal(number)

    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, pass_on)  # to the end: one that comes while the verdict is told changes nothing
    try:
        for local in range(ranks.here):
            env = {**_environment(ranks, local, port, threads), ALIVE_ENV: str(alive_r)}
            fds = [alive_r]
            if local == 0 and listening is not None:
                env[LISTEN_ENV] = str(listening.fileno())
                fds.append(listening.fileno())
            running.append(_Rank(ranks.first + local, argv, env, fds))
        if asked:  # while they were being started
            pass_on(asked[-1], None)
        _attend(running)
    finally:
        for rank in running:
            rank.kill()
        os.close(alive_r)
        os.close(alive_w)
        if listening is not None:
            listening.close()
    code, cause = verdict({r.number: r.code for r in running}, asked)
    for rank in running:
        if rank.number == cause:
            rank.tell(ranks.world)
    return code


def verdict(codes: Mapping[int, int], asked: Sequence[int] = ()) -> tuple[int, int | None]:
    """What the exit codes of all ranks (-n for a signal) come to, and whose fault that is, where it has to be told.

    What a rank says that was left alone (EXIT_ALONE) is no cause. Rank 0 speaks for itself, unless a signal ended it.
    """
    killed = [r for r, c in codes.items() if c < 0]
    if killed and asked and all(-codes[r] in asked for r in killed):
        return 128 - codes[killed[0]], None  # asked to stop before there was anything to stop
    failed = [r for r, c in codes.items() if c > 0 and c not in (SAVED, EXIT_ALONE, EXIT_SMALLER)]
    left = [r for r, c in codes.items() if c == EXIT_ALONE]
    if EXIT_SMALLER in codes.values() and not asked:
        return EXIT_SMALLER, None
    if killed:
        return 1, killed[0]
    if failed:
        return codes[failed[0]], failed[0] if failed[0] != 0 else None
    if SAVED in codes.values():
        return SAVED, None
    if left:
        return 1, left[0] if left[0] != 0 else None
    return 0, None


def leave_with_launcher() -> None:
    """In a rank: asked to stop when the launcher is gone, and ended if it has not left by then."""
    fd = os.environ.pop(ALIVE_ENV, "")
    if fd:
        threading.Thread(target=_wait_for_end, args=(int(fd),), name="launcher", daemon=True).start()


def _wait_for_end(fd: int) -> None:
    os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVING_S)
    os._exit(1)


class _Rank:
    """One process. The first of all speaks for all; of another only the last lines are kept, in case it fails."""

    def __init__(self, number: int, argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]) -> None:
        self.number = number
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        output = None if number == 0 else subprocess.PIPE
        # in this process's group, so that whoever ends the group ends them all
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", *argv],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            pass_fds=fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def code(self) -> int:
        """Of a process that has ended."""
        return int(self._process.returncode)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)  # nobody, where it has been waited for

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(2.0)

    def tell(self, world: int) -> None:
        """Why the run ended, from the rank that it failed in."""
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"failed with exit code {self.code}"
        lines = [f"rank {self.number} of {world} {how}, and the run with it", *(f"    {line}" for line in self._lines)]
        lines.append("→ run the same command again: it goes on from the last checkpoint")
        sys.stderr.write("\n".join(lines) + "\n")

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.append(line.decode(errors="replace").rstrip())


def _attend(ranks: Sequence[_Rank]) -> None:
    """Until all have ended. Once one has failed, the others have ENDING_S."""
    end_at = float("inf")
    while not all(r.has_ended() for r in ranks):
        for code in (r.code for r in ranks if r.has_ended()):
            if code:
                patience_s = {SAVED: SAVING_S, EXIT_SMALLER: PIECES_S}.get(code, ENDING_S)
                end_at = min(end_at, time.monotonic() + patience_s)
        if time.monotonic() >= end_at:
            return
        time.sleep(LOOK_S)


def _listen() -> tuple[socket.socket, int]:
    """A socket of this machine alone, and its port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    return listening, int(listening.getsockname()[1])


def _environment(ranks: Ranks, local: int, port: int, threads: int) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in (LISTEN_ENV, ALIVE_ENV)}
    env |= {
        "RANK": str(ranks.first + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(ranks.world),
        "LOCAL_WORLD_SIZE": str(ranks.here),
        "MASTER_ADDR": ranks.nodes.address,
        "MASTER_PORT": str(port),
    }
    env.setdefault("OMP_NUM_THREADS", str(threads))
    for name, value in interfaces_for(ranks.nodes).items():
        env.setdefault(name, value)
    origin = str(Path(__file__).resolve().parents[1])  # this package, whatever folder the ranks would start in
    if origin not in site.getsitepackages():
        env["PYTHONPATH"] = os.pathsep.join([origin, *filter(None, [env.get("PYTHONPATH", "")])])
    return env
