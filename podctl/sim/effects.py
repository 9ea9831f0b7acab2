"""What the cloud wants done to containers; whoever runs them (`container.py`) does it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """Something is to be done to a pod's container."""

    pod: str


@dataclass(frozen=True)
class Launch(Effect):
    """Start it. `wipe`: with an empty disk."""

    wipe: bool


@dataclass(frozen=True)
class OpenSsh(Effect):
    """From now on its sshd may listen."""


@dataclass(frozen=True)
class Term(Effect):
    """SIGTERM to its main program, and to nothing else."""


@dataclass(frozen=True)
class Halt(Effect):
    """SIGTERM to its main program; once that has ended, or the time is over, everything in it is killed."""

    grace_s: float


@dataclass(frozen=True)
class KillMain(Effect):
    """End its main program at once; the container ends with it."""


@dataclass(frozen=True)
class Remove(Effect):
    """Its disk is gone. `keep_volume`: the machine's own volume disk stays."""

    keep_volume: bool


@dataclass(frozen=True)
class Stranger(Effect):
    """At that port somebody else's sshd answers from now on."""

    port: int
