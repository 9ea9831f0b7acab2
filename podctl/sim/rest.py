"""REST v2 of the emulated RunPod: routes, rights and answers."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from podctl.sim import bodies
from podctl.sim.billing import billing_json
from podctl.sim.cloud import Cloud, Refused
from podctl.sim.faults import Occasion
from podctl.sim.keys import NONE, READ, Caller, PodRights
from podctl.sim.logstream import log_answer
from podctl.sim.records import EXITED, RUNNING, STARTING, Pod, Volume, Wish
from podctl.sim.shapes import Outlook, center_json, gpu_json, pod_json, volume_json
from podctl.sim.wire import Answer, Request, answer, problem

LARGEST_BODY = 102400
STALE_S = 30.0
EMPTY = Answer(204)
Handler = Callable[[Request, Caller, str], Answer]


class Rest:
    """`/v2/…` of one cloud. The caller holds the cloud's lock, except while a stream is read."""

    def __init__(self, cloud: Cloud, outlook: Outlook, rights: PodRights, locked: Callable[[], Any]) -> None:
        self.cloud, self.outlook, self.rights, self._locked = cloud, outlook, rights, locked
        self._quota = Quota()
        routes: Sequence[tuple[str, dict[str, Handler]]] = (
            ("/v2/pods", {"GET": self._list_pods, "POST": self._create_pod}),
            ("/v2/pods/([^/]+)", {"GET": self._pod, "PATCH": self._change_pod, "DELETE": self._delete_pod}),
            ("/v2/pods/([^/]+)/action", {"POST": self._act}),
            ("/v2/pods/([^/]+)/logs", {"GET": self._logs}),
            ("/v2/network-volumes", {"GET": self._list_volumes, "POST": self._create_volume}),
            (
                "/v2/network-volumes/([^/]+)",
                {"GET": self._volume, "PATCH": self._change_volume, "DELETE": self._delete_volume},
            ),
            ("/v2/catalog/gpus", {"GET": self._gpus}),
            ("/v2/catalog/gpus/([^/]+)", {"GET": self._gpu}),
            ("/v2/catalog/datacenters", {"GET": self._centers}),
            ("/v2/catalog/datacenters/([^/]+)", {"GET": self._center}),
            ("/v2/account/ssh-keys", {"GET": self._keys, "PUT": self._put_keys}),
            ("/v2/billing/pods", {"GET": self._billing}),
            ("/v2/openapi.json", {"GET": self._description}),
        )
        self._routes = [(re.compile(path), handlers) for path, handlers in routes]

    def answer(self, request: Request, caller: Caller) -> Answer:
        """What the API says, its headers included."""
        if caller.name == "none":
            return problem(401, "missing bearer token")
        if not caller.is_known:
            return problem(401, "invalid bearer token")
        told = self._answer(request, caller)
        return Answer(
            told.status, told.body, told.type, {**self._quota.headers(self.cloud.t), **told.headers}, told.stream,
            told.cut_after_s,
        )  # fmt: skip

    def _answer(self, request: Request, caller: Caller) -> Answer:
        if len(request.body) > LARGEST_BODY:
            return problem(413, "request body too large")
        for pattern, handlers in self._routes:
            found = pattern.fullmatch(request.path)
            if found is None:
                continue
            if request.method not in handlers:
                allow = {"Allow": ", ".join(handlers)}
                return problem(405, "The requested method is not allowed for this path.", headers=allow)
            id = found.group(1) if pattern.groups else ""
            try:
                self._check_rights(caller, request, id)
                return handlers[request.method](request, caller, id)
            except Refused as e:
                return problem(e.status, e.detail, e.errors)
        return problem(404, "resource not found")

    def _check_rights(self, caller: Caller, request: Request, id: str) -> None:
        """A pod's own key sees that pod alone, and ends it where it may."""
        if caller.is_account:
            return
        right = self.rights.v2
        own = request.path.startswith("/v2/pods/") and id == caller.pod
        if not own or right == NONE:
            raise Refused(403, "access denied")
        if request.method != "GET":
            fault = self.cloud.faults.take("key-cannot-stop", Occasion(self.cloud.pods[id].wish.name))
            if right == READ or fault or request.method == "PATCH":
                raise Refused(403, "access denied")

    # pods

    def _list_pods(self, request: Request, caller: Caller, _: str) -> Answer:
        stale = self._takes("stale-list", request)
        shown = []
        self.cloud.settle()
        for pod in reversed(self.cloud.pods.values()):  # the newest first
            if pod.hidden_reads:
                pod.hidden_reads -= 1
                continue
            at = self.cloud.t - stale.seconds_or(STALE_S) if stale else None
            seen = self._seen(pod) if at is None else _past(pod, at)
            if seen is not None and seen["status"] != "TERMINATED":
                shown.append(seen)
        return self._page(request, "pods", shown)

    def _create_pod(self, request: Request, caller: Caller, _: str) -> Answer:
        body = self._body(request, bodies.CREATE_POD)
        pod = self.cloud.create(read_wish(body))
        return answer(self._seen(pod), 201)

    def _pod(self, request: Request, caller: Caller, id: str) -> Answer:
        pod = self.cloud.pod(id)
        if pod.hidden_reads:
            pod.hidden_reads -= 1
            raise Refused(404, "pod not found")
        stale = self._takes("stale-status", request, pod)
        seen = _past(pod, self.cloud.t - stale.seconds_or(STALE_S)) if stale else None
        return answer(seen or self._seen(pod, is_read=True))

    def _change_pod(self, request: Request, caller: Caller, id: str) -> Answer:
        pod = self.cloud.pod(id)
        body = self._body(request, bodies.UPDATE_POD)
        _check_mounts(body.get("mounts") or {}, pod)
        if "templateId" in body:
            raise Refused(404, "template not found")
        changed = read_wish({**_as_body(pod.wish), **body})
        return answer(self._seen(self.cloud.change(id, changed, locked=body.get("locked"))))

    def _delete_pod(self, request: Request, caller: Caller, id: str) -> Answer:
        self.cloud.terminate(id)
        return EMPTY

    def _act(self, request: Request, caller: Caller, id: str) -> Answer:
        self.cloud.pod(id)
        action = self._body(request, bodies.ACTION)["action"]
        pod = self.cloud.act(id, action)
        if action == "terminate":
            return EMPTY
        seen = self._seen(pod)
        if pod.ignored_stop:  # it says so, and runs on
            pod.ignored_stop = False
            seen |= {"status": EXITED, "actions": ["start", "terminate"], "runtime": None, "cost": 0.0}
            seen["ssh"] = {**seen["ssh"], "direct": None}
        return answer(seen)

    def _logs(self, request: Request, caller: Caller, id: str) -> Answer:
        pod = self.cloud.pod(id)
        if self._takes("logs-down", request, pod):
            return problem(503, "log service unavailable")
        return log_answer(pod, request, self._locked)

    # volumes

    def _list_volumes(self, request: Request, caller: Caller, _: str) -> Answer:
        shown = [volume_json(v) for v in reversed(self.cloud.volumes.values())]
        return self._page(request, "networkVolumes", shown)

    def _create_volume(self, request: Request, caller: Caller, _: str) -> Answer:
        body = self._body(request, bodies.CREATE_VOLUME)
        made = self.cloud.create_volume(body["name"], body["size"], body["dataCenter"], body.get("type", ""))
        return answer(volume_json(made), 201)

    def _volume(self, request: Request, caller: Caller, id: str) -> Answer:
        return answer(volume_json(self._known_volume(id)))

    def _change_volume(self, request: Request, caller: Caller, id: str) -> Answer:
        volume = self._known_volume(id)
        body = self._body(request, bodies.UPDATE_VOLUME)
        if body.get("size", volume.size_gb) < volume.size_gb:
            raise Refused(400, "network volume size can only be increased")
        volume.name, volume.size_gb = body.get("name", volume.name), body.get("size", volume.size_gb)
        return answer(volume_json(volume))

    def _delete_volume(self, request: Request, caller: Caller, id: str) -> Answer:
        self._known_volume(id)
        del self.cloud.volumes[id]  # also while a pod uses it (seen 2026)
        return EMPTY

    # catalogue, account, bill

    def _gpus(self, request: Request, caller: Caller, _: str) -> Answer:
        stock, count = _availability(request)
        shown = [gpu_json(self.cloud, g, stock=stock, count=count) for g in self.cloud.catalogue.gpus.values()]
        return answer(self._grown({"gpus": shown}))

    def _gpu(self, request: Request, caller: Caller, id: str) -> Answer:
        stock, count = _availability(request)
        gpu = self.cloud.catalogue.gpus.get(id)
        if gpu is None:
            raise Refused(404, "resource not found")
        return answer(self._grown(gpu_json(self.cloud, gpu, stock=stock, count=count)))

    def _centers(self, request: Request, caller: Caller, _: str) -> Answer:
        asked = request.values
        shown = [
            center_json(self.cloud, c, asked.get("include", ""))
            for c in self.cloud.catalogue.data_centers.values()
            if c.region in asked.get("regions", c.region).split(",")
        ]
        return answer(self._grown({"dataCenters": shown}))

    def _center(self, request: Request, caller: Caller, id: str) -> Answer:
        center = self.cloud.catalogue.data_centers.get(id)
        if center is None:
            raise Refused(404, "resource not found")
        return answer(self._grown(center_json(self.cloud, center, request.values.get("include", ""))))

    def _keys(self, request: Request, caller: Caller, _: str) -> Answer:
        return answer({"keys": self.cloud.ssh_keys})

    def _put_keys(self, request: Request, caller: Caller, _: str) -> Answer:
        self.cloud.ssh_keys = self._body(request, bodies.SSH_KEYS)["keys"]
        return answer({"keys": self.cloud.ssh_keys})

    def _billing(self, request: Request, caller: Caller, _: str) -> Answer:
        return answer(billing_json(self.cloud, request.values))

    def _description(self, request: Request, caller: Caller, _: str) -> Answer:
        names: dict[str, Any] = {
            p.pattern.replace("([^/]+)", "{id}"): {m.lower(): {} for m in h} for p, h in self._routes
        }
        info = {"title": "emulated Runpod REST API", "version": "2.0.0"}
        return answer({"openapi": "3.1.0", "info": info, "paths": names})

    # helpers

    def _body(self, request: Request, schema: bodies.Schema) -> dict[str, Any]:
        body, mistakes = bodies.read_body(request.body, schema)
        if mistakes:
            raise Refused(422, "Request validation failed.", mistakes)
        return body

    def _seen(self, pod: Pod, *, is_read: bool = False) -> dict[str, Any]:
        seen = self._grown(pod_json(pod, self.cloud.t, self.outlook))
        if is_read and pod.stale_port_reads and pod.status in (STARTING, RUNNING):
            pod.stale_port_reads -= 1
        if seen["status"] == STARTING and self.cloud.faults.peek("unknown-status", Occasion(pod.wish.name)):
            seen["status"] = "INITIALIZING"
        return seen

    def _grown(self, value: dict[str, Any]) -> dict[str, Any]:
        if not self.cloud.faults.peek("unknown-keys"):
            return value
        return value | {"sustainability": {"waterLitres": 0.1}, "labels": []}

    def _page(self, request: Request, name: str, shown: Sequence[dict[str, Any]]) -> Answer:
        paged = self.cloud.faults.peek("paged")
        if paged is None:
            return answer(self._grown({name: shown}))
        try:
            limit = int(request.values.get("limit", paged.limit))
            start = int(request.values.get("cursor", "0") or 0)
        except ValueError:
            raise Refused(422, "Request validation failed.", ["cursor: invalid cursor"]) from None
        if not 1 <= limit <= 1000 or start < 0:
            raise Refused(422, "Request validation failed.", ["limit: must be from 1 to 1000"])
        limit = min(limit, paged.limit)
        more = start + limit < len(shown)
        pagination = {"nextCursor": str(start + limit) if more else None, "hasNextPage": more}
        return answer(self._grown({name: shown[start : start + limit], "pagination": pagination}))

    def _known_volume(self, id: str) -> Volume:
        self.cloud.settle()
        if id not in self.cloud.volumes:
            raise Refused(404, "network volume not found")
        return self.cloud.volumes[id]

    def _takes(self, name: str, request: Request, pod: Pod | None = None) -> Any:
        occasion = Occasion(
            pod=pod.wish.name if pod else "",
            path=request.path,
            method=request.method,
            t=self.cloud.t - self.cloud.began,
        )
        return self.cloud.faults.take(name, occasion)


