"""Commands of the trainer that live by themselves: a module each, with `add(commands)` for its parser.

A module imports no more than argparse needs; what it does it imports when it is asked.
"""

from importlib import import_module
from typing import Any

NAMES = ("audit", "align", "compare", "report", "export", "push")  # in the order in which the help lists them


def add_all(commands: Any) -> None:
    """Every one of them into the trainer's parser."""
    for name in NAMES:
        import_module(f"trainer.commands.{name}").add(commands)
