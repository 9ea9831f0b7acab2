"""`pod.provider: runpod`: GPU pods of RunPod's Secure Cloud, rented, stopped, started and given back."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podctl.errors import BadInput, NoCapacity, NothingSent, PodctlError, ProviderUnclear
from podctl.ownkey import own_key_path
from podctl.pods import Balance, Boot, Can, Offer, Pod, PodSpec, Volume
from podctl.providers.runpod import catalogue, graphql, shapes
from podctl.providers.runpod.account import Account, load_account
from podctl.providers.runpod.client import CREATE_S, Client, Fault, NoAnswer, segment
from podctl.providers.runpod.events import log_lines
from podctl.providers.runpod.faults import Answer, Doing, fault_of
from podctl.providers.runpod.loose import number
from remote.clock import Clock, clock_from_env, utc

if TYPE_CHECKING:
    import httpx

OURS = "pc-"  # every pod's name that podctl makes begins so
ACT_TRIES, ACT_WAIT_S = 2, 1.0
QUIET_S, LONGEST_LOG_S = 1.0, 5.0
MOST_LINES = 5000
VOLUME_GB = (10, 4096)


class RunPodProvider:
    """RunPod. The key is looked for when a call first needs it."""

    name = catalogue.PROVIDER
    can = Can(stop=True, tunnel=True, scoped_key=True, balance=True, volumes=True)

    def __init__(
        self,
        account: Account | None = None,
        clock: Clock | None = None,
        transport: "httpx.BaseTransport | None" = None,
        *,
        project_root: Path | None = None,
    ) -> None:
        self._root = project_root
        self._account, self._clock, self._transport = account, clock or clock_from_env(), transport
        self._opened: Client | None = None
        self._volumes: dict[str, Volume] = {}  # by what a person calls it

    @property
    def _client(self) -> Client:
        """Raises NoRights where there is no key."""
        if self._opened is None:
            self._account = self._account or load_account(project_root=self._root)
            self._opened = Client(self._account, self._clock, self._transport)
        return self._opened

    def now(self) -> float:
        """Unix time by RunPod's clock: what a pod's start is told by."""
        return self._client.now()

    # what could be rented

    def offers(self, spec: PodSpec) -> Sequence[Offer]:
        """Ranked; a listing is a hint. Raises BadInput, NoCapacity, NoRights, ProviderUnclear."""
        doing = self._doing("read the catalogue of GPUs")
        volume = self._volume(spec.volume) if spec.volume else None
        wish = {
            "include": "AVAILABILITY",
            "product": "POD",
            "count": spec.gpu_count,
            "cloud": "SECURE",
            "minCudaVersion": shapes.MIN_CUDA,
        }
        gpus = catalogue.gpus_of(self._client.items("/catalog/gpus", "gpus", doing, wish))
        centers = self._centers() if volume is not None or spec.data_centers else []
        ranked = catalogue.rank(spec, gpus, centers, volume)
        return self._spot_offers(ranked, spec) if spec.spot else ranked

    def _spot_offers(self, offers: Sequence[Offer], spec: PodSpec) -> Sequence[Offer]:
        """The same machines by auction: cheaper, taken away within 5 s at any moment, and only over the old API."""
        found = []
        doing = self._doing("read the price of spot pods")
        for offer in offers:
            answer = self._client.graphql(graphql.spot_price_query(offer, shapes.MIN_CUDA), safe=True)
            spot = graphql.spot_offer(offer, graphql.data_of(answer, doing))
            found += [spot] if spot else []
        return graphql.payable(found, spec.max_usd_per_hour)

    def _centers(self) -> Sequence[catalogue.DataCenter]:
        doing = self._doing("read the list of data centres")
        params = {"include": "GPU_AVAILABILITY"}
        return catalogue.centers_of(self._client.items("/catalog/datacenters", "dataCenters", doing, params))

    def _volume(self, wish: str) -> Volume:
        if wish not in self._volumes:
            self._volumes[wish] = catalogue.find_volume(wish, self.volumes())
        return self._volumes[wish]

    # pods

    def create(self, name: str, offer: Offer, spec: PodSpec, boot: Boot) -> Pod:
        """Starts paying. Sent once: see `Provider.create` for what each error means."""
        volume_id = self._volume(spec.volume).id if spec.volume else ""
        body = shapes.create_body(name, offer, spec, boot, volume_id)
        doing = self._doing("create a pod", makes="a pod", of_many=True)
        if offer.spot:
            return self._create_spot(name, offer, body, doing)
        told = self._told(self._sent_once(lambda: self._client.send("POST", "/pods", body, CREATE_S)), doing)
        return priced(self._pod(told), offer)

    def _create_spot(self, name: str, offer: Offer, body: dict[str, Any], doing: Doing) -> Pod:
        mutation = graphql.rent_spot(body, offer)
        answer = self._sent_once(lambda: self._client.graphql(mutation, safe=False, timeout_s=CREATE_S))
        rented = graphql.data_of(answer, doing).get("podRentInterruptable")
        if rented is None:
            raise NoCapacity("RunPod has no such spot machine free now", "try later, or pod.spot: false")
        pod_id = rented.get("id") if isinstance(rented, dict) else None
        if not isinstance(pod_id, str) or not pod_id:
            raise ProviderUnclear("RunPod names no pod: a pod may have been made", "see what there is: podctl pods")
        pod = replace(shapes.pod_of({**body, "id": pod_id, "status": "PROVISIONING"}), data_center=offer.data_center)
        return priced(pod, offer)

    def _sent_once(self, send: Callable[[], Answer]) -> Answer:
        """A call that makes something. Raises ProviderUnclear saying whether something may have been made."""
        try:
            return send()
        except NoAnswer as e:
            if e.sent:
                raise ProviderUnclear(
                    f"{e.message}: a pod may have been made", "see what there is: podctl pods"
                ) from None
            raise NothingSent(f"{e.message}; nothing was made", e.hint) from None

    def start(self, pod_id: str) -> Pod:
        """Start a stopped pod again; harmless again. Its address is another one, told by `get` in some time.

        Raises NoCapacity where its old machine has no GPU free, BadInput where the pod is gone.
        """
        answer = self._act(pod_id, "start", ("starting", "running"))
        if answer is None:
            return self.get(pod_id)
        told = answer.json if isinstance(answer.json, dict) and answer.json.get("id") else self._look(pod_id)
        pod = shapes.gone(pod_id) if told is None else self._pod(told)
        # what is told now may be 30 s old: the state, and the address of the boot before
        return replace(pod, state="starting" if pod.state == "stopped" else pod.state, ssh=None)

    def get(self, pod_id: str) -> Pod:
        """The pod as it is now; state `gone` where RunPod knows none. A pod made a moment ago may be told as gone too:
        who has just made it waits and looks again."""
        told = self._look(pod_id)
        return shapes.gone(pod_id) if told is None else self._pod(told)

    def list(self) -> Sequence[Pod]:
        """All of podctl's, anybody's of this account."""
        told = self._client.items("/pods", "pods", self._doing("list the pods"))
        return [self._pod(t) for t in told if str(t.get("name") or "").startswith(OURS) and t.get("id")]

    def stop(self, pod_id: str) -> None:
        """Raises NoRights, BadInput for a locked pod, ProviderUnclear: it may go on, and cost. Gone is stopped."""
        self._act(pod_id, "stop", ("stopped", "gone"))

    def terminate(self, pod_id: str) -> None:
        """Raises NoRights, ProviderUnclear: it may be there still, and cost. Already gone is success; as with `get`, a
        pod that was made a moment ago may be told as gone."""
        self._act(pod_id, "terminate", ("gone",))

    def _act(self, pod_id: str, verb: str, wanted: tuple[str, ...]) -> Answer | None:
        """Ask for a change of state; None where it has come already. After an unclear answer: look, then ask again."""
        doing = self._doing(f"{verb} the pod {pod_id}")
        path = f"/pods/{segment(pod_id)}"
        trouble: PodctlError = ProviderUnclear("nothing was asked", "again in a moment")
        for n in range(ACT_TRIES):
            self._clock.sleep(n * ACT_WAIT_S)
            try:
                if verb == "terminate":
                    answer = self._client.send("DELETE", path)
                else:
                    answer = self._client.send("POST", f"{path}/action", {"action": verb})
            except NoAnswer as e:
                trouble = e
            else:
                if answer.ok and not answer.is_unclear:
                    return answer
                if answer.says_gone and "gone" in wanted:
                    return None
                trouble = fault_of(answer, doing)
                if answer.status != 409 and not answer.is_unclear:
                    raise trouble
            told = self._look(pod_id)
            if (shapes.gone(pod_id) if told is None else self._pod(told)).state in wanted:
                return None
            if told is not None and told.get("locked") is True and verb == "stop":
                raise BadInput(f"the pod {pod_id} is locked: RunPod does not stop it", "unlock it in RunPod's console")
        raise trouble

    def _look(self, pod_id: str) -> dict[str, Any] | None:
        """What RunPod tells of a pod; None where it says that there is none."""
        answer = self._client.get(f"/pods/{segment(pod_id)}")
        if answer.says_gone:
            return None
        if answer.status == 404:  # a wrong address, a proxy: no proof that the pod is gone
            raise ProviderUnclear(
                f"nobody at {self._client.account.api_url} knows of pods", "is PODCTL_RUNPOD_API_URL right?"
            )
        return self._told(answer, self._doing(f"look at the pod {pod_id}"))

    def _told(self, answer: Answer, doing: Doing) -> dict[str, Any]:
        """The JSON of a pod or a volume. Raises PodctlError."""
        if not answer.ok or answer.is_unclear:
            raise fault_of(answer, doing)
        if not isinstance(answer.json, dict) or not answer.json.get("id"):
            made = f": {doing.makes} may have been made" * bool(doing.makes)
            raise ProviderUnclear(f"RunPod's answer makes no sense{made}", "see what there is: podctl pods")
        return answer.json

    def _pod(self, told: dict[str, Any]) -> Pod:
        return shapes.pod_of(told, str(own_key_path()))

    # the log

    def log_lines(self, pod_id: str, *, since: float | None = None, tail: int = 200) -> Sequence[str]:
        """The newest lines that there are now, oldest first; [] before there are any. Takes a second or so."""
        params: dict[str, Any] = {"source": "container", "tail": max(0, min(tail, MOST_LINES))}
        if since is not None:
            params["since"] = utc(since)
        path = f"/pods/{segment(pod_id)}/logs"
        try:
            lines = [*log_lines(self._client.lines(path, params, QUIET_S, LONGEST_LOG_S))]
        except Fault as e:
            if e.answer.status in (404, 409):  # no container yet
                return []
            raise fault_of(e.answer, self._doing("read the pod's log")) from None
        return lines[-tail:] if tail > 0 else []

    # money

    def billed(self, pod_id: str, since: float) -> float | None:
        """By RunPod's own books, of the hours since the one that `since` is in; None where they do not tell yet."""
        params = {"podId": pod_id, "startTime": utc(since), "bucketSize": "hour"}
        records = self._client.items("/billing/pods", "records", self._doing("read the bill"), params)
        amounts = [number(r.get("totalAmount")) for r in records if r.get("podId") in (pod_id, None)]
        known = [a for a in amounts if a is not None]
        return sum(known) if known else None

    def balance(self) -> Balance | None:
        """None where RunPod does not tell it, or not with this key: only its old API knows it."""
        try:
            return graphql.balance_of(self._client.graphql(graphql.BALANCE, safe=True))
        except ProviderUnclear:
            return None

    # network volumes

    def volumes(self) -> Sequence[Volume]:
        told = self._client.items("/network-volumes", "networkVolumes", self._doing("list the network volumes"))
        return [v for v in map(shapes.volume_of, told) if v.id]

    def create_volume(self, name: str, size_gb: int, data_center: str) -> Volume:
        """Starts paying, by the month. Raises BadInput for a data centre without volumes, naming those that have."""
        least, most = VOLUME_GB
        if not least <= size_gb <= most:
            raise BadInput(
                f"a volume has {least} to {most} GB, not {size_gb}", f"ask for {max(least, min(most, size_gb))} GB"
            )
        centers = self._centers()
        with_volumes = [c for c in centers if c.has_volumes]
        place = catalogue.center_named(data_center, with_volumes)
        if place is None:
            known = catalogue.center_named(data_center, centers) is not None
            what = f"{data_center} has no network volumes" if known else f"RunPod has no data centre {data_center!r}"
            raise BadInput(what, f"those that have: {', '.join(c.id for c in with_volumes)}")
        doing = self._doing("create a volume", makes="a volume")
        body = {"name": name, "size": size_gb, "dataCenter": place}
        try:
            answer = self._client.send("POST", "/network-volumes", body, CREATE_S)
        except NoAnswer as e:
            made = ": a volume may have been made" if e.sent else "; nothing was made"
            raise ProviderUnclear(f"{e.message}{made}", "see what there is: https://console.runpod.io") from None
        told = self._told(answer, doing)
        self._volumes.clear()
        return shapes.volume_of(told)

    def _doing(self, what: str, *, makes: str = "", of_many: bool = False) -> Doing:
        return Doing(what, self._client.account.advice, makes, of_many)


def priced(pod: Pod, offer: Offer) -> Pod:
    """With the offer's price until RunPod tells the pod's own: what is paid for never counts as free."""
    return pod if pod.usd_per_hour > 0 else replace(pod, usd_per_hour=offer.usd_per_hour)
