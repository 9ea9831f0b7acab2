"""Fault × phase of `podctl train`, as data: what a cell does, or why there is none. The laws are in `rented.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from support.rented import PHASES, Rented

from podctl.sim.faults import Fault

# codes of D10
OK, FAILED, BAD, NO_RIGHTS, SOLD, UNCLEAR, UNREACHABLE, SAVED = 0, 1, 2, 3, 4, 5, 6, 75

Strike = Callable[[Rented], None]


@dataclass(frozen=True)
class Cell:
    """What happens as the phase begins, and which exit codes are right."""

    strike: Strike
    codes: frozenset[int] = frozenset({OK})
    before: str = ""  # stopped: a run that was stopped, and its pod with it, is resumed
    pod: Mapping[str, object] = field(default_factory=dict)  # keys of the experiment
    ends: bool = True  # can podctl and the pod's guard end the bill while the fault is on?
    rate: float | None = None
    hurry: float | None = None  # the rate while no container runs


@dataclass(frozen=True)
class Row:
    """One fault. `other`: why it is in no other phase."""

    cells: Mapping[str, Cell]
    other: str


def on(*faults: Fault) -> Strike:
    return lambda r: r.sim.faults.add(*faults)


def cell(*does: Fault | Strike, codes: set[int] | None = None, **more: object) -> Cell:
    def strike(r: Rented) -> None:
        for do in does:
            r.sim.faults.add(do) if isinstance(do, Fault) else do(r)

    return Cell(strike, frozenset(codes or {OK}), **more)  # type: ignore[arg-type]


def host_dies(r: Rented) -> None:
    r.sim.kill_host(r.sim.pod())


def is_taken(r: Rented) -> None:
    r.sim.preempt(r.sim.pod())


def is_broke(r: Rented) -> None:
    r.sim.spend_all()


def starts_anew(r: Rented) -> None:
    r.sim.kill_main(r.sim.pod())


CREATE_ONLY = "only a create call meets it"
LISTING = "only a listing tells it; what is sold out after it is sold-out-late"
AT_BIRTH = "it is decided when the pod is made; podctl meets it in the phase after"
AT_START = "it is decided when the container starts"
RESUME_ONLY = "only the start of a stopped pod meets it"
STOP_ONLY = "nothing is stopped in this phase; what podctl gives back while it fails is a pair below"
END_ONLY = "nothing is deleted in this phase; what podctl gives back while it fails is a pair below"
NO_LIST = "no list is read in this phase unless an answer was unclear; that is a pair below"
NO_POD_READ = "no pod is read in this phase"
NOT_ASKED = "nobody asks the API in this phase, neither podctl nor the pod"
NO_LOG = "no log is read in this phase"
NO_POD_YET = "there is no pod yet"
NO_KEY_USED = "the pod's own key ends nothing in this phase"
OVER_GRAPHQL = "nothing is asked over GraphQL in this phase"

LONG = "echo hello; sleep 2; echo bye"  # so that something can befall it while it goes on
WITH_LONG = {"command": LONG}
SPOT = {"spot": True}
OWN_DISK = {"volume": None, "on_success": "stop", "on_failure": "stop"}


def befalls(do: Strike, codes: set[int], **more: object) -> dict[str, Cell]:
    """What happens to a pod that is there, in every phase that has one."""
    pod = dict(more.pop("pod", {}))  # type: ignore[call-overload]
    return {
        phase: cell(do, codes=codes, pod={**pod, **(WITH_LONG if phase == "run" else {})}, **more)
        for phase in ("boot", "arm", "send", "start", "run", "end")
    }


def everywhere(name: str, times: int, phases: tuple[str, ...], **more: object) -> dict[str, Cell]:
    """An answer of the API that goes wrong so often, from the phase's beginning on."""
    return {p: cell(Fault(name, times=times), **more) for p in phases}


