"""Who rents machines out: the protocol of all providers, and the table of them."""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from podctl.errors import BadInput
from podctl.pods import Balance, Boot, Can, Offer, Pod, PodSpec, Volume

PROVIDERS = {
    "local": "podctl.providers.local:LocalProvider",
    "runpod": "podctl.providers.runpod.provider:RunPodProvider",
    "ssh": "podctl.providers.ssh:SshProvider",
}


class Provider(Protocol):
    """Every call returns promptly; waiting is the caller's business.

    All raise NoRights for a key, rights or balance, ProviderUnclear where no answer says what is the case.
    """

    name: str
    can: Can

    def offers(self, spec: PodSpec) -> Sequence[Offer]:
        """What could be rented now and its price, ranked: the order to try them in. Raises BadInput for a wish that
        nobody can fulfil (no such GPU, a volume elsewhere), NoCapacity where all of it is sold out."""
        ...

    def create(self, name: str, offer: Offer, spec: PodSpec, boot: Boot) -> Pod:
        """Starts paying. Raises NoCapacity and OfferRefused (the next offer), any other BadInput (no offer will do),
        ProviderUnclear: **a pod may have been made**, its name tells."""
        ...

    def start(self, pod_id: str) -> Pod:
        """Start a stopped pod again; harmless again. Raises NoCapacity where its old machine has no GPU free."""
        ...

    def get(self, pod_id: str) -> Pod:
        """The pod as it is now; state `gone` where there is none. A read may be 30 s old."""
        ...

    def list(self) -> Sequence[Pod]:
        """All of podctl's, anybody's of this account: names begin `pc-`."""
        ...

    def stop(self, pod_id: str) -> None: ...

    def terminate(self, pod_id: str) -> None:
        """Already gone is success."""
        ...


class Speaks(Protocol):
    """A provider that gives out a container's log, over a way that nobody else can write to."""

    def log_lines(self, pod_id: str, *, since: float | None = None, tail: int = 200) -> Sequence[str]:
        """The newest lines that there are now, oldest first; [] before there are any."""
        ...


class Bills(Protocol):
    """A provider that says what was spent."""

    def billed(self, pod_id: str, since: float) -> float | None:
        """Dollars for a pod since a Unix time, by the provider's own books; None where they do not tell yet."""
        ...

    def balance(self) -> Balance | None:
        """None where the provider does not tell, or not with this key."""
        ...


class Stores(Protocol):
    """A provider with network volumes."""

    def volumes(self) -> Sequence[Volume]: ...

    def create_volume(self, name: str, size_gb: int, data_center: str) -> Volume:
        """Starts paying, by the month. Raises BadInput for a data centre without volumes, naming those that have."""
        ...


def provider_named(name: str) -> Provider:
    """The provider of that name. Raises BadInput naming the known ones."""
    if name not in PROVIDERS:
        raise BadInput(f"there is no provider {name!r}", f"pod.provider is one of: {', '.join(PROVIDERS)}")
    module, cls = PROVIDERS[name].split(":")
    provider: Provider = getattr(import_module(module), cls)()
    return provider
