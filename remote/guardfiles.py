"""Every file of a pod's guard directory, on its local tmpfs: what boot guard, watchdog and podctl tell each other."""

import os
from pathlib import Path

from remote.files import StrPath


class GuardDir:
    """Who writes what is in docs/adr/0013-what-ends-a-pod.md."""

    def __init__(self, root: StrPath) -> None:
        self.root = Path(os.path.abspath(os.fspath(root)))

    def __str__(self) -> str:
        return str(self.root)

    @property
    def boot(self) -> Path:
        return self.root / "boot.json"

    @property
    def armed(self) -> Path:
        """Two lines: a Python, and the path of guard.py."""
        return self.root / "armed"

    @property
    def claims(self) -> Path:
        return self.root / "claims"

    @property
    def fetched(self) -> Path:
        return self.root / "fetched"

    @property
    def holds(self) -> Path:
        """`<run id>.json`: until when somebody asked to keep the pod."""
        return self.root / "holds"

    @property
    def alive(self) -> Path:
        return self.root / "alive"

    @property
    def verdict(self) -> Path:
        return self.root / "verdict.json"

    @property
    def ending(self) -> Path:
        return self.root / "ending.json"

    @property
    def watch(self) -> Path:
        """What the watchdog remembers of each run, for the one that comes after it."""
        return self.root / "watch.json"

    @property
    def evidence(self) -> Path:
        """What the machine said at the end, before it goes to the volume."""
        return self.root / "evidence"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @staticmethod
    def read_text(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
