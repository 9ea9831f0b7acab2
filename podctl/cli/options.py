"""What several commands take, said once, and what all of them begin with."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from podctl.ledger import Ledger
    from podctl.pods import Run
    from podctl.project import Project

RunWord = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's id, a prefix of it, or a name; the newest here.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, an object a line.")]


def epilogue(*examples: str) -> str:
    """Examples under a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  podctl {e}" for e in examples)


def this_project() -> "Project":
    """The project around the current directory."""
    from podctl.project import find_project, working_dir

    return find_project(working_dir(), working_dir())


def meant_run(word: str, *, training: bool = False) -> "tuple[Run, Ledger]":
    """The run that a person means, and the ledger that knows it; `training`: none that evaluates another where nothing
    is said. Raises BadInput."""
    from podctl.runs import find_run, open_ledger

    ledger = open_ledger()
    return find_run(ledger, this_project().id, word, training=training), ledger


def watcher(run: "Run", ui: Any) -> Any:
    """Somebody to look at a run."""
    from podctl.cli import program
    from podctl.runs import host_for
    from podctl.watch import Watcher
    from remote.clock import clock_from_env

    return Watcher(run, host_for(run), ui, clock_from_env(), program())
