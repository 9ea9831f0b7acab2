"""`GET /v2/billing/pods`: the bill in buckets of time, as its owner reads it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from podctl.sim.cloud import Cloud, Refused
from podctl.sim.records import Pod
from remote.clock import utc

SIZES = ("hour", "day", "week", "month", "year")
AMOUNTS = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")


def billing_json(cloud: Cloud, asked: Mapping[str, str]) -> dict[str, Any]:
    """A record a pod and bucket, and what they come to. Raises Refused."""
    cloud.settle()
    size = asked.get("bucketSize", "day")
    if size not in SIZES:
        raise Refused(422, "Request validation failed.", [f"bucketSize: value must be one of {', '.join(SIZES)}"])
    if "lastN" in asked and ("startTime" in asked or "endTime" in asked):
        raise Refused(400, "lastN and startTime/endTime are mutually exclusive")
    start, end = _window(asked, size, datetime.fromtimestamp(cloud.t, UTC))
    pods = [p for p in cloud.pods.values() if asked.get("podId", p.id) == p.id]
    records = []
    at = start
    while at < end:
        after = _next(at, size)
        records += [r for p in pods if (r := _record(p, at, after, cloud.t))["totalAmount"] > 0]
        at = after
    totals = {name: sum(r[name] for r in records) for name in AMOUNTS}
    query = {"startTime": _text(start), "endTime": _text(end), "bucketSize": size, "podId": asked.get("podId")}
    counts = {"recordCount": len(records), "uniquePodCount": len({r["podId"] for r in records})}
    return {"records": records, "metadata": {"query": query, "totals": totals, **counts}}


def _record(pod: Pod, start: datetime, end: datetime, now: float) -> dict[str, Any]:
    until, since = min(end.timestamp(), now), start.timestamp()
    gpu, disk = (pod.meter.usd(until, since, (kind,)) for kind in ("gpu", "disk"))
    return {
        "startTime": _text(start),
        "endTime": _text(end),
        "podId": pod.id,
        "totalAmount": gpu + disk,
        "gpuAmount": gpu,
        "cpuAmount": 0.0,
        "diskAmount": disk,
    }


def _window(asked: Mapping[str, str], size: str, now: datetime) -> tuple[datetime, datetime]:
    """Whole buckets around what is asked for."""
    if "lastN" in asked:
        text = asked["lastN"]
        if not text.isdigit() or int(text) < 1:
            raise Refused(422, "Request validation failed.", ["lastN: minimum: want 1"])
        start = _begin(now, size)
        for _ in range(min(int(text), 1000) - 1):
            start = _begin(start - timedelta(seconds=1), size)
        return start, _next(_begin(now, size), size)
    begin = _moment(asked, "startTime", now - timedelta(days=30))
    until = _moment(asked, "endTime", now)
    end = _begin(until, size)
    return _begin(begin, size), end if end == until else _next(end, size)


def _moment(asked: Mapping[str, str], name: str, otherwise: datetime) -> datetime:
    try:
        given = datetime.fromisoformat(asked[name]) if name in asked else otherwise
    except ValueError:
        raise Refused(422, "Request validation failed.", [f"{name}: not a valid date-time"]) from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def _begin(t: datetime, size: str) -> datetime:
    t = t.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if size == "hour":
        return t
    t = t.replace(hour=0)
    if size == "week":
        return t - timedelta(days=t.weekday())
    return t if size == "day" else t.replace(day=1) if size == "month" else t.replace(month=1, day=1)


def _next(t: datetime, size: str) -> datetime:
    days = {"hour": 1 / 24, "day": 1, "week": 7, "month": 32, "year": 367}[size]
    later = t + timedelta(days=days)
    return later if size in ("hour", "day", "week") else _begin(later, size)


def _text(t: datetime) -> str:
    return utc(t.timestamp())
