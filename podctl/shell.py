"""Starts processes, and is the only module that does: argv in, result out, no shell in between."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from podctl.errors import MissingHere
from podctl.host import IDLE_S
from podctl.pods import Result

ACCOUNT_KEYS = ("RUNPOD_API_KEY", "LAMBDA_API_KEY")  # they rent machines: no child of ours needs them
_OURS_ALONE = (*ACCOUNT_KEYS, "TMUX", "TMUX_PANE")

TIMED_OUT = 124  # as timeout(1) says it
ABANDON_S = 0.5  # how long a killed process's pipes may stay open: somebody else can hold them for ever
GRACE_S = 2.0  # from SIGTERM to SIGKILL
CHUNK = 1 << 18
STDERR_KEPT = 1 << 20
_LOOK_MS = 200


def run(
    argv: Sequence[str],
    *,
    stdin: str | bytes | None = "",
    timeout_s: float | None = 60,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> Result:
    """Run to the end; `env` is added to the environment, account keys are taken out. Bytes that are no UTF-8 survive
    as surrogate escapes. A time-out is exit code 124. Raises MissingHere where there is no such program.

    `stdin` None: input stays open and empty while it runs. `own_session`: the terminal's Ctrl-C does not reach it;
    when its time is over, all that it started ends with it.
    """
    with _input(stdin) as (given, text):
        process = _start(argv, stdin=given, cwd=cwd, env=env, own_session=own_session)
        with process:
            try:
                out, err = process.communicate(text, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                _kill(process, own_session)
                out, err = _what_is_left(process)
                return Result(TIMED_OUT, _text(out), f"{_text(err)}no answer within {timeout_s:g} s")
            except BaseException:
                _kill(process, own_session)
                raise
    return Result(_exit_code(process.returncode), _text(out), _text(err))


@contextlib.contextmanager
def _input(stdin: str | bytes | None) -> Iterator[tuple[int, bytes | None]]:
    """What Popen takes as stdin, and what communicate takes as input."""
    if stdin is not None:
        yield subprocess.PIPE, stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
        return
    reading, writing = os.pipe()  # the writing end is closed by the system too, should this process be killed
    try:
        yield reading, None
    finally:
        os.close(reading)
        os.close(writing)


def _start(
    argv: Sequence[str], *, stdin: int, cwd: Path | None, env: Mapping[str, str] | None, own_session: bool
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(env),
            start_new_session=own_session,
        )
    except FileNotFoundError as e:
        if cwd is not None and not cwd.is_dir():
            raise
        raise MissingHere(f"{argv[0]} is not on this machine's PATH", install_hint(argv[0])) from e
    except OSError as e:
        raise MissingHere(f"{argv[0]} can't be run: {e.strerror}") from e


def _kill(process: "subprocess.Popen[bytes]", group: bool) -> None:
    _signal(process, signal.SIGKILL) if group else process.kill()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """To the process and what it started; it leads its own session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _what_is_left(process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
    """What a killed process has said; its pipes are left to whoever else holds them."""
    try:
        return process.communicate(timeout=ABANDON_S)
    except subprocess.TimeoutExpired as e:
        return e.stdout or b"", e.stderr or b""


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


class Streaming:
    """A process heard while it speaks; `podctl.host.Stream` for one on this machine."""

    def __init__(self, process: "subprocess.Popen[bytes]", stdin: Iterable[bytes] | None) -> None:
        self._process = process
        self._left = threading.Event()
        self._fault: BaseException | None = None
        self._stderr = bytearray()
        self._threads = [threading.Thread(target=self._hear, daemon=True)]
        if stdin is not None:
            self._threads.append(threading.Thread(target=self._feed, args=(stdin,), daemon=True))
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[bytes]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = _poll(fd, select.POLLIN)
        while True:
            ended = self._process.poll() is not None  # asked first: its last words are in the pipe by then
            if poll(0 if ended else int(IDLE_S * 1000)):
                chunk = os.read(fd, CHUNK)
                if not chunk:
                    break
                yield chunk
            elif ended:  # somebody else holds the pipe, and says nothing
                break
            else:
                yield b""
        while self._process.poll() is None:
            try:
                self._process.wait(IDLE_S)
            except subprocess.TimeoutExpired:
                yield b""
        self._threads[0].join(ABANDON_S)
        if self._fault is not None:
            raise self._fault

    @property
    def exit_code(self) -> int | None:
        code = self._process.poll()
        return None if code is None else _exit_code(code)

    @property
    def stderr(self) -> str:
        return _text(bytes(self._stderr))

    def end(self) -> None:
        """No process of it is left, and no pipe, whoever else holds its other end."""
        self._left.set()
        if len(self._threads) == 1:
            self._close_stdin()
        if self._process.poll() is None:
            _signal(self._process, signal.SIGTERM)
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                pass
        _signal(self._process, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join(ABANDON_S)  # one that waits for a piece of input that never comes is left waiting
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _hear(self) -> None:
        assert self._process.stderr is not None
        fd = self._process.stderr.fileno()
        poll = _poll(fd, select.POLLIN)
        while True:
            ended = self._left.is_set() or self._process.poll() is not None
            if poll(0 if ended else _LOOK_MS):
                chunk = os.read(fd, CHUNK)
                if not chunk:
                    return
                self._stderr += chunk
                del self._stderr[:-STDERR_KEPT]
            elif ended:
                return

    def _feed(self, pieces: Iterable[bytes]) -> None:
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        poll = _poll(fd, select.POLLOUT)
        try:
            for piece in pieces:
                left = memoryview(piece)
                while left and not self._left.is_set():
                    if poll(_LOOK_MS):
                        left = left[os.write(fd, left[:CHUNK]) :]
                if self._left.is_set():
                    return
        except BrokenPipeError:  # it wants no more: its exit code says whether that is a fault
            pass
        except BaseException as e:  # raised where the stream is read
            self._fault = e
            _signal(self._process, signal.SIGKILL)  # first: the end of its input must not look like a whole one
        finally:
            self._close_stdin()

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


@contextlib.contextmanager
def stream(
    argv: Sequence[str], *, stdin: Iterable[bytes] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Streaming]:
    """A process and all that it starts, for as long as the block lasts, in a session of its own. `stdin` is sent by a
    thread while it runs, then closed; None keeps it open and empty. Raises MissingHere."""
    process = _start(argv, stdin=subprocess.PIPE, cwd=None, env=env, own_session=True)
    streaming = Streaming(process, stdin)
    try:
        yield streaming
    finally:
        streaming.end()


def hand_over(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Give this terminal to a program until it ends; Ctrl-C is its own. Its exit code. Raises MissingHere."""
    try:
        process = subprocess.Popen(argv, env=environment(env))
    except FileNotFoundError as e:
        raise MissingHere(f"{argv[0]} is not on this machine's PATH", install_hint(argv[0])) from e
    with process:
        while True:
            try:
                return _exit_code(process.wait())
            except KeyboardInterrupt:  # it got one too
                continue


def _poll(fd: int, event: int) -> Callable[[int], bool]:
    """Asks whether a pipe is ready or its other end gone, within so many milliseconds."""
    polling = select.poll()
    polling.register(fd, event)
    return lambda ms: bool(polling.poll(ms))


@contextlib.contextmanager
def catching(handlers: Mapping[int, Callable[[int, Any], None]]) -> Iterator[None]:
    """Within the block, these signals are handled so. One that is ignored stays ignored: nohup has asked for that, or a
    script that put podctl in its background. Outside the main thread, where none can be caught, nothing changes."""
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def ending_like_ctrl_c() -> contextlib.AbstractContextManager[None]:
    """Within the block, SIGTERM and SIGHUP unwind as Ctrl-C does, so that no child is left behind."""

    def unwind(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    return catching({signal.SIGTERM: unwind, signal.SIGHUP: unwind})


class CtrlC:
    """Within the block, Ctrl-C may be held back: it is remembered then, and interrupts nothing. For steps that must not
    end half done."""

    def __init__(self) -> None:
        self.pressed = False  # while it was held
        self._is_held = False
        self._caught = catching({signal.SIGINT: self._press})

    def __enter__(self) -> "CtrlC":
        self._caught.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._caught.__exit__(*error)

    def _press(self, number: int, frame: object) -> None:
        if not self._is_held:
            raise KeyboardInterrupt
        self.pressed = True

    def hold(self) -> None:
        """From here to the end of the block, but for `felt`."""
        self._is_held = True

    @contextlib.contextmanager
    def felt(self) -> Iterator[None]:
        """While held: within this block it interrupts all the same, and at once where it was pressed before."""
        was_held, self._is_held = self._is_held, False
        try:
            if self.pressed:
                self.pressed = False
                raise KeyboardInterrupt
            yield
        finally:
            self._is_held = was_held


@contextlib.contextmanager
def child(
    argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that lives as long as the block; it is asked to end, then killed, and it alone."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(env), start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")  # not by subprocess, which would turn \\r into \\n


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child of it, without what is ours alone."""
    return {k: v for k, v in {**os.environ, **(extra or {})}.items() if k not in _OURS_ALONE}


def found(program: str) -> bool:
    """Is it on the PATH?"""
    return shutil.which(program) is not None


def install_hint(program: str) -> str:
    """What installs a program on this system."""
    for manager, command in (
        ("brew", "brew install"),
        ("apt-get", "sudo apt-get install"),
        ("dnf", "sudo dnf install"),
    ):
        if shutil.which(manager):
            return f"{command} {program}"
    if shutil.which("pacman"):
        return f"sudo pacman -S {program}"
    return (
        f"install {program} with this system's package manager (sudo apt-get install {program}, brew install {program})"
    )
