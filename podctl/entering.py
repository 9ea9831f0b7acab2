"""Into a run's machine by hand: the place and the environment that its job has, for a shell or a command."""

import contextlib
import json
import os
import select
import shlex
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import remote
from podctl import shell
from podctl.errors import PodctlError
from podctl.host import Host
from podctl.pods import Run
from podctl.runs import host_for, provider_of, run_dir
from podctl.shell import catching
from podctl.ui import Ui
from remote.rundir import RUN_ENV, VOLUME_ENV

CHUNK = 1 << 16
HEAD = 5  # of a frame: remote/piped.py says what it holds

# where the source is gone, the run's directory; where that is gone too, home
_ENTER = (
    'cd -- "$1" 2>/dev/null || cd -- "$2" 2>/dev/null || cd; [ -z "$3" ] || PATH=$3:$PATH; export PATH; shift 3; '
    'exec env "$@"'
)
_READ = 'for f; do [ -f "$f" ] && cat -- "$f"; printf "\\0"; done'
LOGIN_SHELL = ("sh", "-c", 'exec "${SHELL:-sh}"')


@dataclass(frozen=True)
class Inside:
    """What the job of a run finds around it; secrets and the right to write are not among it."""

    source_dir: str
    run_dir: str
    path: tuple[str, ...]
    env: Mapping[str, str]

    def argv(self, command: Sequence[str]) -> list[str]:
        """A command in that place."""
        named = [f"{k}={v}" for k, v in self.env.items()]
        return ["sh", "-c", _ENTER, "sh", self.source_dir, self.run_dir, ":".join(self.path), *named, *command]


def inside(run: Run, job: Mapping[str, Any], machine: Mapping[str, Any]) -> Inside:
    """From the run's `job.json` and `env.json`, either of which may be empty. Pure."""
    where = run_dir(run)
    tool = str(job.get("tool_dir") or run.detail.get("tool_dir") or "")
    facts = machine.get("python")
    python = str((facts.get("executable") if isinstance(facts, dict) else "") or run.detail.get("python") or "")
    own = job.get("env")
    env = {str(k): str(v) for k, v in own.items()} if isinstance(own, dict) else {}
    own_path = env.pop("PATH", "")
    path = [f"{tool}/remote/bin"] * bool(tool) + [str(PurePosixPath(python).parent)] * ("/" in python)
    if tool:
        env["PYTHONPATH"] = ":".join(filter(None, [tool, env.get("PYTHONPATH", "")]))
    if python:
        env["PODCTL_PYTHON"] = python
    env[VOLUME_ENV] = str(PurePosixPath(where.root).parent.parent)
    env[RUN_ENV] = str(where)
    source = str(job.get("source_dir") or run.detail.get("source_dir") or "")
    return Inside(source, str(where), (*path, *filter(None, [own_path])), env)


def look_inside(run: Run, host: Host) -> Inside:
    """Ask the machine, once. Raises PodctlError where the run never began there, Unreachable."""
    if "run_dir" not in run.detail:
        if run.is_rented and run.pod and run.gone_at is None:  # `podctl up`: a machine without a run
            return Inside("", "", (), {})
        raise PodctlError(f"{run.id} never began", "podctl train starts it")
    where = run_dir(run)
    told = host.run(["sh", "-c", _READ, "sh", str(where.job), str(where.env)]).stdout.split("\0")
    job, machine = (_object(text) for text in (*told[:2], "", "")[:2])
    return inside(run, job, machine)


def enter(run: Run, ui: Ui, *, tmux: bool = False) -> int:
    """Hand this terminal to a shell on the run's machine, or to its session to look on. The shell's exit code."""
    host = host_for(run)
    if run.is_rented and (proxied := _proxied(run)):
        ui.warn("only its provider's proxy answers: a shell for a person, without files, tunnels or commands")
        ui.note("it knows the keys of your account there, not podctl's own")
        return shell.hand_over(shlex.split(proxied))
    if tmux:
        argv = ["tmux", "-S", str(run.detail.get("socket", "")), "attach-session", "-r", "-t", f"={run.id}"]
        ui.note("the run's own screen, to look at: Ctrl-b d leaves it")
        return host.terminal(argv)
    place = look_inside(run, host)
    what = "the run goes on" if place.run_dir else "the pod stays on, and costs"
    ui.note(f"{host.name}, {place.source_dir or place.run_dir or 'its home'}: exit leaves, {what}")
    return host.terminal(place.argv(LOGIN_SHELL))


