"""Create or resume: one pod for one run, on the volume that it has, whatever the provider answers.

Repeating it is harmless: a pod that an earlier, broken-off command made is found by its name and taken up. Whatever
goes wrong here, the pod goes back, or the error names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from podctl import ledger as events
from podctl.errors import BadInput, NoCapacity, NothingSent, OfferRefused, PodctlError, ProviderUnclear
from podctl.podname import parse_pod_name
from podctl.pods import Boot, Offer, Pod, PodSpec
from podctl.providers.base import Provider
from podctl.ready import NO_MACHINE_S, READY_S, Ready, Unfit, wait_until_ready
from podctl.ui import Ui, money
from remote.clock import Clock, duration

SETTLE_S = 75.0  # until a list is believed that lacks a pod: reads can be 30 s old
LOOK_S = 5.0
START_S = 240.0  # for a stopped pod to come back; a new one on the same volume is the surer way
END_S = 90.0  # for a pod to be seen ended
ASK_AGAIN_S = 20.0
DEAF_S = 40.0  # of ignoring a termination
UNLISTED_S = 40.0  # reads can be 30 s old
MACHINES = 4  # bad draws in a row, before it is not bad luck any more

Record = Callable[..., None]  # event, pod, detail: a line of the ledger


@dataclass(frozen=True)
class Wish:
    """The pod that a run needs."""

    run_id: str
    pod_name: str
    offers: Sequence[Offer]
    spec: PodSpec
    boot: Boot
    known_pod: str = ""  # the id of the run's last pod, by the ledger
    may_exist: bool = False  # was something begun before, so that a pod of this run may be there?
    asked_at: float | None = None  # when a command meant to create one and said no more: it may not be listed yet


class Renting:
    """One command's way to a pod."""

    def __init__(self, provider: Provider, record: Record, ui: Ui, clock: Clock, wait: Any = wait_until_ready) -> None:
        self.provider = provider
        self._record = record
        self._ui = ui
        self._clock = clock
        self._wait = wait

    def obtain(self, wish: Wish) -> Ready:
        """A pod that answers: the run's own, or a new one.

        Raises NoCapacity, BadInput, NoRights, ProviderUnclear, PodctlError; then no pod of this run is left running,
        or the error names it.
        """
        offers, unfit = list(wish.offers), ""
        found = self._found(wish) if wish.may_exist else None
        for _ in range(MACHINES):
            is_new = found is None
            if found is None:
                found = self._create(replace(wish, offers=offers))
            try:
                return replace(self._ready(found, wish, is_new=is_new), is_new=is_new)
            except Unfit as e:
                unfit = e.message
                self._ui.warn(f"{e.message}: another one")
                self._replace(found, is_new=is_new)
                offers = _without_first(offers) if is_new else offers
                found = None
            except BaseException:
                self.hand_back(found, is_new=is_new)
                raise
        raise NoCapacity(f"{MACHINES} machines in a row would not do; the last: {unfit}", "try another GPU, or later")

    # ---- what is there

    def _found(self, wish: Wish) -> Pod | None:
        """The pod that an earlier command made for this run, on again where it was off; None where there is none, or
        none that will do."""
        living = self._living(wish) or self._listed_late(wish)
        for pod in living[1:]:
            self._ui.warn(f"{pod.name} ({pod.id}) is a second pod of this run")
            self._end(pod, self.provider.terminate)
        if not living:
            return None
        pod = living[0]
        if pod.id != wish.known_pod:
            self._record(events.RECONCILED, pod)
        if pod.state == "broken":
            self._replace(pod, is_new=False)
            return None
        if pod.state != "stopped":
            self._ui.done(f"{pod.name} is there already")
            return pod
        return self._started(pod)

    def _listed_late(self, wish: Wish) -> list[Pod]:
        """The run's pods once the list is settled, where a command died while it was creating one."""
        age_s = self._clock.now() - wish.asked_at if wish.asked_at is not None else SETTLE_S
        until = self._clock.elapsed() + (SETTLE_S - age_s if age_s >= 0 else SETTLE_S)  # a clock may be set back
        living: list[Pod] = []
        while not living and self._clock.elapsed() < until:
            self._ui.live("an earlier command may have made a pod a moment ago: waiting until it would be listed")
            self._clock.sleep(LOOK_S)
            living = self._living(wish)
        self._ui.live("")
        return living

    def _living(self, wish: Wish) -> list[Pod]:
        """The run's pods that are not gone, the best first. Raises ProviderUnclear."""
        mine = {p.id: p for p in self.provider.list() if _is_of(p, wish.run_id)}
        if wish.known_pod and wish.known_pod not in mine:
            mine[wish.known_pod] = self.provider.get(wish.known_pod)
        order = {"running": 0, "starting": 1, "stopped": 2, "broken": 3}
        return sorted((p for p in mine.values() if p.state in order), key=lambda p: (order[p.state], p.id))

    def _started(self, pod: Pod) -> Pod | None:
        """A stopped pod on again; None where its machine is full and a new one can take its volume."""
        try:
            started = self.provider.start(pod.id)
        except NoCapacity as e:
            if not pod.volume:
                raise NoCapacity(
                    f"{e.message}, and its data lies on that machine alone",
                    "try again later; with pod.volume a run can go on anywhere",
                ) from e
            self._ui.note(f"its old machine is full: {pod.name} is given back, a new one takes its volume")
            self._end(pod, self.provider.terminate)
            self._record(events.GONE, pod)
            return None
        return started

    # ---- a new one

    def _create(self, wish: Wish) -> Pod:
        """The first of the offers that is to be had. Raises NoCapacity, BadInput, NoRights, ProviderUnclear."""
        try:
            return self._create_any(wish)
        except ProviderUnclear:
            raise
        except PodctlError:
            self._record(events.RECONCILED)  # nothing was made: the next command need not look for it
            raise

    def _create_any(self, wish: Wish) -> Pod:
        refused: list[tuple[Offer, PodctlError]] = []
        for offer in wish.offers:
            try:
                pod = self._create_one(wish, offer)
            except (NoCapacity, OfferRefused) as e:
                refused.append((offer, e))
                self._ui.note(f"{_named(offer)}: {e.message}")
                continue
            self._ui.done(f"{_named(offer)} at {money(pod.usd_per_hour)} an hour: {pod.name} ({pod.id})")
            return pod
        raise _nobody_has_it(refused)

    def _create_one(self, wish: Wish, offer: Offer) -> Pod:
        try:
            pod = self.provider.create(wish.pod_name, offer, wish.spec, wish.boot)
        except NothingSent:
            raise
        except ProviderUnclear as e:
            self._ui.warn(f"{e.message}: looking whether it was made")
            made = self._reconciled(wish, e)
            if made is None:
                raise NoCapacity(f"no pod was made: {e.message}", "again in a moment") from e
            self._record(events.RECONCILED, made)
            return made
        except KeyboardInterrupt:  # the call was on its way: it may have made one
            made = self._reconciled(wish, ProviderUnclear("it was interrupted", "podctl pods shows what is rented"))
            if made is not None:
                self._record(events.RECONCILED, made)
                self.hand_back(made, is_new=True)
            raise
        self._record(events.CREATED, pod)
        return pod

    def _reconciled(self, wish: Wish, unclear: ProviderUnclear) -> Pod | None:
        """The pod that an unclear answer made, found by its name; None once the list is settled and lacks it.

        Raises ProviderUnclear where no list comes either.
        """
        until, listed = self._clock.elapsed() + SETTLE_S, False
        while True:
            try:
                living, listed = self._living(wish), True
            except ProviderUnclear:
                living = []
            if living:
                for pod in living[1:]:
                    self._end(pod, self.provider.terminate)
                return living[0]
            if self._clock.elapsed() >= until:
                if listed:
                    return None
                raise ProviderUnclear(
                    f"nobody knows whether {wish.pod_name} was made: {unclear.message}",
                    "podctl pods shows what is rented; the same command takes it up",
                ) from unclear
            self._clock.sleep(LOOK_S)

    # ---- until it answers

    def _ready(self, pod: Pod, wish: Wish, *, is_new: bool) -> Ready:
        limit_s = READY_S if is_new or pod.state == "starting" else START_S
        ready: Ready = self._wait(
            self.provider,
            pod,
            max(1, wish.spec.gpu_count),
            self._ui,
            self._clock,
            limit_s=limit_s,
            no_machine_s=NO_MACHINE_S if wish.spec.image is None else READY_S,
        )
        self._ui.done(f"it answered after {duration(ready.boot_s)}")
        return ready

    def _replace(self, pod: Pod, *, is_new: bool) -> None:
        """Give back what won't do, to make room for another. Raises PodctlError where its data would be lost."""
        if not is_new and not pod.volume:
            self.hand_back(pod, is_new=False)
            raise PodctlError(
                f"{pod.name} ({pod.id}) won't do, and the run's data lies on that machine alone: it is stopped",
                f"try again later, or podctl down {pod.id} to give it up",
            )
        self._end(pod, self.provider.terminate, is_new=is_new)
        self._record(events.GONE, pod, is_new=is_new)

    def hand_back(self, pod: Pod, *, is_new: bool) -> None:
        """The end of a launch that failed: it is terminated, or stopped where its data lies on it alone."""
        keeps_data = not is_new and not pod.volume
        self._end(pod, self.provider.stop if keeps_data else self.provider.terminate, is_new=is_new)
        self._record(events.STOPPED if keeps_data else events.GONE, pod, is_new=is_new)

    def _end(self, pod: Pod, how: Callable[[str], None], *, is_new: bool = False) -> None:
        end_pod(self.provider, pod, how, self._clock, is_young=is_new)


