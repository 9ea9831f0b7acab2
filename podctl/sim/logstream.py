"""`GET /v2/pods/ID/logs`: what a pod's container and its machine said, as Server-Sent Events, followed."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from podctl.sim.cloud import Refused
from podctl.sim.records import TERMINATED, Line, Pod
from podctl.sim.wire import Answer, Request
from remote.clock import utc

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MOST = 5000
LOOK_S = 0.02
PING_S = 1.0  # of real time: a reader that is gone is noticed by then
LONGEST_S = 900.0


def log_answer(pod: Pod, request: Request, locked: Callable[[], contextlib.AbstractContextManager[Any]]) -> Answer:
    """The last lines (`tail`), or those after a moment (`since`, `Last-Event-ID`), then each as it comes."""
    first = _first(pod, request)
    source = request.values.get("source", "")
    if source not in ("", "container", "system"):
        raise Refused(422, "Request validation failed.", ["source: value must be one of 'container', 'system'"])

    def stream() -> Iterator[bytes]:
        sent, until, quiet = first, time.monotonic() + LONGEST_S, time.monotonic()
        yield b": ok\n\n"
        while time.monotonic() < until:
            with locked():
                lines, is_gone = pod.log[sent:], pod.status == TERMINATED
            sent += len(lines)
            events = [_event(line) for line in lines if source in ("", line.source)]
            if events:
                yield b"".join(events)
                quiet = time.monotonic()
            elif is_gone:
                return
            elif time.monotonic() - quiet > PING_S:
                yield b": ping\n\n"
                quiet = time.monotonic()
            time.sleep(LOOK_S)

    return Answer(200, type="text/event-stream", headers=HEADERS, stream=stream)


def _first(pod: Pod, request: Request) -> int:
    """The index of the first line to send."""
    asked = request.values
    tail = asked.get("tail", "100")
    if not tail.isdigit() or int(tail) > MOST:
        raise Refused(422, "Request validation failed.", [f"tail: want 0 to {MOST}"])
    last = request.headers.get("last-event-id", "")
    if last:
        moment, _, number = last.partition("/")
        if number.isdigit():
            return min(int(number), len(pod.log))
        after = _unix(moment, "Last-Event-ID")
        return next((i for i, line in enumerate(pod.log) if int(line.t) > after), len(pod.log))
    if "since" in asked:
        since = _unix(asked["since"], "since")
        first = next((i for i, line in enumerate(pod.log) if line.t >= since), len(pod.log))
        return max(first, len(pod.log) - int(tail)) if "tail" in asked else first
    return max(0, len(pod.log) - int(tail))


def _unix(text: str, name: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Refused(422, "Request validation failed.", [f"{name}: not a valid date-time"]) from None


def _event(line: Line) -> bytes:
    moment = utc(line.t)
    data = json.dumps({"ts": moment, "source": line.source, "line": line.text})
    return f"id: {moment}/{line.number:012d}\ndata: {data}\n\n".encode()
