"""What each step over SSH costs on a slow link: medians of 10, and the round trips that they take.

python benchmarks/wire.py [DELAY_MS]

A pod out of namespaces, each packet DELAY_MS later each way (25: a round trip of 50 ms). Every step is measured without
delay too: what it takes longer then, by the round trip, is how many round trips it makes. Needs root, Linux.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import netpod  # noqa: E402
from support.machines import Machine, netpod_machine  # noqa: E402
from support.podctl_cli import Cli  # noqa: E402
from support.speech import make_corpus, recipe_dict  # noqa: E402

from podctl.facts import gather  # noqa: E402
from podctl.host import host_of  # noqa: E402
from podctl.launch import send_source  # noqa: E402
from podctl.pods import Pod, SshAddress  # noqa: E402
from podctl.trees import read_tree  # noqa: E402

TIMES = 10
FILES, FILE_BYTES = 500, 5400  # 2.7 MB, as a project has


class Quiet:
    """A voice for nobody."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **more: None


def main() -> int:
    if netpod.why_not():
        print(f"not measured: {netpod.why_not()}")
        return 0
    delay_ms = float(sys.argv[1]) if len(sys.argv) > 1 else 25.0
    with tempfile.TemporaryDirectory(prefix="pcb", dir="/tmp") as tmp, netpod_machine(Path(tmp)) as machine:
        os.environ.update(machine.env, PODCTL_HOME=f"{tmp}/home")
        pod = machine.extra["pod"]
        near = measure(machine, Path(tmp))
        pod.delay(delay_ms)
        far = measure(machine, Path(tmp))
        pod.delay(0)
    about = f"{os.cpu_count()} cores, Python {platform.python_version()}, {subprocess.getoutput('ssh -V')}"
    print(f"{about}; medians of {TIMES}, in ms (least to most)")
    print(f"{'':44}{'no delay':>22}{f'{delay_ms:g} ms each way':>24}{'round trips':>13}")
    for name in far:
        trips = (statistics.median(far[name]) - statistics.median(near[name])) / (2 * delay_ms)
        print(f"{name:<44}{in_words(near[name]):>22}{in_words(far[name]):>24}{trips:>13.1f}")
    return 0


def measure(machine: Machine, tmp: Path) -> dict[str, list[float]]:
    """Milliseconds, by step."""
    s = machine.pod_section["ssh"]
    address = SshAddress(s["host"], s["port"], s["user"], s["key"], s["host_key"])
    found: dict[str, list[float]] = {}
    for kind in ("openssh", "fabric"):
        os.environ["PODCTL_SSH"] = kind
        found |= of_one_connection(machine, address, tmp, kind)
    os.environ["PODCTL_SSH"] = "openssh"
    found |= of_a_train(machine, tmp)
    return found


