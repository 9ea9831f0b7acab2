"""Which bodies the REST API takes: strict, every mistake at once, said as the real one says it."""

import json
import re
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]
TYPES: Mapping[str, Any] = {
    "string": str,
    "boolean": bool,
    "object": dict,
    "array": list,
    "integer": int,
    "number": (int, float),
}
CUDA = r"^\d+\.\d+$"
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
CONTAINER: dict[str, Schema] = {
    "args": TEXT,
    "disk": {"type": "integer", "minimum": 1},
    "env": {"type": "object", "values": TEXT},
    "image": TEXT,
    "ports": {"type": "array", "items": TEXT},
    "registry": {"type": "string", "null": True},
}
MOUNTS: Schema = {
    "type": "object",
    "properties": {
        "persistent": {
            "type": "object",
            "required": ["size", "path"],
            "properties": {"size": {"type": "integer", "minimum": 10}, "path": TEXT},
        },
        "network": {
            "type": "array",
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["volumeId", "path"],
                "properties": {"volumeId": TEXT, "path": TEXT},
            },
        },
    },
}
CREATE_POD: Schema = {
    "type": "object",
    "required": ["name"],
    "required_unless": {"image": "templateId"},
    "properties": CONTAINER
    | {
        "name": NAME,
        "cloud": {"type": "string", "enum": ["SECURE", "COMMUNITY"]},
        "cpu": {"type": "object", "required": ["id"], "properties": {"id": TEXT, "vcpuCount": {"type": "integer"}}},
        "dataCenterIds": {"type": "array", "items": TEXT},
        "globalNetworking": FLAG,
        "gpu": {
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": TEXT,
                "count": {"type": "integer", "minimum": 1},
                "allowedCudaVersions": {"type": "array", "items": {"type": "string", "pattern": CUDA}},
                "minCudaVersion": {"type": "string", "pattern": CUDA},
            },
        },
        "mounts": MOUNTS,
        "startJupyter": FLAG,
        "startSsh": FLAG,
        "templateId": NAME,
    },
}
UPDATE_POD: Schema = {
    "type": "object",
    "properties": CONTAINER
    | {"name": NAME, "globalNetworking": FLAG, "locked": FLAG, "mounts": MOUNTS, "templateId": TEXT},
}
ACTION: Schema = {
    "type": "object",
    "required": ["action"],
    "properties": {"action": {"type": "string", "enum": ["start", "stop", "restart", "terminate"]}},
}
SIZE: Schema = {"type": "integer", "minimum": 10, "maximum": 4096}
CREATE_VOLUME: Schema = {
    "type": "object",
    "required": ["name", "size", "dataCenter"],
    "properties": {
        "name": NAME,
        "size": SIZE,
        "dataCenter": NAME,
        "type": {"type": "string", "enum": ["STANDARD", "HIGH_PERFORMANCE"]},
    },
}
UPDATE_VOLUME: Schema = {"type": "object", "minProperties": 1, "properties": {"name": NAME, "size": SIZE}}
SSH_KEYS: Schema = {
    "type": "object",
    "required": ["keys"],
    "properties": {
        "keys": {
            "type": "array",
            "items": {"type": "string", "pattern": r"^(ssh|ecdsa|sk)-[^\s]+ [^\s]+([ \t][^\n\r]*)?$"},
        }
    },
}


def read_body(data: bytes, schema: Schema) -> tuple[dict[str, Any], list[str]]:
    """The body, and what is wrong with it."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}, ["$: invalid JSON"]
    mistakes = check(value, schema)
    return (value if isinstance(value, dict) and not mistakes else {}), mistakes


def check(value: Any, schema: Schema, path: str = "$") -> list[str]:
    """Every mistake, each with where it is."""
    if value is None and schema.get("null"):
        return []
    kind = schema["type"]
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 is one in JSON Schema
    if not isinstance(value, TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
        return [f"{path}: got {_kind(value)}, want {kind}"]
    found: list[str] = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: value must be one of {', '.join(repr(v) for v in schema['enum'])}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{path}: {value!r} does not match pattern {schema['pattern']!r}")
    size = value if isinstance(value, int | float) else len(value)
    for key, is_low in (("minimum", True), ("maximum", False), ("minLength", True), ("maxItems", False)):
        if key in schema and (size < schema[key] if is_low else size > schema[key]):
            found.append(f"{path}: {key}: got {size}, want {schema[key]}")
    if size < schema.get("minProperties", size):
        found.append(f"{path}: minProperties: got {size}, want {schema['minProperties']}")
    if kind == "array":
        for i, item in enumerate(value):
            found += check(item, schema["items"], f"{path}[{i}]")
    if kind == "object":
        found += _members(value, schema, path)
    return found


def _members(value: Mapping[str, Any], schema: Schema, path: str) -> list[str]:
    found = [f"{path}: missing property {name!r}" for name in schema.get("required", ()) if name not in value]
    unless = schema.get("required_unless", {})
    found += [f"{path}: missing property {n!r}" for n, other in unless.items() if n not in value and other not in value]
    if "values" in schema:  # a map: any name will do
        for name, member in value.items():
            found += check(member, schema["values"], f"{path}.{name}")
        return found
    known = schema.get("properties", {})
    strange = [name for name in value if name not in known]
    if strange:
        found.append(f"{path}: additional properties {', '.join(repr(n) for n in strange)} not allowed")
    for name, member in value.items():
        if name in known:
            found += check(member, known[name], f"{path}.{name}")
    return found


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return next((name for name, type in TYPES.items() if isinstance(value, type)), "value")
