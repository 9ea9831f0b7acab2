"""An experiment as it may be shown to anybody: names of what is secret, never values. Pure."""

import re
from typing import Any

HIDDEN = "(not shown)"
_NAME = re.compile(r"(^|[_-])(token|api_?key|key|secret|password|passwd|credentials?|auth)$", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_ASSIGNED = re.compile(r"(?i)\b([a-z0-9_]*(?:token|key|secret|password|passwd)\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|\S+)")
# what the common services hand out begins so
_VALUE = re.compile(r"\b(hf_|ghp_|gho_|github_pat_|sk-|rpa_|AKIA|xox[abp]-|glpat-)[A-Za-z0-9_-]{8,}")


def without_secrets(value: Any, name: str = "") -> Any:
    """The same with the values under `env` and `secrets`, and whatever else looks like a secret, taken out."""
    if isinstance(value, dict):
        if name == "env":
            return dict.fromkeys(map(str, value), HIDDEN)
        if name == "secrets":
            return list(map(str, value))
        return {str(k): without_secrets(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [without_secrets(v, name if name != "env" else "") for v in value]
    if not isinstance(value, str):
        return value
    if name == "env" or _NAME.search(name):
        return HIDDEN
    return _VALUE.sub(HIDDEN, _ASSIGNED.sub(rf"\g<1>{HIDDEN}", _IN_ADDRESS.sub(HIDDEN, value)))


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """`{"optim": {"lr": 1}}` → `{"optim.lr": 1}`."""
    if not isinstance(value, dict) or not value:
        return {at: value}
    return {k: v for key, child in value.items() for k, v in flat(child, f"{at}.{key}" if at else str(key)).items()}


def differences(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(key, in a, in b) of every key that is not the same in both; what one lacks is None."""
    left, right = flat(a), flat(b)
    found = dict.fromkeys([*left, *right])
    return [(k, left.get(k), right.get(k)) for k in found if k and left.get(k) != right.get(k)]
