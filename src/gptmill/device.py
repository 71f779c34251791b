"""Device, precision, threads and the conditions for equal bytes.

Deterministic algorithms are always on. Runs with an equal `Device.record()` are promised to produce
equal bytes: a different thread count or torch build sums in a different order.
"""

import ctypes
import math
import os
import platform
import resource
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]
Precision = Literal["fp32", "bf16"]


# FLOPs of work from which compiling pays. On a CPU compiled steps are no faster than uncompiled
# steps (benchmarks/README.md). On CUDA compiling takes a minute and pays from several minutes of
# training.
WORTH_COMPILING = {"cpu": math.inf, "cuda": 3e16, "mps": math.inf}


@dataclass(frozen=True)
class RuntimeConfig:
    """Requested device, precision, compilation and memory use.

    `auto` selects the fastest device, and bf16 where the device is fast in bf16.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    device: DeviceChoice
    precision: PrecisionChoice
    compile: bool | Literal["auto"]
    micro_batch: int | Literal["auto"]
    """Rows of a training step per forward and backward pass; `auto` is all rows on a GPU, and on
    a CPU a number chosen by the shapes of batch and model; `auto` halves the number where memory
    runs out. The step's gradient is the same sum for every size."""
    recompute: bool
    """Keep only the input of each block in the forward pass, and recompute the block in the
    backward pass: a third more work for far less memory, and the same bytes."""

    def __post_init__(self) -> None:
        check_choice("device", self.device, get_args(DeviceChoice))
        check_choice("precision", self.precision, get_args(PrecisionChoice))
        if self.micro_batch != "auto" and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; allowed are auto and 1 or more")


@dataclass(frozen=True)
class Device:
    """Selected device and settings.

    Training computes in `precision`; weights and optimizer stay fp32.
    """

    device: str
    model: str
    precision: Precision
    compile: bool
    threads: int
    torch: str
    processes: int = 1
    sharded: bool = False
    recompute: bool = False

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context for a forward pass in `precision`.

        With `recompute` no cast of a weight outlives its layer: kept until the backward pass ends,
        all casts together take half as much memory as the weights.
        """
        return torch.autocast(
            self.device,
            dtype=torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=not self.recompute,
        )

    def record(self) -> dict[str, str | int]:
        """Return the conditions for equal bytes, for the run's record."""
        return asdict(self)


def pick(config: RuntimeConfig, *, flops: float = 0.0, one_shape: bool = True) -> Device:
    """Select device and precision, and enable deterministic algorithms.

    Deterministic algorithms apply to the whole process. `flops` is the amount of work ahead:
    `compile: auto` compiles where the work is worth the wait. Only batches of `one_shape` are
    compiled: with several shapes a compiler chooses kernels by the shapes seen before, and a
    resumed training would end in different bytes. Raises ValueError where the requested device is
    missing.
    """
    name = device_name(config.device)
    auto: Precision = "bf16" if _fast_in_bf16(name) else "fp32"
    # cuBLAS is deterministic only with a fixed workspace, and reads the setting once, at startup
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # on by default with deterministic algorithms: torch writes NaN over every new tensor to reveal
    # reads of uninitialized memory, a fifth of a CPU step's time; equal hashes are tested instead
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    compiled = one_shape and (
        flops >= WORTH_COMPILING[name] if config.compile == "auto" else config.compile
    )
    _use_deterministic_algorithms(compiled)
    return Device(
        device=name,
        model=_model(name),
        precision=auto if config.precision == "auto" else config.precision,
        compile=compiled,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        recompute=config.recompute,
    )


def _use_deterministic_algorithms(compiled: bool) -> None:
    """Have torch raise an error where an algorithm is not deterministic.

    The debug mode sets the same flag of the process as `use_deterministic_algorithms`, without
    importing torch's compiler, which takes more than a second.
    """
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations.

    Each step frees gigabytes and allocates the same amount again; the system zeroes every returned
    page first. With freed memory kept, a CPU step is 1.1 to 1.4 times as fast
    (benchmarks/README.md). Only for work with the same array sizes in each step: with varying
    sizes, freed blocks rarely fit and memory grows without bound (up to 18 GB observed). Without
    glibc the function does nothing.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST)):
            libc.mallopt(option, value)


def release_freed_memory() -> None:
    """Make glibc return freed memory to the system.

    Blocks freed after work with one shape of arrays rarely fit arrays of the next shape, and would
    add to the memory of the next shape. Without glibc the function does nothing.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def processes(config: RuntimeConfig, requested: int | Literal["auto"]) -> int:
    """Return the number of training processes on this machine.

    `auto` is one process per GPU. Raises ValueError where the machine has fewer GPUs than
    requested.
    """
    name = device_name(config.device)
    available = torch.cuda.device_count() if name == "cuda" else 1
    if requested == "auto":
        return available
    if requested > available and name != "cpu":
        kind = "GPU" if name == "cuda" else name
        raise ValueError(
            f"devices is {requested}, but this machine has {available} {kind}; lower devices, or "
            "set auto"
        )
    return requested


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError for a value that is not among the allowed ones."""
    choices = list(allowed)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(choices)}")


def device_name(choice: DeviceChoice) -> str:
    """Return the kind of device to use.

    Raises ValueError where the requested device is missing.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if choice == "auto":
        return next(name for name, is_available in available.items() if is_available)
    if not available[choice]:
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise ValueError(f"device is {choice!r}, but this machine and torch build have {names}")
    return choice


def _fast_in_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def _model(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    if device == "mps":
        return f"Apple {platform.machine()}"
    # the name alone is often just "Intel(R) Xeon(R) Processor"; the instruction sets that
    # torch may use tell more
    amx = "+AMX" if torch.cpu.get_capabilities().get("amx_bf16") else ""
    return f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()}{amx})"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory() -> float:
    """Return the peak memory so far, in bytes.

    The peak is CUDA's where CUDA is available, otherwise the process's.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
