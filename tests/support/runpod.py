"""A RunPod that behaves, within this process: enough of REST v2 and of the old API for a client to be driven against.

Every request is held against the official description; `faults` collects what is wrong with any. What it should do
amiss is asked for a call at a time: `amiss["POST /pods"] = [answer, …]`; a function in place of an answer may raise.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from pydantic import SecretStr
from support.openapi import OpenApi

from podctl.providers.runpod.account import Account
from podctl.providers.runpod.provider import RunPodProvider

KEY = "rpa_T0P5ECRET0123456789"
ACCOUNT = Account(SecretStr(KEY))
SPEC = OpenApi.runpod()
SOLD_OUT = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
KINDS = {  # id → name, dollars, most in one machine, data centres with stock
    "NVIDIA GeForce RTX 4090": ("RTX 4090", 0.69, 8, {"EU-RO-1": "LOW", "US-KS-2": "HIGH"}),
    "NVIDIA L40S": ("L40S", 0.86, 8, {"EU-RO-1": "HIGH", "US-KS-2": "MEDIUM"}),
    "NVIDIA A100 80GB PCIe": ("A100 PCIe", 1.39, 8, {"EU-RO-1": "MEDIUM"}),
    "NVIDIA A100-SXM4-80GB": ("A100 SXM", 1.49, 8, {"US-KS-2": "LOW"}),
    "NVIDIA H100 80GB HBM3": ("H100 SXM", 2.69, 8, {"US-KS-2": "NONE"}),
    "NVIDIA H100 PCIe": ("H100 PCIe", 2.39, 4, {}),
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": ("H100 MIG", 0.4, 1, {"US-KS-2": "HIGH"}),
    "NVIDIA L40": ("L40", 0.99, 8, {"EU-RO-1": "LOW"}),
}
SOLD = {"EU-RO-1": {"NVIDIA H100 PCIe"}, "US-KS-2": {"NVIDIA H100 PCIe"}, "AP-JP-1": {"NVIDIA B200"}}


class ManualClock:
    """Sleeping moves it, and is noted."""

    def __init__(self) -> None:
        self.t = 1_800_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.t

    def elapsed(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(seconds)
            self.t += seconds


@dataclass
class Cloud:
    """One account."""

    clock: ManualClock = field(default_factory=ManualClock)
    pods: dict[str, dict] = field(default_factory=dict)
    volumes: list[dict] = field(default_factory=list)
    amiss: dict[str, list] = field(default_factory=dict)  # "METHOD /path" → answers in place of the right ones
    requests: list[httpx.Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    page_size: int = 0  # 0: a server that knows no pages
    balance: object = field(
        default_factory=lambda: {"clientBalance": 12.5, "currentSpendPerHr": 0.69, "spendLimit": 80}
    )
    bid: float | None = 0.2
    log: str = ""
    extra: dict = field(default_factory=dict)  # keys that nobody knows, in every object

    def provider(self, account: Account = ACCOUNT) -> RunPodProvider:
        return RunPodProvider(account, self.clock, httpx.MockTransport(self.handle))

    def calls(self, method: str = "", path: str = "") -> list[httpx.Request]:
        return [r for r in self.requests if r.method.startswith(method) and path in r.url.path]

    def bodies(self, method: str, path: str) -> list[dict]:
        return [json.loads(r.content) for r in self.calls(method, path) if r.content]

    def volume(self, id_: str, name: str, center: str) -> dict:
        self.volumes.append({"id": id_, "name": name, "size": 50, "dataCenter": center, "type": "STANDARD"})
        return self.volumes[-1]

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        if path == "/graphql":
            what = f"{request.method} graphql"
        else:
            self._hold_against_the_description(request)
            what = f"{request.method} {path.removeprefix('/v2')}"
        waiting = next((self.amiss[k] for k in (what, "any") if self.amiss.get(k)), None)
        if waiting:
            answer = waiting.pop(0)
            answer = answer(request) if callable(answer) else answer
            if answer is not None:
                return answer
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return problem(401, "invalid api key")
        if path == "/graphql":
            return self._graphql(json.loads(request.content)["query"])
        return self._rest(request, path.removeprefix("/v2").strip("/").split("/"))

    def _hold_against_the_description(self, request: httpx.Request) -> None:
        query = {k: v for k, v in request.url.params.items() if k != "cursor"}  # newer than our copy
        told = SPEC.request_faults(request.method, request.url.path, query, request.content, request.headers)
        self.faults += [f"{request.method} {request.url.path}: {fault}" for fault in told]

    def _rest(self, request: httpx.Request, parts: list[str]) -> httpx.Response:
        method, params = request.method, request.url.params
        match (method, *parts):
            case ("GET", "catalog", "gpus"):
                return self._list("gpus", [self._gpu(i) for i in KINDS], params)
            case ("GET", "catalog", "datacenters"):
                return self._list("dataCenters", [self._center(c) for c in ("EU-RO-1", "US-KS-2", "AP-JP-1")], params)
            case ("GET", "network-volumes"):
                return self._list("networkVolumes", self.volumes, params)
            case ("POST", "network-volumes"):
                body = json.loads(request.content)
                made = self.volume(f"vol{len(self.volumes)}", body["name"], body["dataCenter"])
                return httpx.Response(201, json={**made, "size": body["size"]})
            case ("GET", "pods"):
                return self._list("pods", list(self.pods.values()), params)
            case ("POST", "pods"):
                return httpx.Response(201, json=self.make(json.loads(request.content)))
            case (_, "pods", id_, *_) if id_ not in self.pods:
                return problem(404, "pod not found")
            case ("GET", "pods", id_):
                return httpx.Response(200, json=self.pods[id_] | self.extra)
            case ("DELETE", "pods", id_):
                del self.pods[id_]
                return httpx.Response(204)
            case ("POST", "pods", id_, "action"):
                return self._act(self.pods[id_], json.loads(request.content)["action"])
            case ("GET", "pods", id_, "logs"):
                return httpx.Response(200, text=self.log, headers={"content-type": "text/event-stream"})
            case ("GET", "billing", "pods"):
                return self._list("records", [r for r in self.records if r["podId"] == params["podId"]], params)
        return problem(404, "resource not found")

    records: list[dict] = field(default_factory=list)

    def _list(self, name: str, items: list[dict], params: httpx.QueryParams) -> httpx.Response:
        items = [i | self.extra for i in items]
        if not self.page_size:
            return httpx.Response(200, json={name: items} | self.extra)
        at = int(params.get("cursor", "0"))
        end = at + self.page_size
        more = end < len(items)
        page = {"nextCursor": str(end) if more else None, "hasNextPage": more}
        return httpx.Response(200, json={name: items[at:end], "pagination": page} | self.extra)

    def _gpu(self, id_: str) -> dict:
        name, usd, most, stock = KINDS[id_]
        levels = [level for level in stock.values() if level != "NONE"]
        centers = [{"id": c, "name": c, "availability": level} for c, level in stock.items()]
        return {
            "id": id_, "name": name, "pool": None, "manufacturer": "NVIDIA", "memory": 80, "secure": True,
            "community": True, "price": {"secure": usd, "community": usd / 2},
            "maxCount": {"secure": most, "community": 1},
            "availability": levels[0] if levels else "NONE",
        } | ({"dataCenters": centers} if centers else {})  # fmt: skip

    def _center(self, id_: str) -> dict:
        kinds = {i for i, (_, _, _, stock) in KINDS.items() if id_ in stock} | SOLD[id_]
        return {
            "id": id_, "name": id_, "region": "EUROPE", "globalNetwork": True, "compliance": [],
            "networkVolumeTypes": [] if id_ == "AP-JP-1" else ["STANDARD"],
            "gpuAvailability": [{"id": k, "name": k, "availability": "HIGH"} for k in sorted(kinds)],
        }  # fmt: skip

    def make(self, body: dict) -> dict:
        id_ = f"pod{next(_numbers)}"
        self.pods[id_] = {
            "id": id_, "name": body["name"], "status": "PROVISIONING", "actions": ["stop", "terminate"],
            "image": body["image"], "args": body.get("args", ""), "disk": body["disk"], "mounts": body["mounts"],
            "ports": body["ports"], "env": body["env"], "registry": None, "gpu": body["gpu"], "cloud": "SECURE",
            "dataCenterId": (body.get("dataCenterIds") or ["US-KS-2"])[0], "cudaVersion": None, "template": None,
            "ssh": {"proxy": None, "direct": None}, "cost": 0.69, "locked": False, "runtime": None,
            "globalNetworking": {"enabled": False}, "createdAt": "2026-11-21T12:00:00Z", "startedAt": None,
        }  # fmt: skip
        return self.pods[id_] | self.extra

    def run(self, id_: str, port: int = 34446) -> dict:
        direct = {
            "host": "195.26.233.3",
            "port": port,
            "username": "root",
            "command": f"ssh root@195.26.233.3 -p {port}",
        }
        proxy = {
            "host": "ssh.runpod.io",
            "port": 22,
            "username": f"{id_}-64411eb2",
            "command": f"ssh {id_}-64411eb2@ssh.runpod.io",
        }
        self.pods[id_] |= {
            "status": "RUNNING", "actions": ["stop", "restart", "terminate"], "ssh": {"proxy": proxy, "direct": direct},
            "startedAt": "2026-11-21T12:02:00.5Z",
        }  # fmt: skip
        return self.pods[id_]

    def _act(self, pod: dict, verb: str) -> httpx.Response:
        if verb not in pod["actions"]:
            return problem(409, "Action not valid for current pod status")
        if verb == "stop":
            pod |= {"status": "EXITED", "actions": ["start", "terminate"], "ssh": {"proxy": None, "direct": None}}
        else:
            pod |= {"status": "STARTING", "actions": ["stop", "terminate"]}
        return httpx.Response(200, json=pod | self.extra)

    def _graphql(self, query: str) -> httpx.Response:
        if "myself" in query:
            return httpx.Response(200, json={"data": {"myself": self.balance}})
        if "lowestPrice" in query:
            price = {"minimumBidPrice": self.bid, "stockStatus": "High"}
            return httpx.Response(200, json={"data": {"gpuTypes": [{"id": "x", "lowestPrice": price}]}})
        return httpx.Response(200, json={"data": {"podRentInterruptable": {"id": "spot1", "machineId": "m"}}})


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: object) -> httpx.Response:
    body = {"title": "x", "status": status, "detail": detail, **more}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json", **(headers or {})})


def refusing(error: type[httpx.HTTPError], text: str = "no") -> Callable[[httpx.Request], httpx.Response]:
    """In place of an answer: the connection fails so."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise error(text, request=request)

    return fail


def making(cloud: Cloud, then: httpx.Response | Callable) -> Callable[[httpx.Request], httpx.Response]:
    """A pod is made, and something else is said."""

    def lie(request: httpx.Request) -> httpx.Response:
        cloud.make(json.loads(request.content))
        return then(request) if callable(then) else then

    return lie


_numbers = itertools.count(1)
PAGE = httpx.Response(
    502, text="<!DOCTYPE html><html><title>Bad gateway | Cloudflare</title>", headers={"content-type": "text/html"}
)
