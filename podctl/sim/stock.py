"""The machines and what of them is free: a pod has GPUs of one machine, and goes back to that machine or nowhere."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from podctl.sim.catalogue import Catalogue, Stock, cuda_number


@dataclass
class Host:
    """One machine: GPUs of one type in one data centre."""

    id: str
    gpu: str
    data_center: str
    size: int
    free: int
    cuda: str
    ip: str = "127.0.0.1"
    dead: bool = False


class Machines:
    """All machines of the cloud."""

    def __init__(self, catalogue: Catalogue, stock: Stock, chance: random.Random) -> None:
        self.hosts: dict[str, Host] = {}
        for gpu, centers in stock.items():
            for center, sizes in centers.items():
                for size in [sizes] if isinstance(sizes, int) else sizes:
                    id = new_id(chance, 12)
                    cuda = catalogue.data_centers[center].cuda
                    self.hosts[id] = Host(id, gpu, center, size, size, cuda)

    def find(
        self, gpu: str, count: int, centers: Iterable[str], min_cuda: str = "", cudas: Iterable[str] = ()
    ) -> Host | None:
        """A machine with so many free, in one of the data centres (any, where none is named)."""
        wanted, exact = list(centers), list(cudas)
        for host in self.hosts.values():
            fits = host.gpu == gpu and host.free >= count and not host.dead
            fits = fits and (not wanted or host.data_center in wanted)
            fits = fits and (not min_cuda or cuda_number(host.cuda) >= cuda_number(min_cuda))
            if fits and (not exact or host.cuda in exact):
                return host
        return None

    def level(self, gpu: str, center: str | None = None, count: int = 1) -> str:
        """How the listing calls what is left: NONE, LOW, MEDIUM, HIGH."""
        places = [
            h.free // count
            for h in self.hosts.values()
            if h.gpu == gpu and not h.dead and center in (None, h.data_center)
        ]
        left = sum(places)
        return "NONE" if not left else "LOW" if left < 3 else "MEDIUM" if left < 8 else "HIGH"

    def centers_with(self, gpu: str) -> list[str]:
        """Data centres that have machines of that type, free or not."""
        return sorted({h.data_center for h in self.hosts.values() if h.gpu == gpu})


def new_id(chance: random.Random, length: int = 14) -> str:
    """As RunPod's look: lower-case letters and digits."""
    return "".join(chance.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(length))
