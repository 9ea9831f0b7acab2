"""What is for rent: GPU types, data centres, and how many are free at the beginning. Read from `catalogue.yaml`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Stock = Mapping[str, Mapping[str, Sequence[int] | int]]  # gpu id → data centre → free GPUs of each machine


@dataclass(frozen=True)
class Gpu:
    """A type. Dollars are for one of it and an hour."""

    id: str
    name: str
    pool: str
    memory_gb: int
    secure_usd: float
    community_usd: float
    spot_usd: float  # the lowest bid that gets one
    max_count: int

    def usd_per_hour(self, cloud: str) -> float:
        return self.community_usd if cloud == "COMMUNITY" else self.secure_usd


@dataclass(frozen=True)
class DataCenter:
    id: str
    name: str
    region: str
    volume_types: tuple[str, ...]
    cuda: str  # what its machines report


@dataclass(frozen=True)
class Catalogue:
    gpus: Mapping[str, Gpu]
    data_centers: Mapping[str, DataCenter]
    stock: Stock

    @classmethod
    @cache
    def shipped(cls) -> "Catalogue":
        text = (Path(__file__).parent / "catalogue.yaml").read_text(encoding="utf-8")
        return cls.read(yaml.safe_load(text))

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "Catalogue":
        gpus = {
            g["id"]: Gpu(
                g["id"], g["name"], g["pool"], g["memory"], g["secure"], g["community"], g["spot"], g["max"]
            )
            for g in value["gpus"]
        }  # fmt: skip
        centers = {
            d["id"]: DataCenter(d["id"], d["name"], d["region"], tuple(d["volumes"]), d["cuda"])
            for d in value["data_centers"]
        }
        return cls(gpus, centers, value["stock"])


def cuda_number(version: str) -> tuple[int, ...]:
    """`12.11` is above `12.2`."""
    return tuple(int(part) for part in version.split("."))
