"""Whose key a request came with, and what that key may."""

from dataclasses import dataclass

from podctl.sim.cloud import Cloud
from podctl.sim.records import TERMINATED

NONE, READ, STOP = "none", "read", "stop"


@dataclass(frozen=True)
class PodRights:
    """What a pod's own key may do to that pod, by way. What it may over REST v2 nobody has written down: try all."""

    v2: str = STOP
    graphql: str = STOP  # seen 2026-08: podStop, podTerminate and pod of itself


@dataclass(frozen=True)
class Caller:
    """The account, or one pod; `name` is how the record calls it."""

    name: str  # account, pod:ID, wrong, none
    pod: str = ""

    @property
    def is_account(self) -> bool:
        return self.name == "account"

    @property
    def is_known(self) -> bool:
        return self.is_account or bool(self.pod)


def caller_of(key: str, account_key: str, cloud: Cloud) -> Caller:
    """Who that is. The key of a pod that is gone is nobody's."""
    if not key:
        return Caller("none")
    if key == account_key:
        return Caller("account")
    for pod in cloud.pods.values():
        if pod.key == key and pod.status != TERMINATED:
            return Caller(f"pod:{pod.id}", pod.id)
    return Caller("wrong")
