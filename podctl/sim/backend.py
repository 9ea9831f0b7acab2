"""Who runs the pods' containers: the protocol of it, and one that runs none (for tests of the API alone)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from podctl.sim.effects import Effect
from podctl.sim.records import Pod
from podctl.sim.shapes import Outlook


@dataclass(frozen=True)
class News:
    """What became known of a container: a line that it said, or (None) that its main program has ended."""

    pod: str
    boot: int
    line: str | None


@dataclass(frozen=True)
class Entrance:
    """How a shell in a pod is started."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str


class Backend(Protocol):
    """Carries out what the cloud wants done. No call waits for a program longer than it takes to kill it."""

    outlook: Outlook

    def do(self, effect: Effect, pod: Pod, now: float) -> None: ...

    def look(self, now: float) -> Sequence[News]:
        """What has happened since; also ends what was given a moment to end by itself."""
        ...

    def next_port(self) -> int | None:
        """The port outside of a container that is about to start; None: any number will do."""
        ...

    def volume_dir(self, volume: str) -> Path:
        """Where a network volume is on this machine."""
        ...

    def entrance(self, pod: Pod) -> Entrance | None:
        """How a shell in a pod that runs is started; None where none can be."""
        ...

    def close(self) -> None: ...


class NoContainers:
    """Pods that are a state and a bill."""

    outlook = Outlook()

    def __init__(self, root: Path) -> None:
        self._root = root

    def do(self, effect: Effect, pod: Pod, now: float) -> None:
        pass

    def look(self, now: float) -> Sequence[News]:
        return []

    def next_port(self) -> int | None:
        return None

    def volume_dir(self, volume: str) -> Path:
        folder = self._root / "volumes" / volume
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def entrance(self, pod: Pod) -> Entrance | None:
        return None

    def close(self) -> None:
        pass