def _proxied(run: Run) -> str:
    """The provider's own way to a shell, where a pod that is on has no address of its own; else ""."""
    pod = provider_of(run).get(run.pod)
    return pod.proxy if pod.state == "running" and pod.ssh is None else ""


def execute(run: Run, command: Sequence[str], ui: Ui) -> int:
    """Run a command on the run's machine: input, both outputs and exit code are this process's, byte for byte.

    Ctrl-C is the command's; a second one ends it. Raises Unreachable where the link breaks; the command ends there too.
    """
    host = host_for(run)
    argv = look_inside(run, host).argv(command)
    is_interactive = all(os.isatty(fd) for fd in (0, 1, 2)) and not ui.as_json
    if is_interactive or (run.provider == "local" and not ui.as_json):
        return host.terminal(argv)
    code = _relay(run, host, argv, ui)
    if ui.as_json:
        ui.emit({"event": "exited", "run": run.id, "exit_code": code})
    return code


def _relay(run: Run, host: Host, argv: Sequence[str], ui: Ui) -> int:
    """By way of `remote/piped.py` over there, since a wire carries one stream each way."""
    text = Path(str(remote.__file__)).with_name("piped.py").read_text(encoding="utf-8")
    python = str(run.detail.get("python") or "python3")
    source, held = _Input(), bytearray()
    try:
        with host.stream([python, "-I", "-S", "-c", text, *argv], stdin=source) as stream, _ctrl_c(source.interrupt):
            for chunk in stream:
                held += chunk
                for kind, data in frames(held):
                    ui.pass_on(data, error=kind == b"e")
            code, said = stream.exit_code, stream.stderr.strip()
            source.over()
    finally:
        source.over()
    if said:  # piped.py itself could not run, or a shell's start file speaks
        ui.note(said)
    return 1 if code is None else code


def _ctrl_c(passed_on: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
    """Within the block, Ctrl-C is passed on; where that says False it is ours, as ever."""

    def handle(number: int, frame: object) -> None:
        if not passed_on():
            raise KeyboardInterrupt

    return catching({signal.SIGINT: handle})


def frames(held: bytearray) -> list[tuple[bytes, bytes]]:
    """The whole frames at the beginning, taken out of it."""
    found = []
    while len(held) >= HEAD:
        (size,) = struct.unpack(">I", bytes(held[1:HEAD]))
        if len(held) < HEAD + size:
            break
        found.append((bytes(held[:1]), bytes(held[HEAD : HEAD + size])))
        del held[: HEAD + size]
    return found


class _Input:
    """This process's stdin as frames, with Ctrl-C in between; it ends when all is over, not when stdin does."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self._lock = threading.RLock()  # Ctrl-C may come while it is held
        self._times = 0
        self._is_over = False

    def interrupt(self) -> bool:
        """Pass Ctrl-C on. False the second time: then the caller leaves."""
        self._times += 1
        if self._times == 1:
            self._tell(b"c")
        return self._times == 1

    def over(self) -> None:
        """Nothing more is wanted."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        os.close(self._writing)

    def __iter__(self) -> Iterator[bytes]:
        wanted = [self._reading, sys.stdin.fileno()]
        try:
            while True:
                ready, _, _ = select.select(wanted, [], [])
                if self._reading in ready:
                    if not os.read(self._reading, 1):
                        return
                    yield b"c" + struct.pack(">I", 0)
                elif ready:
                    data = os.read(wanted[1], CHUNK)
                    if data:
                        yield b"i" + struct.pack(">I", len(data)) + data
                    else:
                        yield b"e" + struct.pack(">I", 0)
                        wanted = wanted[:1]
        finally:
            os.close(self._reading)

    def _tell(self, byte: bytes) -> None:
        with self._lock:
            if not self._is_over:
                os.write(self._writing, byte)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
