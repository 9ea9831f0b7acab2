"""podctl as a person uses it: a project of its own, a state directory of its own, real git, real tmux."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
ALONE = {"PODCTL_PYTHON", "PODCTL_VOLUME", "PODCTL_CLOCK_FILE", "TMUX", "NO_COLOR"}
COMMAND = [sys.executable, "-m", "podctl"]


class Cli:
    """The command line in one project. What it starts it ends."""

    def __init__(self, tmp: Path) -> None:
        self.home = tmp / "home"
        self.project = tmp / "project"
        self.project.mkdir()
        self.env = {k: v for k, v in os.environ.items() if k not in ALONE and not k.endswith("_API_KEY")}
        self.env |= {"PODCTL_HOME": str(self.home), "PYTHONPATH": str(REPO), "GIT_CONFIG_GLOBAL": "/dev/null"}
        self.env |= {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        self.started: list[subprocess.Popen[bytes]] = []
        self.git("init", "-q")
        self.git("commit", "-q", "--allow-empty", "-m", "begun")

    def git(self, *args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=self.project, env=self.env, check=True, capture_output=True, text=True
        ).stdout

    def experiment(self, command: str = "echo hello", name: str = "tiny", file: str = "x.yaml", **pod: object) -> Path:
        """An experiment that runs a shell command in place of the trainer."""
        path = self.project / file
        path.write_text(json.dumps({"name": name, "pod": {"max_hours": 0.1, "command": command, **pod}}))
        return path

    def training(self, file: str = "t.yaml", **pod: object) -> Path:
        """An experiment for the trainer itself."""
        train = {
            "task": "whisper",
            "model": {"from_scratch": {}},
            "data": {"train": ["a.jsonl"], "dev": ["b.jsonl"]},
            "optim": {"lr": 1e-3},
            "loop": {"steps": 10, "step_utts": 4},
            "eval": {"normaliser": "basic", "every_steps": 5},
        }
        path = self.project / file
        path.write_text(json.dumps({"name": "train", "pod": {"max_hours": 0.1, **pod}, "train": train}))
        return path

    def __call__(self, *args: object, env: dict[str, str] | None = None, timeout: float = 60, **more) -> "Done":
        argv = [*COMMAND, *map(str, args)]
        more = {"cwd": self.project, "stdin": subprocess.DEVNULL, **more}
        done = subprocess.run(argv, env={**self.env, **(env or {})}, capture_output=True, timeout=timeout, **more)
        return Done(done.returncode, done.stdout, done.stderr.decode())

    def start(self, *args: object, by: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [*by, *COMMAND, *map(str, args)],
            env=self.env,
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def runs(self) -> list[Path]:
        return sorted((self.home / "volume" / "runs").glob("*"))

    def run_dir(self) -> Path:
        (run,) = self.runs()
        return run

    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.home / "ledger.jsonl").read_text().splitlines()]

    def sockets(self) -> set[str]:
        if not (self.home / "ledger.jsonl").exists():
            return set()
        return {e["detail"]["socket"] for e in self.events() if "socket" in e["detail"]}

    def state(self) -> str:
        return json.loads(self("status", "--json").stdout)["state"]

    def kill_tmux(self) -> None:
        """The session's end without a word, as by a machine that forgets: the runner first, then its server."""
        for run in self.runs():
            status = json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}
            if status.get("state") in ("starting", "running", "stopping"):
                os.kill(status["pid"], signal.SIGKILL)
        self.end_sessions()

    def end_sessions(self) -> None:
        for socket in self.sockets():
            subprocess.run(["tmux", "-S", socket, "kill-server"], capture_output=True, check=False)
            Path(socket).unlink(missing_ok=True)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self.end_sessions()


class Done:
    """What a command printed and returned."""

    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def stdout(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.err}"


def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Poll until it holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.03)