def end_pod(provider: Provider, pod: Pod, how: Callable[[str], None], clock: Clock, *, is_young: bool = False) -> Pod:
    """Stop or terminate, and look until it is seen to have ended. Repeating it is harmless. Who can't be terminated is
    told to stop as well, which ends most of the bill.

    A young pod that its provider does not know is not believed to be gone at once: it may not be listed yet. Raises
    ProviderUnclear naming the pod where it goes on, or nobody knows.
    """
    begun = clock.elapsed()
    asked_at: float | None = None
    trouble: PodctlError | None = None
    was_seen = False
    stopping = how == provider.stop
    while True:
        now = clock.elapsed()
        try:
            seen = provider.get(pod.id)
            trouble = None
            was_seen = was_seen or seen.state != "gone"
            if seen.state == "gone" and (was_seen or not is_young or now - begun >= UNLISTED_S):
                return seen
            if stopping and seen.state == "stopped":
                return seen
            if asked_at is None or now - asked_at >= ASK_AGAIN_S:
                how(pod.id)
                if not stopping and provider.can.stop and now - begun >= DEAF_S and seen.state != "stopped":
                    provider.stop(pod.id)
                asked_at = now
                continue
        except ProviderUnclear as e:
            trouble = e
        except PodctlError as e:
            raise still_there(provider.name, pod, e.message) from e
        if now - begun >= END_S and trouble is None and seen.state == "stopped":
            raise ProviderUnclear(
                f"{pod.name} ({pod.id}) at {provider.name} is switched off, and was not deleted: its disk may cost",
                f"podctl down {pod.id}, or delete it on the provider's own page",
            )
        if now - begun >= END_S:
            why = trouble.message if trouble else f"it was told to end {duration(now - begun)} ago, and goes on"
            raise still_there(provider.name, pod, why)
        clock.sleep(LOOK_S)


