"""RunPod's API as HTTP: one key, own User-Agent, time-outs, and trying again only where that can do no harm."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from podctl import version
from podctl.errors import BadInput, MissingHere, ProviderUnclear
from podctl.providers.runpod.account import Account, is_near
from podctl.providers.runpod.faults import Answer, Doing, fault_of, one_line
from remote.clock import Clock, SystemClock

if TYPE_CHECKING:
    import httpx

READ_S, CREATE_S = 30.0, 60.0  # as RunPod's own examples wait
TRIES = 4
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0  # a call returns promptly: who is told to wait longer is told so
TRIES_IN_VAIN = 2  # after so many reads that timed out it is not worth another half minute
MAX_PAGES = 1000
SAME_S = 5.0  # closer clocks are the same: a date has whole seconds, and answers take their time


class NoAnswer(ProviderUnclear):
    """Nothing came back. `sent`: the request may have arrived; `timed_out`: it was waited for in vain."""

    def __init__(self, message: str, hint: str, sent: bool, timed_out: bool) -> None:
        super().__init__(message, hint)
        self.sent, self.timed_out = sent, timed_out


class Client:
    """A connection to RunPod for one account. Nothing of it shows the key."""

    def __init__(
        self, account: Account, clock: Clock | None = None, transport: "httpx.BaseTransport | None" = None
    ) -> None:
        self.account = account
        self._clock = clock or SystemClock()
        self._transport = transport
        self._http: httpx.Client | None = None
        self._ahead_s = 0.0

    def now(self) -> float:
        """Unix time by RunPod's clock, as its last answer told it; by ours before there was one."""
        return self._clock.now() + self._ahead_s

    def __repr__(self) -> str:
        return f"Client({self.account.api_url!r})"

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """A read: tried again on 429, 5xx and broken connections."""
        return self._try("GET", self.account.api_url + path, safe=True, params=params)

    def send(self, method: str, path: str, body: Any = None, timeout_s: float = READ_S) -> Answer:
        """A call that changes something: tried again only where RunPod certainly did nothing (429, no connection)."""
        return self._try(method, self.account.api_url + path, safe=False, body=body, timeout_s=timeout_s)

    def graphql(self, query: str, *, safe: bool, timeout_s: float = READ_S) -> Answer:
        """RunPod's older API, for the little that v2 has not (it goes in early 2027)."""
        return self._try("POST", self.account.graphql_url, safe=safe, body={"query": query}, timeout_s=timeout_s)

    def items(
        self, path: str, name: str, doing: Doing, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """All of a list, page by page; servers without pages give one. Raises PodctlError."""
        found: list[dict[str, Any]] = []
        asked = dict(params or {})
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            answer = self.get(path, asked)
            if not answer.ok:
                raise fault_of(answer, doing)
            page = answer.json.get(name) if isinstance(answer.json, dict) else None
            if not isinstance(page, list):
                raise ProviderUnclear(f"RunPod's answer holds no list of {name}", "again in a moment; or update podctl")
            found += [item for item in page if isinstance(item, dict)]
            cursor = next_cursor(answer.json)
            if not cursor or cursor in seen:
                break
            seen.add(cursor)
            asked["cursor"] = cursor
        return found

    def lines(
        self,
        path: str,
        params: Mapping[str, Any],
        quiet_s: float,
        longest_s: float,
        elapsed: Callable[[], float] = time.monotonic,  # a socket's silence is real time, whatever the clock says
    ) -> Iterator[str]:
        """An event stream line by line, until it is quiet for so long, ends, or has taken its time.

        Raises Fault for another answer than a stream, ProviderUnclear for none. A cut in the middle ends it.
        """
        import httpx

        begun = elapsed()
        # the headers may take their time, the silence afterwards may not; httpcore reads this value at each read
        limits = {"connect": READ_S, "read": READ_S, "write": READ_S, "pool": READ_S}
        http = self._opened()
        request = http.build_request("GET", self.account.api_url + path, params=params, extensions={"timeout": limits})
        request.headers["Accept"] = "text/event-stream"
        try:
            response = http.send(request, stream=True)
        except httpx.HTTPError as e:
            raise self._no_answer(e) from None
        try:
            if response.status_code != 200:
                response.read()
                raise Fault(self._answer(response))
            limits["read"] = quiet_s
            for line in response.iter_lines():
                yield line
                if elapsed() - begun > longest_s:
                    return
        except httpx.HTTPError:
            return  # quiet, or cut: what there is has been said
        finally:
            response.close()

    def _try(
        self,
        method: str,
        url: str,
        *,
        safe: bool,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout_s: float = READ_S,
    ) -> Answer:
        n = 0
        while True:
            n += 1
            last = n == TRIES
            try:
                answer = self._once(method, url, params, body, timeout_s)
            except NoAnswer as e:
                if last or (e.sent and not safe) or (e.timed_out and n >= TRIES_IN_VAIN):
                    raise
                wait_s = FIRST_WAIT_S * 2.0 ** (n - 1)
            else:
                until_next = wait_before_next(answer, n, safe, self._clock.now())
                if last or until_next is None:
                    return answer
                wait_s = until_next
            self._clock.sleep(wait_s)

    def _once(self, method: str, url: str, params: Mapping[str, Any] | None, body: Any, timeout_s: float) -> Answer:
        import httpx

        try:
            response = self._opened().request(method, url, params=params or None, json=body, timeout=timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise self._no_answer(e) from None  # a chain would show the request, and its headers with it
        return self._answer(response)

    def _opened(self) -> "httpx.Client":
        if self._http is None:
            import httpx

            headers = {
                "Authorization": f"Bearer {self.account.key.get_secret_value()}",
                "User-Agent": f"podctl/{version()}",  # Cloudflare turns some libraries' own away (seen 2026)
                "Accept": "application/json, application/problem+json",
            }
            near = is_near(urlsplit(self.account.api_url).hostname or "")
            try:
                self._http = httpx.Client(
                    headers=headers,
                    timeout=READ_S,
                    follow_redirects=False,  # the key is for one host
                    transport=self._transport,
                    trust_env=not near,  # proxies of the environment; none stands before this machine itself
                )
            except ImportError:
                raise MissingHere(
                    "a SOCKS proxy is set, and this Python can't speak to one",
                    "pip install 'httpx[socks]', or unset ALL_PROXY",
                ) from None
            except ValueError as e:
                raise BadInput(
                    f"the proxy that is set is none: {one_line(str(e))}", "correct HTTPS_PROXY, ALL_PROXY"
                ) from None
            except OSError as e:
                raise MissingHere(
                    f"certificates can't be read: {e.strerror or e}", "correct or unset SSL_CERT_FILE, SSL_CERT_DIR"
                ) from None
        return self._http

    def _answer(self, response: "httpx.Response") -> Answer:
        """With the key taken out, should a server or a proxy repeat what it was sent."""
        text = response.content.decode("utf-8", "replace").replace(self.account.key.get_secret_value(), "…")
        try:
            value = json.loads(text) if text.strip() else None
        except ValueError:
            value = None
        there = unix_date(response.headers.get("date", ""))
        if there is not None:
            ahead_s = there - self._clock.now()
            self._ahead_s = ahead_s if abs(ahead_s) > SAME_S else 0.0
        return Answer(response.status_code, value, text, {k.lower(): v for k, v in response.headers.items()})

    def _no_answer(self, e: Exception) -> NoAnswer:
        import httpx

        host = urlsplit(self.account.api_url).netloc
        never_sent = isinstance(e, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError)
        never_sent = never_sent or isinstance(
            e, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.InvalidURL
        )
        if isinstance(e, httpx.TimeoutException):
            what = f"{host} did not answer in time"
        elif isinstance(e, httpx.ProxyError):
            what = f"the proxy on the way to {host} says no: {one_line(str(e))}"
        elif never_sent:
            what = f"{host} can't be reached: {one_line(str(e)) or type(e).__name__}"
        else:
            what = f"the connection to {host} broke: {one_line(str(e)) or type(e).__name__}"
        what = what.replace(self.account.key.get_secret_value(), "…")
        timed_out = isinstance(e, httpx.TimeoutException)
        return NoAnswer(what, "look at the network, then again", not never_sent, timed_out)


class Fault(Exception):
    """An event stream that began with another status than 200; translated by who asked for it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def wait_before_next(answer: Answer, n: int, safe: bool, now: float) -> float | None:
    """Seconds until the next try; None: this is the answer. Pure."""
    backoff_s = FIRST_WAIT_S * 2.0 ** (n - 1)
    asked_s = retry_after_s(answer.headers.get("retry-after", ""), now)
    if answer.status == 429:  # said before anything is done: harmless for every method
        wait_s = max(asked_s, backoff_s) if asked_s is not None else backoff_s
        return wait_s if wait_s <= LONGEST_WAIT_S else None
    if safe and answer.status >= 500:
        return min(max(asked_s or 0.0, backoff_s), LONGEST_WAIT_S)
    return None


def retry_after_s(header: str, now: float) -> float | None:
    """Seconds or a date, as RFC 9110 allows; None for anything else. Pure."""
    if header.strip().isdecimal():
        return float(header)
    until = unix_date(header)
    return None if until is None else max(0.0, until - now)


def unix_date(header: str) -> float | None:
    """A date as HTTP writes it; None for anything else. Pure."""
    try:
        return parsedate_to_datetime(header).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def next_cursor(body: Mapping[str, Any]) -> str:
    """Where the next page begins, "" after the last. Servers before September 2026 know no pages."""
    pagination = body.get("pagination")
    if not isinstance(pagination, dict) or pagination.get("hasNextPage") is False:
        return ""
    cursor = pagination.get("nextCursor")
    return cursor if isinstance(cursor, str) else ""


def segment(word: str) -> str:
    """One part of a path, whatever is in it. Raises BadInput for none."""
    if not word or word in (".", ".."):
        raise BadInput("a pod's id is missing", "podctl ps lists the runs there are")
    return quote(word, safe="")
