"""The command line: a file a command family, each command a few lines that call the rooms behind. Imports stay lazy."""

import contextlib
import os
import re
import sys
from collections.abc import Sequence

import typer

from podctl.errors import MissingHere, PodctlError

CANCELLED = 130
COMMANDS = (
    *("init", "doctor", "completion", "train", "attach", "logs", "ps", "status", "stop", "tensorboard", "pull", "push"),
    *("sync", "ssh", "exec", "ssh-config", "recover", "resume", "pods", "up", "down", "reap", "sim"),
    *("evaluate", "predict", "report"),
)  # what hints speak of
EPILOGUE = """\b
Examples:
  podctl init
  podctl train --config configs/demo.yaml --local
  podctl train --config whisper.yaml --set train.optim.lr=3e-5 --detach
  podctl attach
  podctl ps --all

\b
Exit codes: 0 ok or detached, 1 run failed, 2 bad input, 3 key or balance, 4 no capacity, 5 provider unclear,
6 pod unreachable, 7 stopped by a limit, 8 busy, 9 something missing here, 75 saved and resumable, 130 cancelled.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; a person's mistakes are told, not raised."""
    args = list(sys.argv[1:] if argv is None else argv)
    _keep_standard_streams()
    try:
        shell = os.environ.pop("_PODCTL_COMPLETE", "")
        return _complete(shell, args) if shell else _guarded(args)
    except Exception as e:
        if type(e).__name__ != "ReaderGone":
            raise
        _say_no_more()  # whoever reads has had enough; a run goes on by itself
        return 0


def _complete(shell: str, args: list[str]) -> int:
    """Answer a shell that wants to know what may be typed next."""
    from podctl.completion import commands_of, reply
    from podctl.ui import Ui

    Ui().data(reply(shell, args, commands_of(_app())).rstrip("\n"))
    return 0


def _guarded(args: list[str]) -> int:
    try:
        result = _app()(args=_keeping_dashes(args), standalone_mode=False, prog_name=program())
        code = result if isinstance(result, int) else 0
        if code == CANCELLED:  # the parser has swallowed Ctrl-C
            print_cancelled()
        sys.stdout.flush()
        return code
    except PodctlError as e:
        return _tell(e, args)
    except KeyboardInterrupt:
        print_cancelled()
        return CANCELLED
    except Exception as e:
        exit_code = _usage_error(e)
        if exit_code is not None:
            return exit_code
        if isinstance(e, OSError) and e.errno is not None:  # a disk or a folder that says no
            where = f"{os.fsdecode(e.filename)}: " if isinstance(e.filename, str | bytes) else ""
            return _tell(MissingHere(f"{where}{e.strerror}"), args)
        raise


def _keeping_dashes(args: list[str]) -> list[str]:
    """`exec RUN -- CMD`: the parser takes a `--` away, and with it where the command begins; so where a trainer's own
    options begin."""
    if args[:1] not in (["exec"], ["evaluate"], ["predict"]) or "--" not in args:
        return args
    at = args.index("--")
    return [*args[:at], "--", *args[at:]]


def _tell(e: PodctlError, args: Sequence[str]) -> int:
    from podctl.ui import ReaderGone, Ui

    e.hint = as_typed(e.hint)
    try:
        Ui(as_json="--json" in args[: args.index("--") if "--" in args else None]).fail(e)
    except (ReaderGone, OSError):  # a mistake stays one when nobody reads it
        _say_no_more()
    return e.exit_code


def _say_no_more() -> None:
    """Nothing that is still buffered can fail any more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _keep_standard_streams() -> None:
    """Closed ones are opened on nothing: else the next file that is opened would become one of them."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(fd)
                continue
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def program() -> str:
    """This program as it was typed, or as it can be."""
    import shutil

    typed = sys.argv[0] if sys.argv else ""
    name = os.path.basename(typed)  # noqa: PTH119 – pathlib is not needed for anything else here
    if name == "__main__.py":
        return "python -m podctl"
    if not name.startswith("podctl"):
        return "podctl"
    on_path = shutil.which("podctl")
    if on_path and os.path.realpath(on_path) == os.path.realpath(typed):
        return "podctl"
    near = os.path.relpath(typed)
    return typed if near.startswith("..") else near


def as_typed(hint: str) -> str:
    """A hint whose commands begin as this one did."""
    name = program()
    if name in hint:
        return hint
    return re.sub(rf"(?<![\w/.])podctl (?=({'|'.join(COMMANDS)})\b)", lambda _: f"{name} ", hint)


def print_cancelled() -> None:
    from podctl.ui import Ui

    Ui().note("cancelled")


def _usage_error(e: Exception) -> int | None:
    """The exit code of what the parser raises, told as it tells it; None for anything else."""
    show, code = getattr(e, "show", None), getattr(e, "exit_code", None)
    if isinstance(code, int):
        if callable(show):
            show()
        return code
    return None


def _app() -> typer.Typer:
    from podctl.cli import apply, files, follow, pods, recover, results, runs, setup, shells, sim, train

    app = typer.Typer(
        name="podctl",
        help="Fine-tune speech models on rented GPUs, or on this machine: send, train, watch, give back.",
        epilog=EPILOGUE,
        rich_markup_mode=None,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    for family in (setup, train, follow, runs, apply, pods, results, files, shells, recover, sim):
        family.register(app)

    @app.callback()
    def root(
        version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print it."),
    ) -> None:
        pass

    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from podctl import version
        from podctl.ui import Ui

        Ui().data(f"podctl {version()}")
        raise typer.Exit
