"""Starts processes, and is the only module that does: argv in, result out, no shell in between."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from podctl.errors import MissingHere
from podctl.pods import Result

ACCOUNT_KEYS = ("RUNPOD_API_KEY", "LAMBDA_API_KEY")  # they rent machines: no child of ours needs them
_OURS_ALONE = (*ACCOUNT_KEYS, "TMUX", "TMUX_PANE")

TIMED_OUT = 124  # as timeout(1) says it


def run(
    argv: Sequence[str],
    *,
    stdin: str = "",
    timeout_s: float | None = 60,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run to the end; `env` is added to the environment, account keys are taken out. Bytes that are no UTF-8 survive
    as surrogate escapes. A time-out is exit code 124. Raises MissingHere where there is no such program."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(env),
        )
    except FileNotFoundError as e:
        if cwd is not None and not cwd.is_dir():
            raise
        raise MissingHere(f"{argv[0]} is not on this machine's PATH", install_hint(argv[0])) from e
    except OSError as e:
        raise MissingHere(f"{argv[0]} can't be run: {e.strerror}") from e
    with process:
        try:
            out, err = process.communicate(stdin.encode("utf-8", "surrogateescape"), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Result(TIMED_OUT, _text(out), f"{_text(err)}no answer within {timeout_s:g} s")
        except BaseException:
            process.kill()
            raise
    code = process.returncode
    return Result(code if code >= 0 else 128 - code, _text(out), _text(err))


@contextlib.contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP unwind as Ctrl-C does, so that no child is left behind."""

    def unwind(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, unwind) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
