"""Holds requests and answers against an official OpenAPI 3.1 description: what of them is not as it says.

    spec = OpenApi.runpod()
    assert not spec.request_faults("POST", "/v2/pods", "", body)
    assert not spec.answer_faults("POST", "/v2/pods", 201, "application/json", answer)

Every fault is one sentence; an empty list means that it validates. A request is read as a strict server would: a
parameter that is not described is a fault too, although the server only ignores it.
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

SPECS = Path(__file__).parents[1] / "clouds" / "specs"
METHODS = ("get", "put", "post", "delete", "patch")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
FORMATS = FormatChecker(formats=())


@FORMATS.checks("date-time")
def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or bool(RFC3339.fullmatch(value))


class OpenApi:
    """One description; `validator` of any schema in it."""

    def __init__(self, path: Path) -> None:
        self.document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        resource = Resource(contents=self.document, specification=DRAFT202012)
        self._registry = Registry().with_resource("urn:spec", resource)

    @classmethod
    def runpod(cls) -> "OpenApi":
        """REST v2 of RunPod."""
        return cls(SPECS / "runpod_rest_v2.json")

    def operation(self, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
        """The path as it is described, and what it says of the method; None where it says nothing."""
        for template, expression in self._templates.items():
            if expression.fullmatch(path) and method.lower() in self.document["paths"][template]:
                return template, self.document["paths"][template][method.lower()]
        return None

    def request_faults(
        self,
        method: str,
        path: str,
        query: str | Mapping[str, str] = "",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        """What is wrong with a request. `path` begins as the description's do (`/v2/…`); it may hold the query."""
        at = urlsplit(path)
        found = self.operation(method, at.path)
        if found is None:
            return [f"{method} {at.path} is not described"]
        template, operation = found
        pairs = list(query.items()) if isinstance(query, Mapping) else parse_qsl(query or at.query, True)
        shared = self.document["paths"][template].get("parameters", [])
        described = [self._resolved(p) for p in [*shared, *operation.get("parameters", [])]]
        faults = self._parameter_faults(described, pairs, headers or {})
        return faults + self._body_faults(operation, body, headers or {})

    def answer_faults(
        self, method: str, path: str, status: int, content_type: str = "", body: bytes | str | None = None
    ) -> list[str]:
        """What is wrong with an answer."""
        found = self.operation(method, urlsplit(path).path)
        if found is None:
            return [f"{method} {path} is not described"]
        responses = found[1]["responses"]
        response = (
            responses.get(str(status)) or responses.get("default") if status >= 400 else responses.get(str(status))
        )
        if response is None:
            return [f"{status} is not described"]
        response = self._resolved(response)
        content = response.get("content")
        data = body.encode() if isinstance(body, str) else body or b""
        if content is None:
            return ["a body where none is described"] if data else []
        kind = content_type.partition(";")[0].strip()
        if kind not in content:
            return [f"{kind or 'no content type'} in place of {', '.join(content)}"]
        if kind == "text/event-stream":
            return _event_faults(data.decode("utf-8", "replace"))
        return self._json_faults(content[kind]["schema"], data)

    def schema_faults(self, name: str, value: Any) -> list[str]:
        """What is wrong with a value of `components/schemas/NAME`."""
        return self._faults({"$ref": f"#/components/schemas/{name}"}, value)

    # helpers

    @cached_property
    def _templates(self) -> dict[str, re.Pattern[str]]:
        paths = sorted(self.document["paths"], key=lambda p: p.count("{"))  # a name before what may be any
        return {p: re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(p))) for p in paths}

    def _resolved(self, value: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in value:
            target: Any = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            value = target
        return value

    def _parameter_faults(
        self, described: list[dict[str, Any]], pairs: list[tuple[str, str]], headers: Mapping[str, str]
    ) -> list[str]:
        faults = []
        queries = {p["name"]: p for p in described if p["in"] == "query"}
        for name, text in pairs:
            if name not in queries:
                faults.append(f"query {name} is not described")
                continue
            for fault in self._faults(queries[name]["schema"], self._parsed(text, queries[name]["schema"])):
                faults.append(f"query {name}: {fault}")
        given = {name for name, _ in pairs}
        faults += [f"query {n} is missing" for n, p in queries.items() if p.get("required") and n not in given]
        told = {k.lower() for k in headers}
        for p in described:
            if p["in"] == "header" and p.get("required") and p["name"].lower() not in told:
                faults.append(f"header {p['name']} is missing")
        return faults

    def _parsed(self, text: str, schema: dict[str, Any]) -> Any:
        kind = self._resolved(schema).get("type")
        if kind == "array":
            return text.split(",")
        if kind == "integer" and re.fullmatch(r"-?\d+", text):
            return int(text)
        if kind == "boolean" and text in ("true", "false"):
            return text == "true"
        return text

    def _body_faults(
        self, operation: dict[str, Any], body: bytes | str | None, headers: Mapping[str, str]
    ) -> list[str]:
        data = body.encode() if isinstance(body, str) else body or b""
        described = operation.get("requestBody")
        if described is None:
            return ["a body where none is described"] if data else []
        if not data:
            return ["the body is missing"] if described.get("required") else []
        kind = {k.lower(): v for k, v in headers.items()}.get("content-type", "application/json").partition(";")[0]
        if kind not in described["content"]:
            return [f"{kind} in place of {', '.join(described['content'])}"]
        return self._json_faults(described["content"][kind]["schema"], data)

    def _json_faults(self, schema: dict[str, Any], data: bytes) -> list[str]:
        try:
            value = json.loads(data)
        except ValueError:
            return [f"not JSON: {data[:80]!r}"]
        return self._faults(schema, value)

    def _faults(self, schema: dict[str, Any], value: Any) -> list[str]:
        absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:spec#/'))
        validator = Draft202012Validator(absolute, registry=self._registry, format_checker=FORMATS)
        return [f"{e.json_path}: {e.message}"[:400] for e in validator.iter_errors(value)]


def _event_faults(stream: str) -> list[str]:
    """Of a stream of log lines: each event an id, and data that is a line of a source at a moment."""
    faults = []
    for event in filter(None, re.split(r"\n\n", stream)):
        lines = [line for line in event.split("\n") if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        if not lines:
            continue
        if "id" not in fields or "data" not in fields:
            faults.append(f"an event without id or data: {event[:80]!r}")
            continue
        try:
            data = json.loads(fields["data"])
        except ValueError:
            faults.append(f"data is not JSON: {fields['data'][:80]!r}")
            continue
        if set(data) != {"ts", "source", "line"} or data["source"] not in ("container", "system"):
            faults.append(f"data is not a line of a source: {fields['data'][:80]!r}")
        elif not RFC3339.fullmatch(data["ts"]) or not fields["id"].startswith(data["ts"]):
            faults.append(f"an id that is not its moment: {fields['id']!r}, {data['ts']!r}")
    return faults
