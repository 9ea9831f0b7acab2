"""What a device can do at most in bf16, dense, summed in float32: operations a second, from its maker's data sheet."""

# Without sparsity, which data sheets like to count in: half of what they print where they print that.
PEAKS = {
    "B200": (2250e12, "NVIDIA Blackwell architecture brief, HGX B200"),
    "H200": (989e12, "NVIDIA H200 data sheet, SXM"),
    "H100 NVL": (835e12, "NVIDIA H100 NVL data sheet"),
    "H100 PCIe": (756e12, "NVIDIA H100 data sheet, PCIe"),
    "H100": (989e12, "NVIDIA H100 data sheet, SXM"),
    "A100": (312e12, "NVIDIA A100 data sheet"),
    "L40S": (362e12, "NVIDIA L40S data sheet"),
    "L40": (181e12, "NVIDIA L40 data sheet"),
    "L4": (121e12, "NVIDIA L4 data sheet"),
    "A40": (149.7e12, "NVIDIA A40 data sheet"),
    "RTX A6000": (154.8e12, "NVIDIA GA102 white paper"),
    "A10": (125e12, "NVIDIA A10 data sheet"),
    "RTX 4090": (165.2e12, "NVIDIA Ada white paper"),
    "RTX 3090": (71e12, "NVIDIA GA102 white paper"),
}


def peak_of(device: str) -> tuple[float, str] | None:
    """Operations a second and whose word that is, by the name that CUDA gives the device; None: not known here."""
    named = [name for name in PEAKS if name.lower() in device.lower()]
    return PEAKS[max(named, key=len)] if named else None
