"""What the trainer says while it works: a line an event, and nothing of the libraries below it."""

import logging
import os
import sys
import warnings
from typing import Any

from trainer.launch import is_rank


def set_up_logging(stream: Any = None) -> None:
    """One line an event, on stdout by default, rank 0 alone; libraries speak only when something is wrong."""
    first = not is_rank() or os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=stream or sys.stdout
    )
    logging.getLogger("trainer").setLevel(logging.INFO if first else logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging as quiet

    quiet.disable_progress_bar()
