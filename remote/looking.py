"""What a child's look at a run (`control.py status`) says to the watchdog."""

import json
from typing import Any, NamedTuple, Optional

from remote.claims import ABSENT, LIVES
from remote.rundir import FINAL, LOST


class Seen(NamedTuple):
    state: str
    attempt: int  # 0: none that counts
    reason: str = ""


def seen_in(output: bytes, after_attempt: int) -> Optional[Seen]:
    """The run's state; attempts up to `after_attempt` are of the past. None for an answer that is none."""
    answer = _parsed(output)
    if answer is None:
        return None
    status = answer.get("status")
    if not isinstance(status, dict) or not isinstance(status.get("attempt"), int):
        return Seen(ABSENT, 0)
    attempt, reason = status["attempt"], str(status.get("reason") or "")
    if attempt <= after_attempt:
        return Seen(ABSENT, 0)
    if status.get("state") in FINAL:
        return Seen(status["state"], attempt, reason)
    if status.get("boot_id") != answer.get("boot_id"):
        return Seen(LOST, attempt, "has gone on to another machine")
    return Seen(LOST, attempt) if answer.get("lost") else Seen(LIVES, attempt)


def attempt_of(output: Optional[bytes]) -> Optional[int]:
    """The newest attempt that is over, or was before this pod's; None where that cannot be known."""
    answer = _parsed(output) if output is not None else None
    if answer is None:
        return None
    status = answer.get("status")
    if not isinstance(status, dict) or not isinstance(status.get("attempt"), int):
        return 0
    is_over = status.get("state") in FINAL or answer.get("lost") or status.get("boot_id") != answer.get("boot_id")
    return int(status["attempt"]) - (0 if is_over else 1)


def _parsed(output: bytes) -> Any:
    try:
        value = json.loads(output.decode("utf-8", "replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
