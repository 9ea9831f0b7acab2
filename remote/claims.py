"""What a pod is still needed for: each run's claim, what a look at it told, and the decision. Nothing happens here.

All moments are seconds from the start of the pod's boot (`_s`), so no clock on the wall has a say.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from remote.clock import duration
from remote.rundir import FAILED, LOST, SUCCEEDED

SCHEMA = 1
STOP, TERMINATE = "stop", "terminate"
UNKNOWN, ABSENT, LIVES = "unknown", "absent", "lives"  # beside lost and the final states
LOST_GRACE_S = 60.0  # a runner that seems dead has so long to show that it is not: a machine under load looks alike
SAVE_MARGIN_S = 45.0  # before the deadline, beyond the run's own grace: for its last words on a slow volume

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


class BadClaim(Exception):
    """A claim that cannot be kept; says what is wrong with it."""


@dataclass(frozen=True)
class Ending:
    """What becomes of the pod after a run. `how` is empty where only the pod's own ending applies, after `hold_s`."""

    how: str = ""
    hold_s: float = 0.0


@dataclass(frozen=True)
class Boot:
    """`boot.json`: this start of the pod."""

    boot: str
    uptime_s: float  # what /proc/uptime said, and what was added to it
    grace_s: float
    end: str


@dataclass(frozen=True)
class Claim:
    """`claims/<run id>.json`: until when a run needs this pod, and what becomes of the pod afterwards."""

    run_id: str
    run_dir: str
    disk: str
    tool_dir: str
    deadline_s: float
    grace_s: float
    fetch_grace_s: float
    on_success: Ending
    on_failure: Ending
    after_attempt: int = 0  # attempts up to this one are of the past
    serial: str = ""  # differs each time that it is made, by the same run or another


@dataclass(frozen=True)
class Look:
    """How a run is: `state` as in status.json, or unknown, absent (not begun), lives, lost; and since when."""

    state: str
    since_s: float
    was_seen: bool = False  # did this attempt ever show itself?
    reason: str = ""


@dataclass(frozen=True)
class Act:
    """What the watchdog does now."""

    save: Tuple[str, ...] = ()  # ids of runs whose runners are to be asked to save and end
    end: str = ""  # stop or terminate; "": the pod lives on
    why: str = ""
    until_s: float = math.inf  # when the pod ends at the latest, if nothing else happens
    is_deadline: bool = False  # no look could change it


def decide(
    boot: Boot,
    claims: Sequence[Claim],
    looks: Mapping[str, Look],
    fetched: Sequence[str],
    holds: Mapping[str, float],
    elapsed_s: float,
) -> Act:
    """The pod ends when no claim is left. `holds`: run id → until when somebody asked to keep the pod."""
    if not claims:
        until_s = boot.grace_s
        if elapsed_s < until_s:
            return Act(until_s=until_s)
        return Act(end=boot.end, why="no run has a claim on this pod", until_s=until_s)
    needs = [_need(boot, c, looks[c.run_id], c.run_id in fetched, holds.get(c.run_id, 0.0)) for c in claims]
    until_s, why, _ = max(needs)
    if elapsed_s >= until_s:
        # where one run wants its machine kept and another has it destroyed, what is kept can still be destroyed
        how = STOP if any(n[2] == STOP for n in needs) else TERMINATE
        return Act(end=how, why=why, until_s=until_s, is_deadline=elapsed_s >= max(c.deadline_s for c in claims))
    save = tuple(c.run_id for c in claims if elapsed_s >= save_s(c) and looks[c.run_id].state in (LIVES, UNKNOWN))
    return Act(save=save, until_s=until_s)


def save_s(claim: Claim) -> float:
    """When the run is asked to save: early enough before its deadline, and not before half its time."""
    return max(claim.deadline_s - claim.grace_s - SAVE_MARGIN_S, claim.deadline_s / 2)


