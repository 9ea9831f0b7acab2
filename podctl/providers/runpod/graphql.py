"""What REST v2 has not, over RunPod's older API: the balance, and spot pods. It goes in early 2027. Texts are pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from podctl.errors import BadInput, NoCapacity, OfferRefused, PodctlError, ProviderUnclear
from podctl.pods import Balance, Offer
from podctl.providers.runpod.faults import (
    HOST_FULL,
    NOTHING_FITS,
    SOLD_OUT,
    SPEND,
    Answer,
    Doing,
    fault_of,
    host_full,
    no_capacity,
    no_money,
    says,
)
from podctl.providers.runpod.loose import number

BALANCE = "query { myself { clientBalance currentSpendPerHr spendLimit } }"
SPOT_HINT = "pod.spot: false; RunPod offers spot pods over its old API only, and that is going"


def data_of(answer: Answer, doing: Doing) -> Mapping[str, Any]:
    """The data of an answer; errors come within a 200. Raises PodctlError."""
    body = answer.json if isinstance(answer.json, dict) else None
    errors = body.get("errors") if body else None
    if errors and answer.status in (200, 400):
        raise _fault(answer.detail, doing)
    if not answer.ok or body is None or not isinstance(body.get("data"), dict):
        if answer.status == 410:
            raise BadInput("RunPod has retired its old API (HTTP 410)", SPOT_HINT)
        if answer.ok:
            made = f": {doing.makes} may have been made" * bool(doing.makes)
            raise ProviderUnclear(f"RunPod's old API gave no clear answer{made}", "see what there is: podctl pods")
        raise fault_of(answer, doing)
    return dict(body["data"])


def balance_of(answer: Answer) -> Balance | None:
    """None where this key, or this API, does not tell."""
    body = answer.json if answer.ok and isinstance(answer.json, dict) else {}
    data = body.get("data")
    myself = data.get("myself") if isinstance(data, dict) else None
    usd = number(myself.get("clientBalance")) if isinstance(myself, dict) else None
    if usd is None or not isinstance(myself, dict):
        return None
    return Balance(usd, number(myself.get("currentSpendPerHr")) or 0.0, number(myself.get("spendLimit")))


def spot_price_query(offer: Offer, min_cuda: str) -> str:
    place = f", dataCenterId: {quoted(offer.data_center)}" if offer.data_center else ""
    wanted = f"gpuCount: {offer.gpu_count}, secureCloud: true, minCudaVersion: {quoted(min_cuda)}{place}"
    return (
        f"query {{ gpuTypes(input: {{ id: {quoted(offer.ref)} }}) "
        f"{{ id lowestPrice(input: {{ {wanted} }}) {{ minimumBidPrice stockStatus }} }} }}"
    )


def spot_offer(offer: Offer, data: Mapping[str, Any]) -> Offer | None:
    """The same machine at the lowest bid, None where none is to be had. A bid is for one GPU."""
    kinds = data.get("gpuTypes")
    price = kinds[0].get("lowestPrice") if isinstance(kinds, list) and kinds and isinstance(kinds[0], dict) else None
    bid = number(price.get("minimumBidPrice")) if isinstance(price, dict) else None
    if not bid or not isinstance(price, dict):
        return None
    stock = str(price.get("stockStatus") or "").lower()
    return replace(offer, spot=True, usd_per_hour=round(bid * offer.gpu_count, 4), stock=stock)


def payable(offers: Sequence[Offer], limit: float | None) -> list[Offer]:
    """Raises NoCapacity for none, BadInput where all are dearer than the limit."""
    if not offers:
        raise NoCapacity("RunPod has no such spot machine free now", "try later, or pod.spot: false")
    cheap = [o for o in offers if limit is None or o.usd_per_hour <= limit + 1e-9]
    if not cheap:
        least = min(o.usd_per_hour for o in offers)
        raise BadInput(
            f"the lowest bid is ${least:.2f} an hour, pod.max_usd_per_hour is ${limit:.2f}",
            "raise pod.max_usd_per_hour",
        )
    return cheap


def rent_spot(body: Mapping[str, Any], offer: Offer) -> str:
    """The mutation for what `shapes.create_body` says."""
    mounts = body["mounts"]
    network = mounts["network"][0] if "network" in mounts else None
    place = network or mounts["persistent"]
    fields: dict[str, str] = {
        "name": quoted(body["name"]),
        "imageName": quoted(body["image"]),
        "cloudType": "SECURE",
        "gpuTypeId": quoted(offer.ref),
        "gpuCount": str(offer.gpu_count),
        "bidPerGpu": f"{offer.usd_per_hour / offer.gpu_count:.4f}",
        "containerDiskInGb": str(body["disk"]),
        "volumeInGb": "0" if network else str(place["size"]),
        "volumeMountPath": quoted(place["path"]),
        "ports": quoted(",".join(body["ports"])),
        "dockerArgs": quoted(body.get("args", "")),
        "startSsh": "true",
        "minCudaVersion": quoted(body["gpu"]["minCudaVersion"]),
        "env": "[" + ", ".join(f"{{ key: {quoted(k)}, value: {quoted(v)} }}" for k, v in body["env"].items()) + "]",
    }
    if network:
        fields["networkVolumeId"] = quoted(network["volumeId"])
    if offer.data_center:
        fields["dataCenterId"] = quoted(offer.data_center)
    said = ", ".join(f"{k}: {v}" for k, v in fields.items())
    return f"mutation {{ podRentInterruptable(input: {{ {said} }}) {{ id imageName machineId }} }}"


def quoted(text: str) -> str:
    """A string as GraphQL reads it: JSON's escapes are among its own."""
    return json.dumps(text, ensure_ascii=False)


def _fault(detail: str, doing: Doing) -> PodctlError:
    low = detail.lower()
    if says(detail, HOST_FULL):
        return host_full(detail)
    if says(detail, (*SOLD_OUT, *NOTHING_FITS)):
        return no_capacity(detail)
    if says(detail, SPEND):
        return no_money(detail)
    if "unauthorized" in low:
        return fault_of(Answer(401, {"detail": detail}), doing)
    if "something went wrong" in low:
        return fault_of(Answer(500, {"detail": detail}), doing)
    if doing.of_many:
        return OfferRefused(f"RunPod can't {doing.what}: {detail}", SPOT_HINT, detail)
    return BadInput(f"RunPod can't {doing.what}: {detail}", SPOT_HINT)