class Quota:
    """What the headers say of how much may still be asked. Nothing is refused by it: for that there is a fault."""

    windows = (("minute", 180, 60), ("hour", 7200, 3600), ("day", 86400, 86400))  # measured by others, 2026-09

    def __init__(self) -> None:
        self._used: dict[str, tuple[int, int]] = {}

    def headers(self, t: float) -> dict[str, str]:
        """Counts this request."""
        left, policy = [], []
        for name, quota, width_s in self.windows:
            window = int(t // width_s)
            before, used = self._used.get(name, (window, 0))
            used = used + 1 if before == window else 1
            self._used[name] = (window, used)
            left.append(f'"{name}";r={max(0, quota - used)};t={int((window + 1) * width_s - t)}')
            policy.append(f'"{name}";q={quota};w={width_s}')
        return {"RateLimit": ", ".join(left), "RateLimit-Policy": ", ".join(policy)}


def read_wish(body: dict[str, Any]) -> Wish:
    """A create call's body. Raises Refused for what breaks a rule between its fields."""
    if "templateId" in body:
        raise Refused(404, "template not found")
    if ("gpu" in body) == ("cpu" in body):
        raise Refused(400, "exactly one of gpu or cpu must be set")
    if "cpu" in body:
        raise Refused(400, "There are no longer any instances available with the requested specifications. "
                           "Please refresh and try again.")  # fmt: skip
    if not body.get("image"):
        raise Refused(400, "image is required unless templateId is set")
    if "disk" not in body:  # seen 2026-08
        raise Refused(400, "You must provide a template id or pod configuration parameters.")
    gpu, mounts = body["gpu"], body.get("mounts") or {}
    if gpu.get("allowedCudaVersions") and gpu.get("minCudaVersion"):
        raise Refused(400, "allowedCudaVersions and minCudaVersion are mutually exclusive")
    persistent, network = mounts.get("persistent"), mounts.get("network") or []
    if persistent and network:
        raise Refused(400, "mounts.persistent and mounts.network are mutually exclusive")
    return Wish(
        name=body["name"],
        image=body["image"],
        gpu=gpu["id"],
        count=gpu.get("count", 1),
        args=body.get("args", ""),
        disk_gb=body["disk"],
        env=body.get("env", {}),
        ports=tuple(body.get("ports", ())),
        cloud=body.get("cloud", "SECURE"),
        data_centers=tuple(body.get("dataCenterIds", ())),
        min_cuda=gpu.get("minCudaVersion", ""),
        cudas=tuple(gpu.get("allowedCudaVersions", ())),
        volume=network[0]["volumeId"] if network else "",
        volume_gb=persistent["size"] if persistent else 0,
        mount=network[0]["path"] if network else persistent["path"] if persistent else "",
        registry=body.get("registry"),
        start_ssh=body.get("startSsh", False),
        start_jupyter=body.get("startJupyter", False),
    )


def _as_body(wish: Wish) -> dict[str, Any]:
    """The other way round, for a PATCH on top of it."""
    gpu: dict[str, Any] = {"id": wish.gpu, "count": wish.count}
    if wish.min_cuda:
        gpu["minCudaVersion"] = wish.min_cuda
    if wish.cudas:
        gpu["allowedCudaVersions"] = list(wish.cudas)
    mounts: dict[str, Any] = {}
    if wish.volume:
        mounts = {"network": [{"volumeId": wish.volume, "path": wish.mount}]}
    elif wish.volume_gb:
        mounts = {"persistent": {"size": wish.volume_gb, "path": wish.mount}}
    return {
        "name": wish.name, "image": wish.image, "gpu": gpu, "args": wish.args, "disk": wish.disk_gb,
        "env": dict(wish.env), "ports": list(wish.ports), "cloud": wish.cloud, "dataCenterIds": list(wish.data_centers),
        "mounts": mounts, "registry": wish.registry, "startSsh": wish.start_ssh, "startJupyter": wish.start_jupyter,
    }  # fmt: skip


def _check_mounts(mounts: dict[str, Any], pod: Pod) -> None:
    """What of its storage a pod may change: the path, and its own disk's size."""
    if "network" in mounts and not mounts["network"]:
        raise Refused(400, "clearing mounts is not supported")
    if mounts.get("network"):
        if not pod.wish.volume:
            raise Refused(400, "mount kind cannot be changed")
        if mounts["network"][0]["volumeId"] != pod.wish.volume:
            raise Refused(400, "volumeId cannot be changed")
    if "persistent" in mounts and not pod.has_own_disk:
        raise Refused(400, "mount kind cannot be changed")


def _availability(request: Request) -> tuple[bool, int]:
    """Whether stock is asked for, and for how many. Raises Refused where the two parameters do not go together."""
    asked = request.values
    stock = "AVAILABILITY" in asked.get("include", "")
    if stock != ("product" in asked):
        raise Refused(400, "include=AVAILABILITY and product must be used together")
    text = asked.get("count", "1")
    if not text.isdigit() or int(text) < 1:
        raise Refused(422, "Request validation failed.", ["count: minimum: want 1"])
    return stock, int(text)


def _past(pod: Pod, t: float) -> dict[str, Any] | None:
    """How it looked then; None before it was."""
    return next((seen for at, seen in reversed(pod.past) if at <= t), None)
