"""Arming a pod's watchdog: the run's claim on the machine, and what the watchdog says it may do (docs/adr/0013)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from podctl.errors import PodctlError
from podctl.facts import Facts, python_words
from podctl.host import Host
from podctl.pods import Run
from podctl.runs import tool_argv
from podctl.sending import answer_of

LEVELS = ("none", "read", "allowed", "drilled")
ENOUGH = "allowed"
VERDICT_S = 90.0  # the routes' own time limits together


@dataclass(frozen=True)
class Claim:
    """One run's claim on its pod: what the watchdog goes by."""

    run_id: str
    run_dir: str
    disk: str
    tool_dir: str
    deadline_s: float  # from the container's start
    grace_s: float
    fetch_grace_s: float
    on_success: Any  # stop, terminate, {"hold_s": n}
    on_failure: Any
    schema: int = 1


@dataclass(frozen=True)
class Route:
    """A way of ending the pod, and how far it is proved."""

    name: str
    level: str  # none, read, allowed, drilled
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the watchdog may do."""

    routes: Sequence[Route] = field(default_factory=tuple)
    boot: str = ""
    elapsed_s: float = 0.0  # of this boot

    @property
    def best(self) -> Route:
        return max(self.routes, key=lambda r: LEVELS.index(r.level), default=Route("none", "none", "no way at all"))

    @property
    def is_enough(self) -> bool:
        return LEVELS.index(self.best.level) >= LEVELS.index(ENOUGH)

    def drilled(self, proofs: Mapping[str, float]) -> "Verdict":
        """The same with what was seen to end a pod before: route → when."""
        routes = [
            Route(r.name, "drilled", r.detail) if r.name in proofs and r.level == "allowed" else r for r in self.routes
        ]
        return Verdict(routes, self.boot, self.elapsed_s)

    def __str__(self) -> str:
        """`may end it by v2 (drilled), graphql (allowed)`."""
        able = [f"{r.name} ({r.level})" for r in self.routes if LEVELS.index(r.level) >= LEVELS.index(ENOUGH)]
        return f"may end it by {', '.join(able)}" if able else f"can't end it: {self.best.detail}"


def arm(host: Host, facts: Facts, tool_dir: PurePosixPath, guard_dir: PurePosixPath, claim: Claim) -> Verdict:
    """Leave the claim, start the watchdog, hear its verdict. Raises PodctlError where there is none, Unreachable."""
    script = tool_dir / "remote" / "guard.py"
    order = {"claim": asdict(claim), "python": facts.python, "wait_s": VERDICT_S}
    argv = python_words(facts, script, "arm", str(guard_dir))
    result = host.run(argv, stdin=json.dumps(order), timeout_s=VERDICT_S + 30)
    answer = answer_of(result.stdout)
    if answer is None or not answer.get("living"):
        said = (answer or {}).get("error") or (result.stderr.strip().splitlines() or [f"exit code {result.exit_code}"])[
            -1
        ]
        raise PodctlError(f"the watchdog on {host.name} gave no verdict: {said}", "--unguarded trusts nobody but you")
    return parse_verdict(answer)


def parse_verdict(answer: Mapping[str, Any]) -> Verdict:
    """What `guard.py` said. Levels that this version does not know count as none."""
    routes = []
    for r in answer.get("routes") or []:
        level = str(r.get("level", ""))
        routes.append(Route(str(r.get("name", "?")), level if level in LEVELS else "none", str(r.get("detail", ""))))
    return Verdict(tuple(routes), str(answer.get("boot", "")), float(answer.get("elapsed_s") or 0.0))


def hold(host: Host, facts: Facts, tool_dir: PurePosixPath, guard_dir: PurePosixPath, run_id: str, s: float) -> None:
    """Keep a pod without a run for so many seconds. Raises PodctlError, Unreachable."""
    argv = python_words(facts, tool_dir / "remote" / "guard.py", "hold", str(guard_dir), run_id, f"{s:g}")
    result = host.run(argv, timeout_s=20)
    if not result.ok:
        said = (answer_of(result.stdout) or {}).get("error") or result.stderr.strip()
        raise PodctlError(f"the watchdog on {host.name} does not keep it: {said}", "again in a minute")


def others_on(run: Run, host: Host) -> list[str]:
    """The ids of other runs that still have a claim on the run's pod. Raises PodctlError, Unreachable."""
    needing = _ask_guard(run, host, "status").get("needing") or []
    return [str(r) for r in needing if r != run.id]


def tell_fetched(run: Run, host: Host) -> None:
    """The results are home: the watchdog need not wait. Raises PodctlError, Unreachable."""
    _ask_guard(run, host, "fetched", run.id)


def _ask_guard(run: Run, host: Host, verb: str, *words: str) -> dict[str, Any]:
    guard_dir = str(run.detail.get("guard_dir") or "")
    if not guard_dir or "tool_dir" not in run.detail:
        return {}
    return answer_of(host.run([*tool_argv(run, "guard.py"), verb, guard_dir, *words], timeout_s=20).stdout) or {}
