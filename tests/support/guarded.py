"""A rented pod for tests of its guard: the real boot.sh and watchdog, and a provider of one pod on loopback."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.pod import ROOT, is_alive, wait_until

from remote.files import write_atomic
from remote.rundir import RunDir

KEY = "rpa_CANARY0123456789"
POD_ID = "pod0abc"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJustForTests0000000000000000000000000000000"


@dataclass
class Provider:
    """RunPod's v2 and GraphQL for one running pod. `rights`: what its key may do over each; knobs make it unkind."""

    rights: dict[str, str] = field(default_factory=lambda: {"v2": "all", "graphql": "all"})  # all, read, none, gone
    ignores: bool = False  # says yes to an ending, and does nothing
    clock_file: Path | None = None
    asked: list[tuple[float, str, str]] = field(default_factory=list)  # virtual seconds, way, what
    agents: set[str] = field(default_factory=set)
    state: str = "RUNNING"
    delay_s: float = 0.0
    cut: bool = False  # answers are broken off in their middle
    echoes: bool = False  # an error repeats what it was sent, the key included
    n_bad: int = 0  # so many answers are 500 first

    def __enter__(self) -> Self:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.serve(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def ends(self) -> list[tuple[str, str]]:
        """What was asked for that would end the pod: (way, stop or terminate)."""
        return [(way, what) for _, way, what in self.asked if what in ("stop", "terminate")]

    @property
    def ended(self) -> bool:
        return self.state != "RUNNING"

    def virtual_s(self) -> float:
        text = self.clock_file.read_text() if self.clock_file and self.clock_file.exists() else ""
        return time.monotonic() - self._began + float((text.split() or ["0"])[0])

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0)).decode()
        self.agents.add(request.headers.get("User-Agent", ""))
        key = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        code, answer = self._answer(request.path, request.command, body, key)
        time.sleep(self.delay_s)
        if self.echoes and code >= 400:
            answer = {"detail": f"bad header Authorization: Bearer {key}", "errors": [{"message": f"key {key}"}]}
        data = json.dumps(answer).encode()
        try:
            request.send_response(code)
            request.send_header("Content-Length", str(len(data) + (100 if self.cut else 0)))
            request.end_headers()
            request.wfile.write(data)
        except OSError:
            pass  # whoever asked is gone

    def _answer(self, path: str, method: str, body: str, key: str) -> tuple[int, Any]:
        if key != KEY:
            return 401, {"title": "Unauthorized", "detail": "missing bearer token"}
        if self.n_bad:
            self.n_bad -= 1
            return 500, {"title": "Something went wrong"}
        if path.startswith("/v2/"):
            return self._v2(path.removeprefix("/v2"), method, body)
        return self._graphql(json.loads(body)["query"])

    def _v2(self, path: str, method: str, body: str) -> tuple[int, Any]:
        may = self.rights["v2"]
        if may == "gone":
            return 410, {"title": "Gone"}
        if may == "none" or not path.startswith(f"/pods/{POD_ID}"):
            return 403, {"detail": "access denied"}
        pod = {"id": POD_ID, "status": self.state, "env": {"RUNPOD_API_KEY": key_in_env()}}
        if method == "GET":
            return 200, pod
        action = json.loads(body)["action"]
        self._note("v2", action)
        if may == "read" or (may == "stop" and action != "stop"):
            return 403, {"detail": "access denied"}
        if action == "start":
            return 409, {"detail": "Action not valid for current pod status"}
        self._end(action)
        return (204 if action == "terminate" else 200), pod

    def _graphql(self, query: str) -> tuple[int, Any]:
        may = self.rights["graphql"]
        if may == "gone":
            return 410, "gone"
        known = ("podResume", "podStop", "podTerminate", "pod")
        name = next(n for n in known if f"{n}(" in query)
        what = {"podStop": "stop", "podTerminate": "terminate", "podResume": "start", "pod": "read"}[name]
        if what != "read":
            self._note("graphql", what)
        if may == "none" or (may == "read" and what != "read"):
            error = {"message": "Unauthorized", "path": [name], "extensions": {"code": "RUNPOD"}}
            return 200, {"errors": [error], "data": {name: None}}
        if what in ("stop", "terminate"):
            self._end(what)
        value = None if what == "terminate" else {"id": POD_ID, "desiredStatus": self.state}
        return 200, {"data": {name: value}}

    def _note(self, way: str, what: str) -> None:
        self.asked.append((self.virtual_s(), way, what))

    def _end(self, what: str) -> None:
        if not self.ignores:
            self.state = {"stop": "EXITED", "terminate": "TERMINATED"}[what]


def key_in_env() -> str:
    """The provider tells a pod's environment to whoever may read it."""
    return KEY


