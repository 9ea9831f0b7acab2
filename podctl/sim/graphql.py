"""GraphQL of the emulated RunPod: what `runpod` 1.12 asks, what a pod's own key may, spot, and the balance."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from podctl.sim.catalogue import Gpu
from podctl.sim.cloud import Cloud
from podctl.sim.faults import Occasion
from podctl.sim.graphql_text import Field, GraphQlSyntaxError, parse
from podctl.sim.keys import NONE, READ, Caller, PodRights
from podctl.sim.records import EXITED, RUNNING, TERMINATED, Pod, Wish
from podctl.sim.refusals import Refused
from podctl.sim.shapes import Outlook, level
from podctl.sim.wire import JSON, Answer, Request, answer, problem

OPEN = ("gpuTypes", "dataCenters")  # answered without a key
LEVELS = {"NONE": None, "LOW": "Low", "MEDIUM": "Medium", "HIGH": "High"}
DESIRED = {EXITED: EXITED, TERMINATED: TERMINATED}


class Denied(Exception):
    """An error in the answer's `errors`, with its code."""

    def __init__(self, message: str, code: str = "RUNPOD") -> None:
        super().__init__(message)
        self.code = code


class GraphQl:
    """`POST /graphql` of one cloud."""

    def __init__(self, cloud: Cloud, outlook: Outlook, rights: PodRights) -> None:
        self.cloud, self.outlook, self.rights = cloud, outlook, rights
        self._queries: dict[str, Callable[[Field, Caller], Any]] = {
            "myself": self._myself,
            "pod": self._pod,
            "gpuTypes": self._gpus,
            "dataCenters": self._centers,
        }
        self._mutations: dict[str, Callable[[Field, Caller], Any]] = {
            "podFindAndDeployOnDemand": self._deploy,
            "podRentInterruptable": self._rent,
            "podStop": self._stop,
            "podResume": self._resume,
            "podBidResume": self._resume,
            "podTerminate": self._terminate,
            "updateUserSettings": self._settings,
        }

    def answer(self, request: Request, caller: Caller) -> Answer:
        if self.cloud.faults.peek("graphql-gone"):
            return problem(410, "GraphQL has been retired. Please use https://api.runpod.io/v2.")
        if request.method != "POST":
            return problem(405, "The requested method is not allowed for this path.", headers={"Allow": "POST"})
        if caller.name == "wrong":
            return problem(401, "invalid api key")
        try:
            sent = json.loads(request.body)
            operation = parse(sent["query"], sent.get("variables"))
        except (ValueError, KeyError, TypeError) as e:
            said = str(e) if isinstance(e, GraphQlSyntaxError) else "Must provide query string."
            return _invalid(said, "GRAPHQL_PARSE_FAILED")
        known = self._queries if operation.kind == "query" else self._mutations
        data: dict[str, Any] = {}
        errors = []
        for asked in operation.fields:
            if asked.name not in known:
                type = "Query" if operation.kind == "query" else "Mutation"
                return _invalid(f'Cannot query field "{asked.name}" on type "{type}".')
            try:
                if not caller.is_known and asked.name not in OPEN:
                    raise Denied("Unauthorized")
                data[asked.key] = select(known[asked.name](asked, caller), asked)
            except Unselectable as e:
                return _invalid(str(e))
            except (Denied, Refused) as e:
                data[asked.key] = None
                code = e.code if isinstance(e, Denied) else _code(e)
                errors.append({"message": str(e), "path": [asked.key], "extensions": {"code": code}})
        return answer({"errors": errors, "data": data} if errors else {"data": data})

    # queries

    def _myself(self, asked: Field, caller: Caller) -> Any:
        if not caller.is_account:
            raise Denied("Unauthorized")
        cloud = self.cloud
        cloud.settle()
        return {
            "id": "user_SIM",
            "email": "me@example.com",
            "pubKey": "\n".join(cloud.ssh_keys),
            "clientBalance": round(cloud.balance_usd, 6),
            "currentSpendPerHr": round(cloud.usd_per_hour, 6),
            "spendLimit": int(cloud.spend_limit_usd),
            "pods": [self._shown(p) for p in cloud.live() if not p.hidden_reads],
            "networkVolumes": [
                {"id": v.id, "name": v.name, "size": v.size_gb, "dataCenterId": v.data_center}
                for v in cloud.volumes.values()
            ],
        }

    def _pod(self, asked: Field, caller: Caller) -> Any:
        id = _input(asked).get("podId", "")
        self._check(caller, id, READ)
        try:
            return self._shown(self.cloud.pod(id))
        except Refused:
            return None

    def _gpus(self, asked: Field, caller: Caller) -> Any:
        wanted = (asked.arguments.get("input") or {}).get("id")
        return [self._gpu(g) for g in self.cloud.catalogue.gpus.values() if wanted in (None, g.id)]

    def _centers(self, asked: Field, caller: Caller) -> Any:
        return [
            {
                "id": c.id,
                "name": c.name,
                "location": c.region,
                "listed": True,
                "gpuAvailability": [
                    {"gpuTypeId": g.id, "displayName": g.name, "stockStatus": LEVELS[level(self.cloud, g.id, c.id)]}
                    for g in self.cloud.catalogue.gpus.values()
                ],
            }
            for c in self.cloud.catalogue.data_centers.values()
        ]

    # mutations

    def _deploy(self, asked: Field, caller: Caller) -> Any:
        return self._create(asked, caller, None)

    def _rent(self, asked: Field, caller: Caller) -> Any:
        bid = _input(asked).get("bidPerGpu")
        if not isinstance(bid, int | float):
            raise Denied("bidPerGpu is required", "BAD_USER_INPUT")
        return self._create(asked, caller, float(bid))

    def _create(self, asked: Field, caller: Caller, bid: float | None) -> Any:
        if not caller.is_account:
            raise Denied("Unauthorized")
        wish = read_input(_input(asked), bid)
        if wish.volume and not wish.data_centers and wish.volume in self.cloud.volumes:
            raise Denied("dataCenterId is required with networkVolumeId", "BAD_USER_INPUT")
        return self._shown(self.cloud.create(wish))

    def _stop(self, asked: Field, caller: Caller) -> Any:
        pod = self._own(asked, caller)
        self.cloud.act(pod.id, "stop")
        shown = self._shown(pod)
        if pod.ignored_stop:
            pod.ignored_stop = False
            shown["desiredStatus"] = EXITED
        return shown

    def _resume(self, asked: Field, caller: Caller) -> Any:
        pod = self._own(asked, caller)
        count = _input(asked).get("gpuCount", pod.wish.count)
        if not count:
            raise Denied("There are not enough free GPUs on the host machine to start this pod.")
        return self._shown(self.cloud.act(pod.id, "start"))

    def _terminate(self, asked: Field, caller: Caller) -> Any:
        pod = self._own(asked, caller, "pod not found to terminate")
        self.cloud.terminate(pod.id)
        return None

    def _settings(self, asked: Field, caller: Caller) -> Any:
        if not caller.is_account:
            raise Denied("Unauthorized")
        self.cloud.ssh_keys = [k for k in str(_input(asked).get("pubKey", "")).split("\n") if k.strip()]
        return {"id": "user_SIM", "pubKey": "\n".join(self.cloud.ssh_keys)}

    # helpers

    def _own(self, asked: Field, caller: Caller, missing: str = "pod not found") -> Pod:
        """The pod that is meant, if that key may change it."""
        id = _input(asked).get("podId", "")
        self._check(caller, id, "stop")
        try:
            return self.cloud.pod(id)
        except Refused:
            raise Denied(missing, "POD_NOT_FOUND") from None

    def _check(self, caller: Caller, id: str, need: str) -> None:
        if caller.is_account:
            return
        right = self.rights.graphql
        if caller.pod != id or right == NONE or (need != READ and right == READ):
            raise Denied("Unauthorized")
        if need != READ and self.cloud.faults.take("key-cannot-stop", Occasion(self.cloud.pods[id].wish.name)):
            raise Denied("Unauthorized")

    def _shown(self, pod: Pod) -> dict[str, Any]:
        wish, up = pod.wish, pod.status == RUNNING and pod.has_address
        port = {"ip": self.outlook.ip, "isIpPublic": True, "privatePort": 22, "publicPort": pod.port, "type": "tcp"}
        gpu = self.cloud.catalogue.gpus[wish.gpu]
        return {
            "id": pod.id,
            "name": wish.name,
            "imageName": wish.image,
            "env": [f"{k}={v}" for k, v in {**self.outlook.env, **wish.env}.items()],
            "machineId": pod.host,
            "machine": {"podHostId": pod.token, "gpuDisplayName": gpu.name},
            "containerDiskInGb": wish.disk_gb,
            "costPerHr": 0.0 if pod.status == EXITED else pod.usd_per_hour,
            "desiredStatus": DESIRED.get(pod.status, RUNNING),
            "dockerArgs": wish.args,
            "dockerId": None,
            "gpuCount": wish.count,
            "lastStatusChange": f"{pod.status} by emulator",
            "memoryInGb": 62,
            "podType": "INTERRUPTABLE" if wish.bid_usd is not None else "RESERVED",
            "port": None,
            "ports": ",".join(wish.ports),
            "uptimeSeconds": int(self.cloud.t - pod.started_at) if up and pod.started_at else 0,
            "vcpuCount": 8,
            "volumeInGb": wish.volume_gb,
            "volumeMountPath": self.outlook.mount_dir(pod) if self.outlook.mount_dir else wish.mount,
            "networkVolumeId": wish.volume or None,
            "runtime": {"uptimeInSeconds": 0, "ports": [port] if pod.wants_ssh else []} if up else None,
        }

    def _gpu(self, gpu: Gpu) -> dict[str, Any]:
        return {
            "id": gpu.id,
            "displayName": gpu.name,
            "manufacturer": "Nvidia",
            "memoryInGb": gpu.memory_gb,
            "cudaCores": 0,
            "secureCloud": True,
            "communityCloud": True,
            "securePrice": gpu.secure_usd,
            "communityPrice": gpu.community_usd,
            "oneMonthPrice": None,
            "threeMonthPrice": None,
            "oneWeekPrice": None,
            "communitySpotPrice": gpu.spot_usd,
            "secureSpotPrice": gpu.spot_usd,
            "maxGpuCount": gpu.max_count,
            "lowestPrice": {
                "minimumBidPrice": gpu.spot_usd,
                "uninterruptablePrice": gpu.secure_usd,
                "stockStatus": LEVELS[level(self.cloud, gpu.id, None)],
            },
        }


