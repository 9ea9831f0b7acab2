"""This machine as one behind a link that can be cut, and time that passes when nothing comes over it."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from podctl.errors import Unreachable
from podctl.host import Stream
from podctl.localhost import LocalHost
from podctl.pods import Result, Run
from remote.control import status_of
from remote.rundir import RunDir

REPO = Path(__file__).resolve().parents[2]


class Time:
    """A clock that a test moves; what was planned happens once its moment is passed."""

    def __init__(self) -> None:
        self.t = self.begun = time.time()
        self.plans: list[tuple[float, Callable[[], object]]] = []
        self.slept: list[float] = []

    def now(self) -> float:
        return self.t

    def elapsed(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pass_by(seconds)

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        self.plans.append((self.begun + seconds, do))

    def pass_by(self, seconds: float) -> None:
        self.t += seconds
        due = sorted((p for p in self.plans if p[0] <= self.t), key=lambda p: p[0])
        self.plans = [p for p in self.plans if p[0] > self.t]
        for _, do in due:
            do()


class CutHost:
    """Raises Unreachable while it is cut; `half_open`: streams that were open hear nothing more, and no end."""

    name = "box"

    def __init__(self, clock: Time | None = None) -> None:
        self._here = LocalHost()
        self.clock = clock
        self.is_cut = False
        self.error: Unreachable = Unreachable("no route to box")
        self.half_open = False
        self.is_odd = False  # no process that is begun there gets far
        self.calls: Counter[str] = Counter()
        self.piece = 1 << 16  # of a log, at once
        self.cut_after: list[int] = []  # bytes of log after which the link breaks once
        self.ends_after: list[int] = []  # or its stream ends as if all were said
        self._sent = 0

    def cut(self) -> None:
        self.is_cut = True

    def mend(self) -> None:
        self.is_cut = False

    def run(self, argv: Sequence[str], *, stdin: str = "", timeout_s: float = 60) -> Result:
        self._call("run")
        if argv[-2:-1] == ["status"]:  # control.py, without the price of a process
            if self.is_odd or not Path(argv[-3]).exists():
                return Result(2, "", "MemoryError")
            return Result(0, json.dumps(status_of(RunDir(argv[-1]))), "")
        return self._here.run(argv, stdin=stdin, timeout_s=timeout_s)

    def read(self, path) -> bytes | None:
        self._call("read")
        return self._here.read(path)

    def pull(self, source, target, **names) -> None:
        self._call("pull")
        self._here.pull(source, target, **names)

    def follow(self, path, *, offset: int = 0) -> Iterator[bytes]:
        self._call("follow")
        was_half_open = False
        while True:
            self._check()
            was_half_open = was_half_open or self.half_open
            chunk = b""
            with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as f:
                f.seek(offset)
                chunk = b"" if was_half_open else f.read(self._room())
            self._sent += len(chunk)
            offset += len(chunk)
            if not chunk and self.clock is not None:
                self.clock.pass_by(0.5)
            yield chunk
            if self.cut_after and self._sent >= self.cut_after[0]:
                self.cut_after.pop(0)
                raise Unreachable("the link broke")
            if self.ends_after and self._sent >= self.ends_after[0]:
                self.ends_after.pop(0)
                return

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], *, stdin=None) -> Iterator["Heard"]:
        self._call("stream")
        with self._here.stream(argv, stdin=stdin) as stream:
            yield Heard(self, stream)

    def _room(self) -> int:
        borders = [*self.cut_after[:1], *self.ends_after[:1]]
        return min([self.piece, *(b - self._sent for b in borders if b > self._sent)])

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        self._check()

    def _check(self) -> None:
        if self.is_cut:
            raise self.error


class Heard:
    def __init__(self, host: CutHost, stream: Stream) -> None:
        self._host, self._stream = host, stream

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._host._check()
            yield piece

    @property
    def exit_code(self) -> int | None:
        return self._stream.exit_code

    @property
    def stderr(self) -> str:
        return self._stream.stderr


class FarRun:
    """A run's directory on a machine that is not this one: its status is what a test says it is."""

    def __init__(self, tmp: Path, run_id: str = "demo-261121-080000-abcd") -> None:
        self.dir = RunDir(tmp / "volume" / "runs" / run_id)
        self.dir.root.mkdir(parents=True)
        self.project = tmp / "project"
        self.project.mkdir(exist_ok=True)
        detail = {"run_dir": str(self.dir), "tool_dir": str(REPO), "python": "", "socket": str(tmp / "sock")}
        detail |= {"project_root": str(self.project), "attempt_before": 0}
        self.run = Run(run_id, "p", "demo", "ssh", "", time.time(), pod="x", launched_at=1.0, detail=detail)
        self.results = self.project / ".podctl" / "runs" / run_id

    def say(self, text: str | bytes) -> None:
        with self.dir.log.open("ab") as f:
            f.write(text.encode() if isinstance(text, str) else text)

    def status(self, state: str = "running", **changes: object) -> None:
        t = time.time()
        value = {"run_id": self.run.id, "attempt": 1, "boot_id": "elsewhere", "state": state, "phase": "train"}
        value |= {"pid": 1, "started_at": t - 60, "heartbeat_at": t}
        if state in ("succeeded", "failed", "stopped"):
            size = self.dir.log.stat().st_size if self.dir.log.exists() else 0
            value |= {"ended_at": t, "exit_code": 0, "log_bytes": size}
        self.dir.status.write_text(json.dumps(value | changes))

    def end(self, text: str = "") -> None:
        self.say(text)
        self.status("succeeded")

    def progress(self, **changes: object) -> None:
        value = {"step": 120, "max_steps": 600, "epoch": 0.5, "phase": "train", "phase_since": 0, "last_step_at": 0}
        self.dir.progress.write_text(json.dumps(value | {"loss": 1.234, "eta_s": 120.0} | changes))


def wait_for(claim: Callable[[], object], timeout_s: float = 20) -> None:
    """Poll until it holds."""
    until = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.02)
