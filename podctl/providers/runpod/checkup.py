"""`podctl doctor` for RunPod: what an account and an experiment's wishes are like there. Looking rents nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from podctl.errors import PodctlError
from podctl.findings import BAD, OK, WARN, Finding, finding_of
from podctl.ownkey import own_key_path
from podctl.pods import Balance, Offer, Pod, PodSpec, Volume
from podctl.providers.runpod.account import BILLING_PAGE, Account, load_account
from podctl.providers.runpod.catalogue import find_volume
from podctl.providers.runpod.provider import RunPodProvider

WHERE = "runpod"
FIRST_HOUR = 1.0  # hours of credit that RunPod wants to see before it rents (2026)


@dataclass(frozen=True)
class Seen:
    """What RunPod told. In place of each a fault, where it told none."""

    source: str = ""  # where the key was found
    shadows: bool = False
    key: bool = False  # is podctl's own SSH key there already?
    pods: Sequence[Pod] | PodctlError = ()
    balance: Balance | None = None
    volume: Volume | PodctlError | None = None  # None: none is asked for
    offers: Sequence[Offer] | PodctlError = field(default=())


def check_account(spec: PodSpec, provider: RunPodProvider | None = None) -> Iterator[Finding]:
    """The key, what it may do, the money, and whether the experiment's wishes can be had."""
    try:
        account = load_account()
    except PodctlError as e:
        yield finding_of(e, WHERE, "key")
        return
    yield from judge(look(account, spec, provider or RunPodProvider(account)), spec)


def look(account: Account, spec: PodSpec, provider: RunPodProvider) -> Seen:
    """Ask; a key that may not even list pods is asked nothing more."""
    base = Seen(account.source, account.shadows, own_key_path().exists())
    try:
        pods = provider.list()
    except PodctlError as e:
        return Seen(base.source, base.shadows, base.key, pods=e)
    volume: Volume | PodctlError | None = None
    offers: Sequence[Offer] | PodctlError
    try:
        volume = find_volume(spec.volume, provider.volumes()) if spec.volume else None
    except PodctlError as e:
        volume = e
    try:
        offers = () if isinstance(volume, PodctlError) else provider.offers(spec)
    except PodctlError as e:
        offers = e
    return Seen(base.source, base.shadows, base.key, pods, provider.balance(), volume, offers)


def judge(seen: Seen, spec: PodSpec) -> Iterator[Finding]:
    """Pure."""

    def say(level: str, about: str, text: str, fix: str = "", exit_code: int = 3) -> Finding:
        return Finding(level, WHERE, about, text, fix if level != OK else "", exit_code)

    if isinstance(seen.pods, PodctlError):
        yield finding_of(seen.pods, WHERE, "key")
        return
    yield say(OK, "key", f"RUNPOD_API_KEY ({seen.source}) may read; whether it may rent is seen at the first pod")
    if seen.shadows:
        text = "the environment's RUNPOD_API_KEY hides another one in .runpod.env"
        yield say(WARN, "key", text, "unset RUNPOD_API_KEY, if it is a pod's own or an old one")
    yield say(OK, "ssh-key", "podctl's own SSH key " + ("is there" if seen.key else "is made with the first pod"))
    yield from _judge_pods(seen.pods)
    yield from _judge_balance(seen.balance, seen.offers)
    if isinstance(seen.volume, PodctlError):
        yield finding_of(seen.volume, WHERE, "volume")
        return
    if seen.volume is None:
        text = "no network volume: what a run leaves on a pod is lost when the pod is terminated"
        yield say(WARN, "volume", text, "name one: pod.volume; RunPod's console makes them, by the month")
    else:
        v = seen.volume
        yield say(OK, "volume", f"volume {v.name} ({v.id}), {v.size_gb} GB in {v.data_center}")
    if spec.spot:
        text = "pod.spot: taken away at any moment with 5 s of notice; rented over RunPod's old API, which is going"
        yield say(WARN, "spot", text, "checkpoint often: what is not saved is lost; or pod.spot: false")
    if isinstance(seen.offers, PodctlError):
        fault = finding_of(seen.offers, WHERE, "gpu")
        sold_out = seen.offers.exit_code == 4  # an hour later it may be another story
        yield Finding(WARN if sold_out else BAD, WHERE, "gpu", fault.text, fault.fix, fault.exit_code)
    elif seen.offers:
        best = seen.offers[0]
        place, stock = f" in {best.data_center}" * bool(best.data_center), f", stock {best.stock}" * bool(best.stock)
        more = len(seen.offers) - 1
        rest = f"; {more} more after it" * bool(more)
        text = f"{best.gpu_count} × {best.gpu}{place} for ${best.usd_per_hour:.2f} an hour{stock}{rest}"
        yield say(OK, "gpu", text)


def _judge_pods(pods: Sequence[Pod]) -> Iterator[Finding]:
    there = [p for p in pods if p.state != "gone"]
    if not there:
        yield Finding(OK, WHERE, "pods", "no pod of podctl's is there")
        return
    usd = sum(p.usd_per_hour for p in there)
    names = ", ".join(f"{p.name} ({p.state})" for p in there)
    yield Finding(WARN, WHERE, "pods", f"pods are there, ${usd:.2f} an hour: {names}", "podctl ps says whose they are")


def _judge_balance(balance: Balance | None, offers: Sequence[Offer] | PodctlError) -> Iterator[Finding]:
    if balance is None:
        text = "RunPod does not tell this key the balance: no run is held against it"
        yield Finding(OK, WHERE, "balance", text)
        return
    usd_per_hour = 0.0 if isinstance(offers, PodctlError) or not offers else offers[0].usd_per_hour
    limit = balance.limit_usd_per_hour
    text = f"balance ${balance.usd:.2f}, spending ${balance.usd_per_hour:.2f} an hour"
    text += f" of at most ${limit:.2f}" if limit is not None else ""
    if balance.usd <= usd_per_hour * FIRST_HOUR:
        yield Finding(BAD, WHERE, "balance", f"{text}: too little to rent", f"add credit: {BILLING_PAGE}", 3)
    elif limit is not None and balance.usd_per_hour + usd_per_hour > limit:
        fix = f"raise it: {BILLING_PAGE}; RunPod would say that it is sold out"
        yield Finding(WARN, WHERE, "balance", f"{text}: another pod would pass the spend limit", fix, 3)
    else:
        yield Finding(OK, WHERE, "balance", text)
