"""GPUs by short names, and the FLOP/s that training reaches."""

from typing import NamedTuple

from gptmill.device import Device, RuntimeConfig, pick
from gptmill.training.flops import datasheet_peak, measured_peak


class Gpu(NamedTuple):
    """A GPU's full name in torch, and the memory in GB."""

    name: str
    memory: int


GPUS = {
    "B200": Gpu("NVIDIA B200", 180),
    "H200": Gpu("NVIDIA H200", 141),
    "H100": Gpu("NVIDIA H100 80GB HBM3", 80),
    "H100-PCIe": Gpu("NVIDIA H100 PCIe", 80),
    "A100-80GB": Gpu("NVIDIA A100-SXM4-80GB", 80),
    "A100-40GB": Gpu("NVIDIA A100-SXM4-40GB", 40),
    "L40S": Gpu("NVIDIA L40S", 48),
    "L4": Gpu("NVIDIA L4", 24),
    "A10": Gpu("NVIDIA A10", 24),
    "RTX-4090": Gpu("NVIDIA GeForce RTX 4090", 24),
    "RTX-3090": Gpu("NVIDIA GeForce RTX 3090", 24),
}
USABLE = 0.9
"""The share of a GPU's memory for training: CUDA and fragments take the rest."""
MFU = 0.36
"""Of the datasheet's peak: 124M, 32 x 1,024 ids, bf16, compiled, on an H100."""
OF_MEASURED = {"bf16": 0.66, "fp32": 0.9}
"""Of the fastest matrix product measured on a CPU: 124M, eager (benchmarks/README.md)."""


class Speed(NamedTuple):
    """A device, its FLOP/s in training, and the source of the figure in words."""

    device: Device
    flops: float
    source: str
    memory: float | None
    """Bytes of a GPU's memory."""


def speed(name: str, runtime: RuntimeConfig, mfu: float | None) -> Speed:
    """Return the speed of a named GPU, or of this machine for `here`.

    Raises ValueError for a GPU of unknown peak.
    """
    gpu = GPUS.get(name)
    device = pick(runtime) if gpu is None else _named(gpu, runtime)
    published = datasheet_peak(device.model)
    if published is not None:
        share = MFU if mfu is None else mfu
        source = f"{share:.0%} of the datasheet's {published / 1e12:,.0f} TFLOP/s"
    else:
        published = measured_peak(device.device, device.precision)
        share = OF_MEASURED[device.precision] if mfu is None else mfu
        source = f"{share:.0%} of {published / 1e12:,.2f} TFLOP/s, measured now"
    room = None if gpu is None else USABLE * gpu.memory * 1e9
    return Speed(device, published * share, source, room)


def _named(gpu: Gpu, runtime: RuntimeConfig) -> Device:
    precision = "bf16" if runtime.precision == "auto" else runtime.precision
    return Device("cuda", gpu.name, precision, True, 1, "", recompute=runtime.recompute)
