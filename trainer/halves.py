"""A batch that memory is too small for is predicted in halves: what each utterance yields is its own."""

import logging
from typing import Any

from trainer.data.loader import Micro, part_of
from trainer.errors import OutOfMemory
from trainer.gradient import free_memory, is_out_of_memory
from trainer.machine import Machine
from trainer.recipe.eval import Decode
from trainer.task import Parts, Row, Task

log = logging.getLogger(__name__)


def predicted(task: Task[Any, Any], parts: Parts, micro: Micro, decode: Decode, machine: Machine) -> list[Row]:
    """A row an utterance. Raises OutOfMemory where one alone is too much."""
    try:
        batch = task.prepare(micro.batch.to(machine.device), parts, False)
        return task.predict(parts.module, batch, decode)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
    batch = None  # the exception is gone, and with it what it held
    free_memory(machine.device)
    n = len(micro.examples)
    if n == 1:
        hint = "lower train.eval.decode.beams, or choose a machine with more memory"
        raise OutOfMemory.of_one(micro.padded_s, hint)
    log.warning("out of memory at %d utterances of %g s: they are decoded in halves", n, micro.padded_s)
    rows: list[Row] = []
    for first, end in ((0, n // 2), (n // 2, n)):
        half = part_of(task, micro, first, end)
        rows += predicted(task, parts, half, decode, machine) if half else []
    return rows
