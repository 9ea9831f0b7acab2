"""What a GPU can do at most, by its maker's data sheet: dense matrices, operations a second, summed in float32."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """`half`: of bf16, or of fp16 where there is no bf16; `single`: of float32, by TF32 where there is it."""

    half: float
    single: float
    source: str


def _ampere(half: float, source: str) -> Peak:
    """From Ampere on TF32 has half the rate of bf16."""
    return Peak(half, half / 2, source)


# Without sparsity, which data sheets like to count in: half of what they print where they print that.
PEAKS = {
    "B200": _ampere(2250e12, "NVIDIA Blackwell architecture brief, HGX B200"),
    "H200": _ampere(989e12, "NVIDIA H200 data sheet, SXM"),
    "H100 NVL": _ampere(835e12, "NVIDIA H100 NVL data sheet"),
    "H100 PCIe": _ampere(756e12, "NVIDIA H100 data sheet, PCIe"),
    "H100": _ampere(989e12, "NVIDIA H100 data sheet, SXM"),
    "A100": _ampere(312e12, "NVIDIA A100 data sheet"),
    "L40S": _ampere(362e12, "NVIDIA L40S data sheet"),
    "L40": _ampere(181e12, "NVIDIA L40 data sheet"),
    "L4": _ampere(121e12, "NVIDIA L4 data sheet"),
    "A40": _ampere(149.7e12, "NVIDIA A40 data sheet"),
    "RTX A6000": _ampere(154.8e12, "NVIDIA GA102 white paper"),
    "A10": _ampere(125e12, "NVIDIA A10 data sheet"),
    "RTX 4090": _ampere(165.2e12, "NVIDIA Ada white paper"),
    "RTX 3090": _ampere(71e12, "NVIDIA GA102 white paper"),
    "T4": Peak(65e12, 8.1e12, "NVIDIA T4 data sheet"),
}


def peak_of(device: str) -> Peak | None:
    """By the name that CUDA gives the device; None where it is not known here."""
    named = [name for name in PEAKS if name.lower() in device.lower()]
    return PEAKS[max(named, key=len)] if named else None
