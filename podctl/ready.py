"""A rented pod from its create call to the first real SSH command: what its provider says is never believed alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from podctl.boot import parse_announced
from podctl.errors import PodctlError, ProviderUnclear, Unreachable
from podctl.host import Host, host_of
from podctl.pods import Announced, Pod
from podctl.providers.base import Provider
from podctl.ui import Ui, money
from remote.clock import Clock, duration

POLL_S = 3.0
NEW_S = 120.0  # a new pod may be a 404 for so long, and a list may lack it
NO_MACHINE_S = 400.0  # without an address: a bad draw of a machine, which does not mend
READY_S = 1500.0  # a large image takes up to 20 minutes to be pulled
GPUS_S = 30.0  # a driver may need a moment after a start
LATER = "the same command, once the provider is well again"
SEE_GPUS = ("nvidia-smi", "-L")


class Unfit(PodctlError):
    """This pod will never do; another may. It is still there."""


@dataclass(frozen=True)
class Ready:
    """A pod that answered, as the one that was announced."""

    pod: Pod  # with its address and host key
    announced: Announced
    host: Host
    boot_s: float  # how long that took
    is_new: bool = True  # made for this, so that nothing lies on it yet


def wait_until_ready(
    provider: Provider,
    pod: Pod,
    gpu_count: int,
    ui: Ui,
    clock: Clock,
    *,
    limit_s: float = READY_S,
    no_machine_s: float = NO_MACHINE_S,
    reach: Callable[[Pod], Host] = host_of,
) -> Ready:
    """Poll until a command runs there, over SSH to the announced host key, and all GPUs are seen.

    Raises Unfit where this pod won't do, ProviderUnclear where its provider does not say how it is for all that time.
    """
    begun = clock.elapsed()
    seen, unclear = pod, ""
    unclear_since: float | None = None
    lacks_since: float | None = None
    while True:
        waited_s = clock.elapsed() - begun
        try:
            told = provider.get(pod.id)
            seen = replace(told, name=told.name or pod.name)  # of what is gone no name is told
            there, unclear, unclear_since = _look(provider, seen, waited_s), "", None
        except ProviderUnclear as e:
            there, unclear = None, e.message
            unclear_since = waited_s if unclear_since is None else unclear_since
        except Unfit as e:
            if unclear_since is not None and waited_s - unclear_since > NEW_S:  # another one would fare no better
                raise ProviderUnclear(f"{e.message}, and for long nobody said how it was: {unclear}", LATER) from e
            raise
        count = None
        if there is not None:
            host = reach(there[0])
            count = gpus_seen(host)
            if count is not None and count >= gpu_count:
                ui.live("")
                return Ready(*there, host=host, boot_s=waited_s)
        if count is not None:
            lacks_since = waited_s if lacks_since is None else lacks_since
            if waited_s - lacks_since >= GPUS_S:
                raise Unfit(f"{pod.name} came up with {count} of {gpu_count} GPUs")
        _give_up(pod, seen, unclear, waited_s, limit_s, no_machine_s)
        cost = money(waited_s / 3600 * pod.usd_per_hour)
        ui.live(f"waiting for the pod: {unclear or _state(seen)} · {duration(waited_s)} · {cost}")
        clock.sleep(POLL_S)


def _look(provider: Provider, pod: Pod, waited_s: float) -> tuple[Pod, Announced] | None:
    """The pod with its address and announced key, once both are told. Raises Unfit, ProviderUnclear."""
    if pod.state == "gone" and waited_s > NEW_S:
        raise Unfit(f"{pod.name} is gone again")
    if pod.state == "broken":
        raise Unfit(f"{pod.name} is broken, by its provider's word")
    if pod.state == "stopped" and waited_s > NEW_S:
        raise Unfit(f"{pod.name} was stopped while it was waited for")
    if pod.state != "running" or pod.ssh is None:
        return None
    announced = announced_by(provider, pod)
    if announced is None:
        return None
    if announced.trouble:  # its boot guard goes on trying
        if waited_s > NEW_S:
            raise Unfit(f"{pod.name}: {announced.trouble}")
        return None
    return with_key(pod, announced), announced


def gpus_seen(host: Host) -> int | None:
    """How many GPUs the driver lists there; None where the machine does not answer: not yet, or by a stale address a
    stranger does, who is sent nothing."""
    try:
        result = host.run(SEE_GPUS, timeout_s=60)
    except Unreachable:
        return None
    return sum(line.startswith("GPU ") for line in result.stdout.splitlines()) if result.ok else 0


def announced_by(provider: Provider, pod: Pod) -> Announced | None:
    """What the pod's log says of this start; None where it does not say yet. Raises ProviderUnclear."""
    log_lines = getattr(provider, "log_lines", None)
    return parse_announced(log_lines(pod.id, since=pod.started_at)) if log_lines is not None else None


def with_key(pod: Pod, announced: Announced) -> Pod:
    """The pod's address with the one host key that is spoken to there."""
    assert pod.ssh is not None
    return replace(pod, ssh=replace(pod.ssh, host_key=announced.host_key))


def _give_up(pod: Pod, seen: Pod, unclear: str, waited_s: float, limit_s: float, no_machine_s: float) -> None:
    if waited_s > limit_s:
        if unclear:
            raise ProviderUnclear(f"nobody says how {pod.name} is: {unclear}", f"podctl pods, podctl down {pod.id}")
        raise Unfit(f"{pod.name} did not answer within {duration(limit_s)} ({_state(seen)})")
    if seen.ssh is None and waited_s > no_machine_s and not unclear:
        raise Unfit(f"{pod.name} has no address after {duration(waited_s)}: its machine is a bad one")


def _state(pod: Pod) -> str:
    if pod.state != "running":
        return pod.state
    return "running, no address yet" if pod.ssh is None else "running, ssh does not answer yet"