@dataclass
class GuardedPod:
    """The pod's container: boot.sh as its first process, with an image whose start does nothing, for ever."""

    root: Path
    provider: Provider
    sh: str = "sh"
    grace_s: int = 900
    end: str = "terminate"
    run_id: str = "demo-261121-080000-abcd"
    python: str = sys.executable
    announces: str = f"key={HOST_KEY}"
    environ: dict[str, str] = field(default_factory=dict)
    starts: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dir = self.root / "it's a guard"
        self.seen = self.root / "it's a guard.seen"
        self.out = self.root / "container.log"
        self.clock_file = self.provider.clock_file = self.root / "clock"
        self.tool = self.root / "tool"
        self.bin = self.root / "bin"
        self.volume = self.root / "volume"
        self.start = self.root / "start.sh"
        self.host_key = self.root / "etc" / "ssh_host_ed25519_key"
        self.run = RunDir(self.volume / "runs" / self.run_id)
        for folder in (self.bin, self.run.root, self.host_key.parent, self.root / "disk"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "remote", self.tool / "remote", ignore=shutil.ignore_patterns("__pycache__"))
        self.host_key.write_text("not looked at\n")
        self.host_key.with_suffix(".pub").write_text(HOST_KEY + " pod\n")
        self.program(self.start, "#!/bin/sh\necho the image has started\nwhile :; do sleep 1; done\n")
        self.move_clock(0)

    def program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PODCTL_", "RUNPOD_", "PYTHON"))}
        env |= {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PODCTL_BOOT": "cGxlYXNlIGRvIG5vdCBpbmhlcml0",
            "PODCTL_GUARD_DIR": str(self.dir),
            "PODCTL_GUARD_S": str(self.grace_s),
            "PODCTL_GUARD_END": self.end,
            "PODCTL_GUARD_TICK_S": "0.05",
            "PODCTL_CLOCK_FILE": str(self.clock_file),
            "PODCTL_START": str(self.start),
            "PODCTL_HOST_KEY": str(self.host_key),
            "PODCTL_RUNPOD_API_URL": self.provider.url + "/v2",
            "PODCTL_RUNPOD_GRAPHQL_URL": self.provider.url + "/graphql",
            "RUNPOD_POD_ID": POD_ID,
            "RUNPOD_API_KEY": KEY,
        }
        return env | self.environ

    def boot(self) -> None:
        """The container starts; again, where it has before."""
        with self.out.open("ab") as out:
            argv = [*self.sh.split(), str(self.tool / "remote" / "boot.sh")]
            self.starts.append(subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out))
        wait_until(lambda: f"dir={self.dir} {self.announces}" in self.log, "the announcement")

    def halt(self) -> None:
        """The container is gone, with all that ran in it."""

        def is_over() -> bool:
            pids = self.processes()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.starts:
                process.poll()
            return not pids

        wait_until(is_over, "an end of all of the pod's processes")

    def processes(self) -> list[int]:
        """Everybody who was started in this pod: its clock is in their environment."""
        mark = f"PODCTL_CLOCK_FILE={self.clock_file}".encode()
        return [pid for pid, environ in _environs() if mark in environ.split(b"\0") and is_alive(pid)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.halt()

    def move_clock(self, seconds: float, wall_s: float = 0.0) -> None:
        write_atomic(self.clock_file, f"{seconds} {wall_s}".encode())

    @property
    def log(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    @property
    def guard_log(self) -> str:
        path = self.dir / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def read(self, name: str) -> Any:
        try:
            return json.loads((self.dir / name).read_text())
        except (OSError, ValueError):
            return None

    def claim(self, **changes: Any) -> dict[str, Any]:
        value = {
            "schema": 1,
            "run_id": self.run_id,
            "run_dir": str(self.run),
            "disk": str(self.root / "disk"),
            "tool_dir": str(self.tool),
            "deadline_s": 36000,
            "grace_s": 60,
            "fetch_grace_s": 600,
            "on_success": "terminate",
            "on_failure": "stop",
        }
        return value | changes

    def guard(self, *words: str, stdin: str = "") -> dict[str, Any]:
        """What `guard.py VERB DIR …` says, asked over a session that does not know the pod's key."""
        argv = [sys.executable, "-I", "-S", str(self.tool / "remote" / "guard.py"), words[0], str(self.dir), *words[1:]]
        env = {k: v for k, v in self.env.items() if k != "RUNPOD_API_KEY"}
        done = subprocess.run(argv, env=env, input=stdin.encode(), stdout=subprocess.PIPE, timeout=60)
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        assert ("error" in answer) == (done.returncode != 0)
        return answer

    def arm(self, wait_s: float = 20, **changes: Any) -> dict[str, Any]:
        order = {"claim": self.claim(**changes), "python": self.python, "wait_s": wait_s}
        return self.guard("arm", stdin=json.dumps(order))

    def watchdogs(self) -> list[int]:
        """Not a child of one, which looks like it for the moment between fork and exec."""
        found = [
            pid
            for pid in self.processes()
            if b"watch" in (argv := _read(pid, "cmdline").split(b"\0")) and any(a.endswith(b"guard.py") for a in argv)
        ]
        return [pid for pid in found if _parent(pid) not in found]

    def guards(self) -> list[int]:
        return [pid for pid in self.processes() if b"boot.sh\0guard\0" in _read(pid, "cmdline")]

    def wait_for_end(self, what: str = "the pod's end") -> None:
        wait_until(lambda: self.provider.ended, f"{what}; {self.log}\n{self.guard_log}")


def _environs() -> Iterator[tuple[int, bytes]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name), _read(int(name), "environ")


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