def _need(boot: Boot, claim: Claim, look: Look, is_fetched: bool, held_until_s: float) -> Tuple[float, str, str]:
    """Until when this run needs the pod, why it then ends, and how. Never beyond the deadline: that was the price."""
    run = "run {}".format(claim.run_id)
    fails = claim.on_failure.how or boot.end
    deadline = (claim.deadline_s, "{} is at its deadline, {}".format(run, duration(claim.deadline_s)), fails)
    if look.state == LIVES or (look.state == UNKNOWN and look.was_seen):
        return deadline
    if look.state in (ABSENT, UNKNOWN):
        until_s = look.since_s + boot.grace_s
        need = (max(until_s, held_until_s), "{} has not begun in {}".format(run, duration(boot.grace_s)), boot.end)
        return min(deadline, need, key=lambda n: n[0])

    ended_s = look.since_s + (LOST_GRACE_S if look.state == LOST else 0.0)
    ending = claim.on_success if look.state == SUCCEEDED else claim.on_failure
    hold_s = ending.hold_s if look.state in (SUCCEEDED, FAILED, LOST) else 0.0  # who stopped it does not hold it
    grace_s = 0.0 if is_fetched else claim.fetch_grace_s
    why = "{} {}".format(run, "is lost: its runner died" if look.state == LOST else look.state)
    if look.state == LOST and look.reason:
        why = "{} {}".format(run, look.reason)
    elif look.reason:
        why += " ({})".format(look.reason)
    if is_fetched:
        why += ", its results are fetched"
    until_s = max(ended_s + max(hold_s, grace_s), held_until_s)
    return min(deadline, (until_s, why, ending.how or boot.end), key=lambda n: n[0])


def parse_boot(value: Any) -> Optional[Boot]:
    try:
        return Boot(
            boot=str(value["boot"]),
            uptime_s=_number(value, "uptime_s"),
            grace_s=_number(value, "grace_s"),
            end=TERMINATE if value.get("end") == TERMINATE else STOP,
        )
    except (AttributeError, BadClaim, KeyError, TypeError):
        return None


def parse_claim(value: Any) -> Claim:
    """Raises BadClaim, naming every mistake."""
    if not isinstance(value, dict):
        raise BadClaim("it is not a JSON object")
    if isinstance(value.get("schema"), int) and value["schema"] > SCHEMA:
        raise BadClaim("it has schema {}, this watchdog reads {}".format(value["schema"], SCHEMA))
    mistakes = []
    known: Dict[str, Any] = {}
    if not isinstance(value.get("run_id"), str) or not RUN_ID.match(value["run_id"]):
        mistakes.append("run_id must be letters, digits, '.', '_' and '-'")
    for name in ("run_dir", "disk", "tool_dir"):
        if not isinstance(value.get(name), str) or "\0" in value[name] or (name == "run_dir" and not value[name]):
            mistakes.append("{} must be a path".format(name))
    for name in ("deadline_s", "grace_s", "fetch_grace_s"):
        try:
            known[name] = _number(value, name)
        except BadClaim as e:
            mistakes.append(str(e))
    for name in ("on_success", "on_failure"):
        try:
            known[name] = _ending(value.get(name))
        except BadClaim as e:
            mistakes.append("{} {}".format(name, e))
    if mistakes:
        raise BadClaim("; ".join(mistakes))
    after = value.get("after_attempt", 0)
    return Claim(
        run_id=value["run_id"],
        run_dir=value["run_dir"],
        disk=value["disk"],
        tool_dir=value["tool_dir"],
        after_attempt=after if isinstance(after, int) else 0,
        serial=str(value.get("serial", "")),
        **known,
    )


def _ending(value: Any) -> Ending:
    if value in (STOP, TERMINATE):
        return Ending(how=value)
    if isinstance(value, dict) and set(value) == {"hold_s"}:
        return Ending(hold_s=_number(value, "hold_s"))
    raise BadClaim('must be "stop", "terminate" or {"hold_s": seconds}')


def _number(value: Mapping[str, Any], name: str) -> float:
    n = value.get(name)
    if isinstance(n, bool) or not isinstance(n, (int, float)) or not 0 <= n < math.inf:
        raise BadClaim("{} must be a number of seconds that is not negative".format(name))
    return float(n)
