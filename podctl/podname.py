"""A pod's name: whose it is, which run it is for, and until when it may live. Anybody who may list pods can read it."""

import calendar
import re
import time
from dataclasses import dataclass

POD_NAME_MAX = 60  # RunPod accepts names up to 60 (seen 2026-08)
TAIL = "-yymmdd-hhmmss-abcd"  # of a run's id: what is unique about it
_NAME = re.compile(
    r"pc-(?P<owner>[a-z0-9]{1,12})-(?P<name>[a-z0-9-]*?)-?(?P<tail>\d{6}-\d{6}-[0-9a-f]{4})"
    r"(?:-a(?P<attempt>\d+)-(?P<until>\d{10}))?"
)


@dataclass(frozen=True)
class PodName:
    """What a name says. `tail` is the unique end of a run's id; `until` is Unix time, None where it did not fit."""

    owner: str
    tail: str
    attempt: int = 0
    until: float | None = None
    name: str = ""  # of the lineage, or what of it there was room for
    is_cut: bool = False

    def is_of_lineage(self, lineage: str) -> bool:
        return lineage.startswith(self.name) if self.is_cut else lineage == self.name

    def is_of(self, run_id: str) -> bool:
        return run_id.endswith(self.tail)


def make_pod_name(owner: str, run_id: str, *, attempt: int = 0, until: float | None = None) -> str:
    """`pc-<owner>-<run id>-a<attempt>-<yymmddhhmm>`, the last two where they are given. Where that is too long the
    name within it gives way, never the part that is unique."""
    name, tail = run_id[: -len(TAIL)], run_id[-len(TAIL) :]
    end = f"-a{attempt}-{time.strftime('%y%m%d%H%M', time.gmtime(until))}" if until is not None else ""
    room = POD_NAME_MAX - len(f"pc-{owner}-") - len(tail) - len(end)
    return f"pc-{owner}-{name[:room].rstrip('-')}{tail}{end}"


def parse_pod_name(name: str) -> PodName | None:
    """None for a pod that podctl did not name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    until = None
    if match["until"]:
        try:
            until = float(calendar.timegm(time.strptime(match["until"], "%y%m%d%H%M")))
        except ValueError:
            return None
    return PodName(
        match["owner"], match["tail"], int(match["attempt"] or 0), until, match["name"], len(name) >= POD_NAME_MAX - 1
    )
