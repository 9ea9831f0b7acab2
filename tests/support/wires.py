"""Ways to a machine for tests: one that is this machine, and can be cut after so many bytes."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from podctl.errors import Unreachable
from podctl.host import IDLE_S
from podctl.pods import Result, SshAddress


class LocalWire:
    """Runs there what should run there, `there` being this machine with a PATH of its own; counts what travels."""

    def __init__(self, tmp: Path, *, path: str | None = None, rsync: bool = True, no_python: bool = False) -> None:
        self.address = SshAddress("standin")
        self.env = {**os.environ, **({"PATH": path} if path is not None else {})}
        self.commands: list[Sequence[str]] = []
        self.no_python = no_python  # not under a path of its own either
        self.sent = 0
        self.cut_after: int | None = None  # bytes of stdin, counted from now, once
        self._rsync_shell: str | None = None
        if rsync:
            tmp.mkdir(exist_ok=True)
            shell = tmp / "rsh"
            shell.write_text(f'#!/bin/sh\nshift\necho rsync >>"$0.calls"\nPATH={self.env["PATH"]} exec sh -c "$*"\n')
            shell.chmod(0o755)
            self._rsync_shell = str(shell)
            self.rsync_calls = Path(f"{shell}.calls")

    @property
    def used_rsync(self) -> bool:
        return self._rsync_shell is not None and self.rsync_calls.exists()

    def run(self, argv: Sequence[str], *, stdin: str | bytes = b"", timeout_s: float = 60) -> Result:
        argv = self._there(argv)
        data = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
        done = subprocess.run(argv, input=data, capture_output=True, env=self.env, timeout=timeout_s, check=False)
        out, err = (d.decode("utf-8", "surrogateescape") for d in (done.stdout, done.stderr))
        return Result(done.returncode, out, err)

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> Iterator["LocalStream"]:
        argv = self._there(argv)
        stream = LocalStream(self, argv, stdin)
        try:
            yield stream
        finally:
            stream.end()

    def _there(self, argv: Sequence[str]) -> Sequence[str]:
        self.commands.append(argv)
        hide = re.compile(r"/(?:usr|opt)/[a-z/]*python3")
        return [hide.sub("/nowhere", word) for word in argv] if self.no_python else argv

    def rsync_shell(self) -> str | None:
        return self._rsync_shell


class LocalStream:
    def __init__(self, wire: LocalWire, argv: Sequence[str], stdin: Iterable[bytes] | None) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=wire.env, start_new_session=True
        )
        self._wire, self._stdin, self._err = wire, stdin, b""
        self._pieces: queue.Queue[bytes | None] = queue.Queue()
        self._cut = False
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._feed, self._read, self._read_err)]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                piece = self._pieces.get(timeout=IDLE_S)
            except queue.Empty:
                yield b""
                continue
            if piece is None:
                self._process.wait()
                if self._cut:
                    raise Unreachable("the link was cut")
                self._pieces.put(None)
                return
            yield piece

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def stderr(self) -> str:
        self._threads[2].join(1)
        return self._err.decode("utf-8", "surrogateescape")

    def end(self) -> None:
        if self._process.poll() is None:
            self._kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(5)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _feed(self) -> None:
        pipe = self._process.stdin
        with contextlib.suppress(BrokenPipeError, ValueError):
            for piece in self._stdin or ():
                if self._wire.cut_after is not None:
                    piece, self._wire.cut_after = piece[: self._wire.cut_after], self._wire.cut_after - len(piece)
                pipe.write(piece)
                pipe.flush()
                self._wire.sent += len(piece)
                if self._wire.cut_after is not None and self._wire.cut_after <= 0:
                    self._wire.cut_after = None
                    time.sleep(0.2)  # what was sent arrives
                    self._cut = True
                    self._kill()
                    return
            pipe.close()

    def _read(self) -> None:
        while piece := os.read(self._process.stdout.fileno(), 1 << 16):
            self._pieces.put(piece)
        self._pieces.put(None)

    def _read_err(self) -> None:
        self._err = self._process.stderr.read()


def path_without(tmp: Path, *missing: str) -> str:
    """A PATH on which everything usual is found but what is named; `python3*` and the like leave out all that fit."""
    folder = tmp / "bin"
    folder.mkdir()
    for place in ("/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            if not any(program.match(pattern) for pattern in missing) and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    if not any(pattern.startswith("python") for pattern in missing) and not (folder / "python3").exists():
        (folder / "python3").symlink_to(sys.executable)
    return str(folder)
