"""Steps whose loss or gradient is not finite: told apart from fp16's search for a scale, named, and kept to look into.

The device decides that such a step is skipped; the host reads one number of it a step later, when the work is done.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from remote.files import write_atomic
from trainer.data.loader import Micro
from trainer.machine import Machine

log = logging.getLogger(__name__)

FLOOR = 1.0  # a loss scale that is searched for stays above this: below, the gradient itself is not finite
MOST = 5  # micro-batches kept a run
NAMED = 5  # utterances named in a message

Verdict = Literal["taken", "searching", "nonfinite"]


@dataclass(frozen=True)
class Made:
    """What a step's gradient was made of on this rank, kept until the host knows what became of it."""

    micros: Sequence[Micro] = ()
    losses: Sequence[Mapping[str, Tensor]] = ()  # of each micro-batch, by key, an utterance each; on the device
    lost: Tensor = field(default_factory=lambda: torch.zeros(()))  # 1 where a loss of any rank is not finite


@dataclass(frozen=True)
class Unread:
    """A step whose outcome is on its way to the host: `code` is 0 taken, 1 skipped, 2 skipped for its loss."""

    step: int
    made: Made
    scale: Tensor | None  # of the loss, under which this step was computed
    code: Tensor
    event: Any

    @classmethod
    def start(cls, step: int, made: Made, skipped: Tensor, scale: Tensor | None) -> "Unread":
        """Nothing waits here: a copy begins, and is read a step later."""
        code = skipped + made.lost
        if code.device.type != "cuda":
            return cls(step, made, scale, code, None)
        copy = torch.empty((), pin_memory=True).copy_(code, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(step, made, scale, copy, event)

    def read(self) -> tuple[Verdict, bool]:
        """What became of the step, and whether a loss was not finite: the same on every rank."""
        if self.event is not None:
            self.event.synchronize()
        code = int(self.code)
        # the scale is asked for in the rare case alone: that is a wait
        return verdict(code, None if code != 1 or self.scale is None else float(self.scale)), code > 1


def verdict(code: int, scale: float | None) -> Verdict:
    """A gradient that overflows under a loss scale is how the scale is found, as long as there is room below it."""
    if code == 0:
        return "taken"
    return "searching" if code == 1 and scale is not None and scale > FLOOR else "nonfinite"


def any_lost(losses: Sequence[Mapping[str, Tensor]], machine: Machine) -> Tensor:
    """1 where a loss of any rank is not finite, on the device: a GPU's stream waits for the others, the host does not.

    Every rank must ask.
    """
    bad = [~torch.isfinite(v).all() for kept in losses for v in kept.values()]
    lost = torch.stack(bad).any().float() if bad else torch.zeros((), device=machine.device)
    if machine.world > 1:
        with machine.together():
            dist.all_reduce(lost, dist.ReduceOp.MAX)
    return lost


def lost_of(made: Made) -> list[list[str]]:
    """The utterances of each micro-batch whose loss is not finite: a wait for the device."""
    found = []
    for micro, losses in zip(made.micros, made.losses, strict=True):
        bad = torch.stack([~torch.isfinite(v) for v in losses.values()]).any(0).tolist()
        found.append([i for i, is_bad in zip(micro.batch.ids, bad, strict=True) if is_bad])
    return found


@dataclass(frozen=True)
class Dumps:
    """Where micro-batches with a loss that is not finite are kept, a few of them: evidence, never replaced."""

    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)  # said in each: the recipe

    def keep(self, unread: Unread, machine: Machine, room: int) -> list[str]:
        """The names of what was written, at most `room`. A full disk costs the evidence, not the training."""
        written: list[str] = []
        for n, (micro, losses) in enumerate(zip(unread.made.micros, unread.made.losses, strict=True)):
            if len(written) == room or all(bool(torch.isfinite(v).all()) for v in losses.values()):
                continue
            name = f"step-{unread.step:08d}-rank-{machine.rank}-{n}.pt"
            whole = {"step": unread.step, "rank": machine.rank, "precision": machine.precision, **self.about}
            whole |= {"scale": None if unread.scale is None else float(unread.scale), "versions": _versions()}
            whole |= _plain(micro, losses)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                torch.save(whole, buffer)
                write_atomic(self.folder / name, buffer.getvalue())
            except (OSError, RuntimeError) as e:
                log.warning("%s could not be kept: %s", name, e)
                break
            written.append(name)
        return written

    @property
    def n(self) -> int:
        return len(list(self.folder.glob("step-*.pt")))


def look_into(unread: Unread, machine: Machine, dumps: Dumps | None) -> str:
    """Names and keeps what a step's loss was lost on; the words for it, the same on all ranks. Every rank must ask."""
    lost = lost_of(unread.made)
    mine = [i for ids in lost for i in ids]
    n_dumps = sum(machine.gathered([dumps.n if dumps and machine.is_first else 0]))
    told = machine.gathered([(mine, sum(map(bool, lost)))])
    before = sum(n for _, n in told[: machine.rank])
    kept = dumps.keep(unread, machine, max(0, MOST - n_dumps - before)) if dumps else []
    ids = [i for theirs, _ in told for i in theirs]
    files = machine.gathered(kept)
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    where = f"; kept in {', '.join(f'{dumps.folder.name}/{f}' for f in files)}" if dumps and files else ""
    return f"{', '.join(ids[:NAMED])}{more}{where}"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "numpy")}


def _plain(micro: Micro, losses: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors, numbers and texts only: `torch.load` takes it without trusting anybody."""
    fields = vars(micro.batch).items()
    whole = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in fields if _is_plain(v)}
    examples = [
        {"id": e.id, "audio": e.audio, "start_s": e.start_s, "duration_s": e.duration_s, "text": e.text}
        for e in micro.examples
    ]
    draws = [None if d is None else d.seed for d in micro.draws]
    return {
        "ids": list(micro.batch.ids),
        "losses": {k: v.cpu() for k, v in losses.items()},
        "padded_s": micro.padded_s,
        "batch": whole,
        "examples": examples,
        "draws": draws,
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, Tensor | str | int | float)
