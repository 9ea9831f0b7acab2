"""A request as it came and an answer as it goes, and the record of both."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

JSON = "application/json"
PROBLEM = "application/problem+json"
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Request:
    """What a client sent. Header names are in lower case."""

    method: str
    path: str  # without the query
    query: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def values(self) -> dict[str, str]:
        """The query's, the first of each name."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.query, keep_blank_values=True):
            found.setdefault(name, value)
        return found

    @property
    def bearer(self) -> str:
        """The key it came with; "" for none."""
        kind, _, key = self.headers.get("authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else ""


@dataclass(frozen=True)
class Answer:
    """What goes back: a body, or a stream of pieces. `cut_after_s`: no answer at all, the connection ends then."""

    status: int
    body: bytes = b""
    type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Callable[[], Iterator[bytes]] | None = None
    cut_after_s: float | None = None


@dataclass
class Exchange:
    """One request and its answer, for assertions. Keys are named, not shown: account, pod:ID, wrong, none."""

    t: float
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    key: str
    status: int = 0  # 0: it got no answer
    answer_type: str = ""
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    answer: bytes = b""

    @property
    def sent(self) -> Any:
        """The body, parsed; None where it is none."""
        return _parsed(self.body)

    @property
    def got(self) -> Any:
        """The answer, parsed; None where it is none."""
        return _parsed(self.answer)


def answer(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), JSON)


def problem(
    status: int, detail: str, errors: list[str] | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """An error as RFC 9457 has it."""
    told: dict[str, object] = {"title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    if errors:
        told["errors"] = errors
    return Answer(status, json.dumps(told).encode(), PROBLEM, headers or {})


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
