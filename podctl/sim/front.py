"""All that comes in at the cloud's address: what is before the API (Cloudflare, quotas), the API, and the record."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from podctl.sim.admin import Admin
from podctl.sim.cloud import Cloud
from podctl.sim.faults import Fault, Occasion
from podctl.sim.graphql import GraphQl
from podctl.sim.keys import PodRights, caller_of
from podctl.sim.rest import Rest
from podctl.sim.shapes import Outlook
from podctl.sim.stock import new_id
from podctl.sim.wire import Answer, Exchange, Request, problem

HTML = """<!DOCTYPE html><html><head><title>api.runpod.io | {status}: {what}</title></head><body>
<h1>{what}<span>Error code {status}</span></h1><p>The web server reported an unknown error.</p>
<p>cloudflare</p></body></html>
"""
WHAT = {502: "Bad gateway", 520: "Web server is returning an unknown error", 504: "Gateway time-out"}
GONE = "This API version has been retired. Please use https://api.runpod.io/v2."
HANG_S = 2.0
AFTER_CREATE = ("error-after-create", "hang-after-create", "cut-after-create", "cloudflare-after")


class Front:
    """The one address. `record` holds every request and answer, keys left out."""

    def __init__(
        self,
        cloud: Cloud,
        outlook: Outlook,
        rights: PodRights,
        account_key: str,
        locked: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.cloud, self._account_key, self._locked = cloud, account_key, locked
        self.record: list[Exchange] = []
        self._rest = Rest(cloud, outlook, rights, locked)
        self._graphql = GraphQl(cloud, outlook, rights)
        self._admin = Admin(cloud)

    def answer(self, request: Request) -> Answer:
        """What goes back for a request."""
        with self._locked():
            if request.path.startswith("/sim/"):
                return self._admin.answer(request)
            caller = caller_of(self._key_of(request), self._account_key, self.cloud)
            exchange = Exchange(
                self.cloud.t,
                request.method,
                request.path,
                request.query,
                _without_key(request),
                request.body,
                caller.name,
            )
            self.record.append(exchange)
            told = self._answer(request)
            headers = {"x-request-id": new_id(self.cloud.chance, 20), **told.headers}
            told = replace(told, headers=headers)
            if told.cut_after_s is None:
                exchange.status, exchange.answer_type = told.status, told.type
                exchange.answer_headers, exchange.answer = told.headers, told.body
            return replace(told, stream=_recorded(told, exchange)) if told.stream else told

    def _answer(self, request: Request) -> Answer:
        if "python-urllib" in request.headers.get("user-agent", "python-urllib").lower():
            return Answer(403, b"error code: 1010", "text/plain; charset=UTF-8")
        before = self._before(request)
        if before is not None:
            return before
        caller = caller_of(self._key_of(request), self._account_key, self.cloud)
        if request.path == "/graphql":
            told = self._graphql.answer(request, caller)
        elif request.path.startswith("/v1/"):
            if caller.pod:
                return problem(403, "access denied")
            return Answer(410, b'{"error":"' + GONE.encode() + b'","status":410}', "application/json")
        else:
            told = self._rest.answer(request, caller)
        return self._after(request, told)

    def _before(self, request: Request) -> Answer | None:
        """Faults that keep a request from the API."""
        if fault := self._takes("rate-limited", request):
            wait = int(fault.seconds_or(12))
            headers = {"Retry-After": str(wait), "RateLimit": f'"minute";r=0;t={wait}'}
            return problem(429, "rate limit exceeded for the minute window", headers=headers)
        if fault := self._takes("cloudflare", request):
            return _page(fault)
        if self._takes("server-error", request) or (
            _is_create(request) and self._takes("error-before-create", request)
        ):
            return problem(500, "Something went wrong. Please try again later or contact support.")
        return None

    def _after(self, request: Request, told: Answer) -> Answer:
        """Faults that keep an answer from the client."""
        if not _is_create(request):
            fault = self._takes("cloudflare-after", request)
            return _page(fault) if fault else told
        if told.status >= 400 or b'"errors"' in told.body:
            return told
        for name in AFTER_CREATE:
            if fault := self._takes(name, request):
                if name == "cloudflare-after":
                    return _page(fault)
                if name == "error-after-create":
                    return problem(500, "Something went wrong. Please try again later or contact support.")
                return Answer(0, cut_after_s=fault.seconds_or(HANG_S) if name == "hang-after-create" else 0.0)
        return told

    def _takes(self, name: str, request: Request) -> Fault | None:
        occasion = Occasion(path=request.path, method=request.method, t=self.cloud.t - self.cloud.began)
        return self.cloud.faults.take(name, occasion)

    def _key_of(self, request: Request) -> str:
        if request.path == "/graphql":
            return request.bearer or request.values.get("api_key", "")
        return request.bearer


def _is_create(request: Request) -> bool:
    if request.path == "/graphql":
        return b"podFindAndDeployOnDemand" in request.body or b"podRentInterruptable" in request.body
    return request.path == "/v2/pods" and request.method == "POST"


def _page(fault: Fault) -> Answer:
    what = WHAT.get(fault.status, "Error")
    return Answer(fault.status, HTML.format(status=fault.status, what=what).encode(), "text/html; charset=UTF-8")


def _without_key(request: Request) -> dict[str, str]:
    return {k: v for k, v in request.headers.items() if k != "authorization"}


def _recorded(told: Answer, exchange: Exchange) -> Callable[[], Any]:
    """The same stream, written down as it goes."""

    def stream() -> Any:
        assert told.stream is not None
        for piece in told.stream():
            exchange.answer += piece
            yield piece

    return stream