class Unselectable(ValueError):
    """A field that a type has not."""


def select(value: Any, asked: Field) -> Any:
    """Of a value the fields that are asked for. Raises Unselectable."""
    if isinstance(value, list):
        return [select(v, asked) for v in value]
    if not isinstance(value, Mapping) or not asked.fields:
        return value
    for f in asked.fields:
        if f.name not in value:
            raise Unselectable(f'Cannot query field "{f.name}" on type "{asked.name[:1].upper()}{asked.name[1:]}".')
    return {f.key: select(value[f.name], f) for f in asked.fields}


def read_input(given: Mapping[str, Any], bid: float | None) -> Wish:
    """A deploy's input. What RunPod takes and does not act on (`stopAfter`, `terminateAfter`) is not acted on."""
    center = given.get("dataCenterId")
    cloud = given.get("cloudType", "SECURE")
    return Wish(
        name=str(given.get("name", "")),
        image=str(given.get("imageName", "")),
        gpu=str(given.get("gpuTypeId", "")),
        count=int(given.get("gpuCount") or 1),
        args=str(given.get("dockerArgs") or ""),
        disk_gb=int(given.get("containerDiskInGb") or 10),
        env={e["key"]: e["value"] for e in given.get("env") or ()},
        ports=tuple(p.strip() for p in str(given.get("ports") or "").split(",") if p.strip()),
        cloud="COMMUNITY" if cloud == "COMMUNITY" else "SECURE",
        data_centers=(center,) if center else (),
        min_cuda=str(given.get("minCudaVersion") or ""),
        cudas=tuple(given.get("allowedCudaVersions") or ()),
        volume=str(given.get("networkVolumeId") or ""),
        volume_gb=int(given.get("volumeInGb") or 0),
        mount=str(given.get("volumeMountPath") or ""),
        start_ssh=bool(given.get("startSsh")),
        start_jupyter=bool(given.get("startJupyter")),
        bid_usd=bid,
    )


def _input(asked: Field) -> Mapping[str, Any]:
    given = asked.arguments.get("input")
    return given if isinstance(given, Mapping) else {}


def _code(e: Refused) -> str:
    return "POD_NOT_FOUND" if e.status == 404 else "RUNPOD"


def _invalid(message: str, code: str = "GRAPHQL_VALIDATION_FAILED") -> Answer:
    body = {"errors": [{"message": message, "extensions": {"code": code}}]}
    return Answer(400, json.dumps(body).encode(), JSON)
