"""What travels with a create call, and what the pod's boot guard answers in its log (docs/adr/0013)."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from podctl.pods import Announced, Boot
from podctl.trainer_check import tool_root

_LINE = re.compile(r"podctl-boot 1 boot=(?P<boot>[0-9a-f]{8}) (?P<rest>.*)")
_GUARDED = re.compile(r"dir=(?P<dir>/\S+) key=(?P<key>ssh-\S+ [A-Za-z0-9+/=]+|ecdsa-\S+ [A-Za-z0-9+/=]+)\s*")


def make_boot(public_key: str, *, grace_s: int, end: str, run_id: str) -> Boot:
    """The boot guard, which ends a pod without a living watchdog. `end`: stop or terminate."""
    env = {"PODCTL_GUARD_S": str(grace_s), "PODCTL_GUARD_END": end, "PODCTL_RUN": run_id}
    script = (tool_root() / "remote" / "boot.sh").read_text(encoding="ascii")
    return Boot(public_key=public_key, env=env, start_script=script)


def parse_announced(lines: Iterable[str]) -> Announced | None:
    """The newest boot's word in a container's log, oldest line first; None where none spoke yet. Pure."""
    found: Announced | None = None
    for line in lines:
        said = _LINE.search(line)
        if said is None:
            continue
        guarded = _GUARDED.fullmatch(said["rest"])
        if guarded is not None:
            found = Announced(said["boot"], PurePosixPath(guarded["dir"]), guarded["key"])
        elif said["rest"].startswith("trouble="):
            found = Announced(said["boot"], trouble=said["rest"].removeprefix("trouble=").strip())
    return found