def still_there(provider: str, pod: Pod, why: str) -> PodctlError:
    return ProviderUnclear(
        f"{pod.name} ({pod.id}) at {provider} may still be there and cost {money(pod.usd_per_hour)} an hour: {why}",
        f"podctl down {pod.id}, or end it on the provider's own page",
    )


def _is_of(pod: Pod, run_id: str) -> bool:
    name = parse_pod_name(pod.name)
    return name is not None and name.is_of(run_id)


def _named(offer: Offer) -> str:
    count = f"{offer.gpu_count} × " if offer.gpu_count > 1 else ""
    where = f" in {offer.data_center}" if offer.data_center else ""
    return f"{count}{offer.gpu}{where}"


def _without_first(offers: list[Offer]) -> list[Offer]:
    """The one that gave a bad machine comes last."""
    return [*offers[1:], *offers[:1]]


def _nobody_has_it(refused: Sequence[tuple[Offer, PodctlError]]) -> PodctlError:
    """What all refusals together mean: where none of them spoke of capacity, the request is at fault."""
    if not refused:
        return NoCapacity("there is nothing to rent", "widen pod.gpu or pod.data_centers")
    offer, last = refused[-1]
    if isinstance(last, OfferRefused) and all(isinstance(e, OfferRefused) for _, e in refused):
        why = last.detail or last.message
        return BadInput(f"{_named(offer)} was refused: {why}", last.hint or "correct pod: in the file")
    tried = ", ".join(dict.fromkeys(_named(o) for o, _ in refused))
    return NoCapacity(f"all sold out: {tried}", "add GPUs to pod.gpu, or try again later; nothing is rented")
