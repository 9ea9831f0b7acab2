"""A pod for tests: a volume, a local disk, the tool's tree, and the real runner as a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from remote.files import write_atomic
from remote.rundir import Job, RunDir, Stage, Status, Volume, read_status

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0


def wait_until(claim: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """What the claim says once it is true. Raises AssertionError, naming it, when it does not come true in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        value = claim()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


@dataclass
class Pod:
    """The machine's files below one folder, and the runners that were started; it ends what it started.

    `name` becomes part of every path, so that unkind names can be tried.
    """

    root: Path
    name: str = "pod"
    run_id: str = "demo-261121-080000-abcd"
    python: str | None = sys.executable
    environ: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = self.root / self.name
        self.volume = Volume(self.home / "volume")
        self.disk = self.home / "disk"
        self.source = self.home / "source"
        self.tool = self.home / "tool"
        self.clock_file = self.home / "clock"
        self.run: RunDir = self.volume.run(self.run_id)
        for folder in (self.run.root, self.volume.data, self.disk, self.source, self.tool):
            folder.mkdir(parents=True, exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "remote", self.tool / "remote", ignore=ignore, dirs_exist_ok=True)

    def another(self, run_id: str, **changes: Any) -> "Pod":
        """Another run on the same machine and volume; what it starts ends with this one's."""
        return replace(self, run_id=run_id, **changes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def job(self, *command: str, prep: list[Stage] | None = None, **changes: Any) -> None:
        """Write `job.json`."""
        value = Job(
            run_id=self.run_id,
            project="demo",
            source_dir=str(self.source),
            tool_dir=str(self.tool),
            command=list(command),
            prep=prep or [],
            env={},
            max_hours=1.0,
            grace_s=10.0,
        )
        self.run.job.write_text(json.dumps(asdict(value) | changes), encoding="utf-8")

    def script(self, text: str, name: str = "job.py") -> list[str]:
        """A Python program in the user's project; the command that runs it."""
        (self.source / name).write_text(text, encoding="utf-8")
        return ["python", name]

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PODCTL_", "PYTHON", "PIP_", "HF_"))}
        env |= {
            "PODCTL_VOLUME": str(self.volume.root),
            "PODCTL_DISK": str(self.disk),
            "PODCTL_CLOCK_FILE": str(self.clock_file),
            "PODCTL_IMAGE_ENV": str(self.home / "image"),
            "PIP_NO_INDEX": "1",
        }
        if self.python:
            env["PODCTL_PYTHON"] = self.python
        return env | self.environ

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start an attempt, as tmux would, with its screen in a pipe."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": self.env} | options
        process = subprocess.Popen(["bash", str(self.tool / "remote" / "run.sh"), str(self.run.root)], **options)
        self.started.append(process)
        return process

    def finish(self, *command: str, **changes: Any) -> Status:
        """Run a job to its end; its final status."""
        if command:
            self.job(*command, **changes)
        process = self.start()
        self.screen, _ = process.communicate(timeout=60)
        self.exit_code = process.returncode
        status = self.status
        assert status is not None, self.screen.decode()
        assert status.is_final, self.screen.decode()
        assert status.exit_code == self.exit_code
        assert status.log_bytes == self.run.log.stat().st_size
        return status

    @property
    def status(self) -> Status | None:
        return read_status(self.run.status)

    @property
    def log(self) -> str:
        return self.run.log.read_text(encoding="utf-8", errors="replace") if self.run.log.exists() else ""

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in the log, which is:\n{self.log}")

    def wait_for_state(self, *states: str) -> Status:
        status = wait_until(lambda: (s := self.status) and s.state in states and s, f"{states}, it is {self.status}")
        assert isinstance(status, Status)
        return status

    def move_clock(self, seconds: float, wall_s: float = 0.0) -> None:
        """Let so much time go by for everything on this pod, and set its clock on the wall so much off beside that."""
        write_atomic(self.clock_file, f"{seconds} {wall_s}".encode())

    def control(self, *words: str) -> dict[str, Any]:
        """What `control.py WORD RUN_DIR` says."""
        argv = [sys.executable, "-I", "-S", str(self.tool / "remote" / "control.py"), words[0], str(self.run.root)]
        done = subprocess.run([*argv, *words[1:]], env=self.env, stdout=subprocess.PIPE, timeout=60, check=True)
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer
