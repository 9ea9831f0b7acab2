"""How busy a run's GPUs are: asked now and then beside the log, never in its way."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from podctl.errors import PodctlError
from podctl.host import Host

EVERY_S = 5.0
ANSWER_S = 5.0
LONGEST_S = 300.0  # between two questions to a driver that does not answer: each leaves a process behind there
ASK = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
NOT_THERE = (126, 127)


@dataclass(frozen=True)
class Gpu:
    """All GPUs of a machine at one moment. `use`: mean share of the time that a kernel ran, 0 to 1."""

    count: int
    use: float
    used_gb: float
    total_gb: float

    def __str__(self) -> str:
        """`GPU 87 %`, `4 GPUs 87 %`."""
        return f"{'GPU' if self.count == 1 else f'{self.count} GPUs'} {100 * self.use:.0f} %"


def parse_gpu(text: str) -> Gpu | None:
    """What nvidia-smi printed, a line a GPU, memory in MiB. Lines without numbers (`[N/A]`) are left out."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            use, used, total = (float(field) for field in line.split(","))
            found.append((use / 100, used * 2**20 / 1e9, total * 2**20 / 1e9))
    if not found:
        return None
    uses, used_gb, total_gb = zip(*found, strict=True)
    return Gpu(len(found), sum(uses) / len(found), sum(used_gb), sum(total_gb))


class Gauge:
    """Asks in a thread of its own. `now` is the last answer, None without one."""

    def __init__(self, host: Host) -> None:
        self.now: Gpu | None = None
        self._host = host
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While the block lasts; leaving it waits for nobody."""
        thread = threading.Thread(target=self._ask_on, name="gauge", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()

    def _ask_on(self) -> None:
        wait_s = EVERY_S
        while True:
            try:
                result = self._host.run(ASK, timeout_s=ANSWER_S)
            except PodctlError as e:
                if e.exit_code == 9:  # this machine has no such program
                    return
                self.now = None  # no link: whoever follows the run says so
            else:
                if result.exit_code in NOT_THERE:
                    return
                self.now = parse_gpu(result.stdout) if result.ok else None
                wait_s = EVERY_S if result.ok else min(LONGEST_S, 2 * wait_s)
            if self._is_over.wait(wait_s):
                return