MATRIX: Mapping[str, Row] = {
    # create
    "sold-out": Row({
        "offers": cell(Fault("sold-out"), codes={SOLD}),
        "create": cell(Fault("sold-out"), codes={SOLD}),
    }, CREATE_ONLY),
    "sold-out-late": Row({"create": cell(Fault("sold-out-late"), codes={SOLD})}, CREATE_ONLY),
    "spend-limit": Row({"create": cell(Fault("spend-limit"), codes={SOLD})}, CREATE_ONLY),
    "no-balance": Row({
        "offers": cell(is_broke, codes={NO_RIGHTS}),
        "create": cell(Fault("no-balance"), codes={NO_RIGHTS}),
    }, CREATE_ONLY),
    "no-image": Row({"create": cell(Fault("no-image"), codes={BAD})}, CREATE_ONLY),
    "error-after-create": Row({"create": cell(Fault("error-after-create", times=1))}, CREATE_ONLY),
    "hang-after-create": Row({"create": cell(Fault("hang-after-create", times=1))}, CREATE_ONLY),
    "cut-after-create": Row({"create": cell(Fault("cut-after-create", times=1))}, CREATE_ONLY),
    "error-before-create": Row({
        "create": cell(Fault("error-before-create", times=1), codes={SOLD}, hurry=40.0),
    }, CREATE_ONLY),
    "hidden-pod": Row({"create": cell(Fault("hidden-pod", times=1, reads=8))}, CREATE_ONLY),
    # a pod's life
    "slow-boot": Row({"boot": cell(Fault("slow-boot", times=1, seconds=600), hurry=60.0)}, AT_START),
    "no-machine": Row({"create": cell(Fault("no-machine", times=1), hurry=60.0)}, AT_BIRTH),
    "pod-error": Row({"create": cell(Fault("pod-error", times=1))}, AT_BIRTH),
    "zero-gpu": Row({"boot": cell(Fault("zero-gpu", times=1))}, AT_START),
    "late-ssh": Row({"boot": cell(Fault("late-ssh", times=1, seconds=90))}, AT_START),
    "restart-loop": Row({
        "boot": cell(Fault("restart-loop", times=4, seconds=3)),
        **{p: c for p, c in befalls(starts_anew, {OK, FAILED, UNREACHABLE, SAVED}).items() if p != "boot"},
    }, NO_POD_YET),
    "host-gone": Row({
        **befalls(host_dies, {OK, FAILED, UNREACHABLE, SAVED}),
        "boot": cell(Fault("host-gone", times=1, seconds=0)),
    }, NO_POD_YET),
    "preempted": Row({
        **befalls(is_taken, {OK, FAILED, UNREACHABLE, SAVED}, pod=SPOT),
        "boot": cell(Fault("preempted", times=1, seconds=0), pod=SPOT),
    }, NO_POD_YET),
    "balance-gone": Row({
        **befalls(is_broke, {OK, FAILED, NO_RIGHTS, UNREACHABLE, SAVED}),
        "boot": cell(is_broke, codes={NO_RIGHTS}),
    }, NO_POD_YET),
    # actions
    "host-full": Row({"create": cell(Fault("host-full", times=1), before="stopped")}, RESUME_ONLY),
    "stale-port": Row({"boot": cell(before="stopped")}, RESUME_ONLY),
    "stop-ignored": Row({"end": cell(Fault("stop-ignored"), codes={UNCLEAR}, pod=OWN_DISK, ends=False)}, STOP_ONLY),
    "delete-ignored": Row({"end": cell(Fault("delete-ignored"), codes={UNCLEAR}, ends=False)}, END_ONLY),
    "key-cannot-stop": Row({
        "arm": cell(Fault("key-cannot-stop"), codes={NO_RIGHTS}),
        "run": cell(Fault("key-cannot-stop"), pod=WITH_LONG),
        "end": cell(Fault("key-cannot-stop")),
    }, NO_KEY_USED),
    # answers
    "stale-list": Row({
        "offers": cell(Fault("stale-list")),
        "create": cell(Fault("stale-list"), before="stopped"),
    }, NO_LIST),
    "stale-status": Row({
        "boot": cell(Fault("stale-status")),
        "arm": cell(Fault("stale-status")),
        "run": cell(Fault("stale-status"), pod=WITH_LONG),
        "end": cell(Fault("stale-status")),
    }, NO_POD_READ),
    "rate-limited": Row(
        everywhere("rate-limited", 3, ("offers", "create", "boot", "arm", "run", "end")), NOT_ASKED
    ),
    "cloudflare": Row({
        **everywhere("cloudflare", 3, ("offers", "boot", "arm", "run", "end")),
        "create": cell(Fault("cloudflare", times=1), codes={SOLD}, hurry=40.0),
    }, NOT_ASKED),
    "cloudflare-after": Row(
        everywhere("cloudflare-after", 3, ("offers", "create", "boot", "arm", "run", "end")), NOT_ASKED
    ),
    "server-error": Row({
        **everywhere("server-error", 3, ("offers", "boot", "arm", "run", "end")),
        "create": cell(Fault("server-error", times=1), codes={SOLD}, hurry=40.0),
    }, NOT_ASKED),
    "logs-down": Row({"boot": cell(Fault("logs-down", times=4))}, NO_LOG),
    # how the real one may change
    "unknown-keys": Row(everywhere("unknown-keys", -1, ("offers", "create", "boot", "arm", "run", "end")), NOT_ASKED),
    "unknown-status": Row({"boot": cell(Fault("unknown-status"))}, "a pod starts in this phase alone"),
    "paged": Row({
        "offers": cell(lambda r: [r.sim.create_volume(f"v{i}") for i in range(5)], Fault("paged", limit=2)),
    }, NO_LIST),
    "graphql-gone": Row(everywhere("graphql-gone", -1, ("offers", "arm", "run", "end")), OVER_GRAPHQL),
}  # fmt: skip
# two at once: what is given back while something else goes wrong
PAIRS: Mapping[str, tuple[str, Cell]] = {
    "its-answer-is-lost-and-lists-are-old": (
        "create", cell(Fault("error-after-create", times=1), Fault("stale-list", seconds=30))),
    "its-answer-is-lost-and-it-is-hidden": (
        "create", cell(Fault("cut-after-create", times=1), Fault("hidden-pod", times=1, reads=5))),
    "its-answer-is-lost-and-lists-are-paged": (
        "create", cell(Fault("error-after-create", times=1), Fault("paged", limit=1))),
    "no-gpu-and-never-deleted": (
        "boot", cell(Fault("zero-gpu", times=1), Fault("delete-ignored"), codes={UNCLEAR}, ends=False)),
    "no-gpu-and-deleted-at-last": (
        "boot", cell(Fault("zero-gpu", times=1), Fault("delete-ignored", times=2))),
    "no-rights-and-deleted-at-last": (
        "arm", cell(Fault("key-cannot-stop"), Fault("delete-ignored", times=2), codes={NO_RIGHTS})),
    "no-rights-and-a-silent-api": (
        "arm", cell(Fault("key-cannot-stop"), Fault("server-error", method="DELETE", times=3), codes={NO_RIGHTS})),
    "all-four-machines-are-bad": ("boot", cell(Fault("zero-gpu"), codes={SOLD})),
    "every-machine-restarts-for-ever": (
        "boot", cell(Fault("restart-loop", seconds=1), codes={SOLD}, rate=150.0)),
    "no-log-for-ever": ("boot", cell(Fault("logs-down"), codes={UNCLEAR}, rate=60.0)),
    "nothing-but-errors-for-a-quarter-of-an-hour": (
        "boot", cell(Fault("server-error", path="/v2/pods", method="GET", times=60), rate=60.0,
                     codes={OK, UNCLEAR})),
    "it-moves-while-it-runs": (
        "run", cell(lambda r: r.sim.cloud.act(r.sim.pod().id, "restart"), codes={OK, FAILED, UNREACHABLE, SAVED},
                    pod=WITH_LONG)),
    "it-ends-and-the-api-is-silent": ("end", cell(Fault("server-error", path="/v2/pods", times=12))),
    "stopped-on-a-full-host-whose-deletion-is-ignored": (
        "create", cell(Fault("host-full", times=1), Fault("delete-ignored", times=2), before="stopped")),
}  # fmt: skip


QUICK = {("offers", "sold-out"), ("create", "error-after-create"), ("arm", "cloudflare"), ("run", "key-cannot-stop"),
         ("end", "cloudflare-after")}  # fmt: skip


def cells() -> list[tuple[str, str]]:
    return [(fault, phase) for phase in PHASES for fault, row in MATRIX.items() if phase in row.cells]


def reason(fault: str, phase: str) -> str:
    """Why there is no such cell."""
    row = MATRIX[fault]
    assert phase not in row.cells
    return row.other
