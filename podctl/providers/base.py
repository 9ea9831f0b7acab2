"""Who rents machines out: the protocol of all providers, and the table of them."""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from podctl.errors import BadInput
from podctl.pods import Boot, Can, Offer, Pod, PodSpec

PROVIDERS = {
    "local": "podctl.providers.local:LocalProvider",
    "ssh": "podctl.providers.ssh:SshProvider",
}


class Provider(Protocol):
    """Every call returns promptly; waiting is the caller's business."""

    name: str
    can: Can

    def offers(self, spec: PodSpec) -> Sequence[Offer]:
        """What could be rented now, and its price."""
        ...

    def create(self, name: str, offer: Offer, spec: PodSpec, boot: Boot) -> Pod:
        """Starts paying. Raises NoCapacity, ProviderUnclear."""
        ...

    def start(self, pod_id: str) -> Pod:
        """Start a stopped pod again. Raises NoCapacity where its old machine has no GPU free."""
        ...

    def get(self, pod_id: str) -> Pod:
        """The pod as it is now; state `gone` where there is none."""
        ...

    def list(self) -> Sequence[Pod]:
        """Ours, by name."""
        ...

    def stop(self, pod_id: str) -> None: ...

    def terminate(self, pod_id: str) -> None:
        """Already gone is success."""
        ...


def provider_named(name: str) -> Provider:
    """The provider of that name. Raises BadInput naming the known ones."""
    if name not in PROVIDERS:
        raise BadInput(f"there is no provider {name!r}", f"pod.provider is one of: {', '.join(PROVIDERS)}")
    module, cls = PROVIDERS[name].split(":")
    provider: Provider = getattr(import_module(module), cls)()
    return provider
