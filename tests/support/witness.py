"""Looks at an emulated RunPod while something goes on: pods that live at once, secrets where none belong."""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Self

from podctl.podname import parse_pod_name
from podctl.sim.records import PROVISIONING, RUNNING, STARTING, Pod
from podctl.sim.sim import Sim
from podctl.sim.wire import Request

LOOK_S = 0.02
ARGV_LOOKS = 10  # a look at all command lines costs more: only so many looks apart
LARGEST = 4_000_000


class Witness:
    """While it is entered it looks on. `needles`: what may stand nowhere that it looks."""

    def __init__(self, sim: Sim, needles: Iterable[str], folders: Iterable[Path]) -> None:
        self.leaks: set[str] = set()
        self._sim = sim
        self._needles = [n.encode() for n in needles]
        self._folders = list(folders)
        self._both_since: dict[frozenset[str], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self.longest_both_s = 0.0  # that two pods of one run were paid for at once
        sim.before_request.append(self._before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def look_everywhere(self) -> None:
        """Disks of pods, volumes, logs, and the folders that were named."""
        for folder in (self._sim.root, getattr(self._sim.backend, "pods", self._sim.root), *self._folders):
            self._look_through(folder)
        for pod in self._sim.pods(gone=True):
            self._look_at(repr((pod.wish.env, pod.wish.args, pod.wish.name)).encode(), f"what {pod.id} was made with")
            self._look_at("\n".join(line.text for line in pod.log).encode(), f"the log of {pod.id}")

    def _run(self) -> None:
        n = 0
        while not self._over.wait(LOOK_S):
            self._count()
            n += 1
            if n % ARGV_LOOKS == 0:
                for what, argv in _command_lines(str(self._sim.root.parent).encode()):
                    self._look_at(argv, f"the command line of {what}")

    def _count(self) -> None:
        now = self._sim.clock.now()
        living: dict[str, list[str]] = {}
        for pod in list(self._sim.cloud.pods.values()):
            if is_paid(pod):
                living.setdefault(run_of(pod), []).append(pod.id)
        both = {frozenset(pair) for ids in living.values() for pair in combinations(ids, 2)}
        self._both_since = {pair: self._both_since.get(pair, now) for pair in both}
        self.longest_both_s = max([self.longest_both_s, *(now - t for t in self._both_since.values())])

    def _before(self, request: Request) -> None:
        """A pod that is about to go takes its disk with it."""
        pod_id = request.path.removeprefix("/v2/pods/").partition("/")[0]
        if request.method == "DELETE" or b"terminate" in request.body:
            self._look_through(self._sim.backend.pods / pod_id)

    def _look_through(self, folder: Path) -> None:
        for path in _files(folder):
            with contextlib.suppress(OSError), path.open("rb") as f:
                self._look_at(f.read(LARGEST), str(path))

    def _look_at(self, data: bytes, what: str) -> None:
        if any(needle in data for needle in self._needles):
            self.leaks.add(what)


def is_paid(pod: Pod) -> bool:
    """Does it cost a GPU's price, and is it not broken?"""
    return pod.status in (PROVISIONING, STARTING, RUNNING)


def run_of(pod: Pod) -> str:
    name = parse_pod_name(pod.wish.name)
    return name.tail if name else pod.wish.name


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield path


def _command_lines(root: bytes) -> Iterator[tuple[str, bytes]]:
    """Of podctl, its children and the pods' processes: all have that folder in their environment."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if root in Path("/proc", pid, "environ").read_bytes():
                argv = Path("/proc", pid, "cmdline").read_bytes()
                yield argv[:40].decode(errors="replace"), argv