def of_one_connection(machine: Machine, address: SshAddress, tmp: Path, kind: str) -> dict[str, list[float]]:
    work = PurePosixPath("/workspace"), PurePosixPath("/root/.cache/podctl")
    pod = Pod("ssh", "x", "x", "running", 0, *work, ssh=address, python=sys.executable)
    host = host_of(pod)

    def connect() -> None:
        host.close()
        host.run(["true"])

    project = tmp / f"project-{kind}-{time.monotonic_ns()}"
    files = [f"d{n % 20}/f{n}.py" for n in range(FILES)]
    for name in files:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(os.urandom(FILE_BYTES // 2).hex().encode())
    tool = PurePosixPath(str(ROOT))  # the pod sees this machine's files below its own

    def sync() -> None:
        tree = read_tree(project, files)
        facts = gather(host, pod, project="p", tree=tree.id)
        send_source("p", tree, host, facts, tool, Quiet(), Now())

    def change() -> None:
        (project / files[0]).write_bytes(os.urandom(FILE_BYTES // 2).hex().encode())

    def change_and_sync() -> None:
        change()
        sync()

    def push() -> None:
        host.push(project, PurePosixPath("/root/pushed"), files_from=files)

    def change_and_push() -> None:
        change()
        push()

    name = {"openssh": "OpenSSH", "fabric": "paramiko"}[kind]
    found = {
        f"{name}: connect, and a command": times(connect),
        f"{name}: a command on a live connection": times(lambda: host.run(["true"])),
    }
    sync()
    found[f"{name}: code sync, nothing changed"] = times(sync)
    found[f"{name}: code sync, one of {FILES} files"] = times(change_and_sync)
    push()
    found[f"{name}: push, nothing changed"] = times(push)
    found[f"{name}: push, one of {FILES} files"] = times(change_and_push)
    host.close()
    return found


class Now:
    def now(self) -> float:
        return time.time()


def of_a_train(machine: Machine, tmp: Path) -> dict[str, list[float]]:
    """From Enter to the trainer's first line and, after a changed file, to a new step, on a machine that was used."""
    room = tmp / f"cli-{time.monotonic_ns()}"
    room.mkdir()
    cli = Cli(room)
    cli.env |= {**machine.env, "PODCTL_SSH": "openssh"}
    for part, n in (("train", 20), ("dev", 4), ("test", 4)):
        make_corpus(machine.volume / "data" / "corpus", n, seed=n, name=part)
    train = recipe_dict(Path("corpus"), loop={"steps": 100_000}, eval={"every_steps": 50_000}, log={"every_steps": 1})
    section = {"provider": "ssh", "max_hours": 0.2, **machine.pod_section}
    file = cli.project / "t.yaml"
    file.write_text(json.dumps({"name": "bench", "pod": section, "train": train}))
    (cli.project / "code.py").write_text("x = 0\n")
    first_line, new_step, own_import, sent = [], [], [], []
    for n in range(TIMES + 1):
        (cli.project / "code.py").write_text(f"x = {n}\n")
        begun = time.perf_counter()
        with started(cli, "train", "-c", str(file), *(["--force-restart"] if n == 0 else [])) as lines:
            at = {
                word: when(lines, word, begun)
                for word in (b"=== attempt", b"before training" if n == 0 else b"resumed", b"step")
            }
        cli("stop", timeout=120)
        if n:  # the first one sends the tool
            first_line.append(1000 * at[b"resumed"])
            new_step.append(1000 * at[b"step"])
            sent.append(1000 * at[b"=== attempt"])
    for _ in range(TIMES):
        begun = time.perf_counter()
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import trainer.train, trainer.tasks.whisper"
        machine.extra["pod"].run(sys.executable, "-c", code)
        own_import.append(1000 * (time.perf_counter() - begun))
    cli.close()
    return {
        "train, a changed file: to the runner's line": sent,
        "train, a changed file: to the trainer's line": first_line,
        "train, a changed file: to a new step": new_step,
        "  of that, the trainer's import by itself": own_import,
    }


@contextlib.contextmanager
def started(cli: Cli, *args: str) -> Iterator["subprocess.Popen[bytes]"]:
    """podctl, watched until the block is left; then it leaves as by Ctrl-C."""
    process = cli.start(*args)
    try:
        yield process
    finally:
        process.send_signal(2)
        process.communicate(timeout=60)


def when(process: "subprocess.Popen[bytes]", word: bytes, begun: float) -> float:
    """Seconds since `begun` until a line of its log holds the word."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return time.perf_counter() - begun
    raise SystemExit(f"{word!r} never came: {process.stderr.read().decode() if process.stderr else ''}")


def times(step: Callable[[], object]) -> list[float]:
    step()
    took = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        step()
        took.append(1000 * (time.perf_counter() - begun))
    return took


def in_words(took_ms: list[float]) -> str:
    return f"{statistics.median(took_ms):.0f} ({min(took_ms):.0f} to {max(took_ms):.0f})"


if __name__ == "__main__":
    sys.exit(main())
