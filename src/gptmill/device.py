"""What the work runs on: device, precision, threads, and what equal bytes depend on.

Deterministic algorithms are always on. Equal bytes are promised between runs whose
`Device.record()` is equal: another thread count or build sums in another order.
"""

import ctypes
import math
import os
import platform
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]
Precision = Literal["fp32", "bf16"]


# On a CPU compiled steps are no faster than ours (benchmarks/README.md). On CUDA compiling takes
# a minute: it pays from some minutes of training on.
WORTH_COMPILING = {"cpu": math.inf, "cuda": 3e16, "mps": math.inf}


@dataclass(frozen=True)
class RuntimeConfig:
    """What to run on; `auto` takes the fastest device, and bf16 where the device is fast in it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    device: DeviceChoice
    precision: PrecisionChoice
    compile: bool | Literal["auto"]
    micro_batch: int | Literal["auto"]
    """Rows of a training step that go through the model together; `auto` halves them where
    memory runs out. The step is the same sum however it is cut."""
    recompute: bool
    """Keep of each block's forward pass only what went in, and do it again for the gradients:
    a third more work for far less memory, and the same bytes."""

    def __post_init__(self) -> None:
        _check_choice("device", self.device, get_args(DeviceChoice))
        _check_choice("precision", self.precision, get_args(PrecisionChoice))
        if self.micro_batch != "auto" and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1, or auto")


@dataclass(frozen=True)
class Device:
    """What was picked. Training computes in `precision`; weights and optimizer stay fp32."""

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
        """Return the context in which a forward pass runs in this precision."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=bf16)

    def record(self) -> dict[str, str | int]:
        """Return what equal bytes depend on, for the run's record."""
        return asdict(self)


def pick(config: RuntimeConfig, *, flops: float = 0.0, one_shape: bool = True) -> Device:
    """Choose device and precision, and switch deterministic algorithms on for this process.

    `flops` is how much work is to come: `compile: auto` compiles where that is worth the wait.
    Only batches of `one_shape` are compiled: among several a compiler chooses kernels by those
    that it has seen, and a training that goes on would end in other bytes. Raises ValueError where
    the device asked for is not there.
    """
    name = device_name(config.device)
    auto: Precision = "bf16" if _fast_in_bf16(name) else "fp32"
    # cuBLAS is deterministic only with a fixed workspace, which it reads once, at its start
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # on by default with the line above: it writes NaN over every new tensor, a fifth of a step's
    # time here, to make reads of unset memory show; equal hashes are tested instead
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return Device(
        device=name,
        model=_model(name),
        precision=auto if config.precision == "auto" else config.precision,
        compile=one_shape
        and (flops >= WORTH_COMPILING[name] if config.compile == "auto" else config.compile),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        recompute=config.recompute,
    )


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what comes next, instead of giving it to the system.

    Each step frees gigabytes and asks for them again; every page that comes back from the
    system is zeroed first. A CPU step is 1.1 to 1.4 times as fast (benchmarks/README.md). Only
    for work whose arrays have the same sizes in each step: where they vary, what is kept rarely
    fits and memory grows without end (18 GB were seen). Elsewhere than on glibc it does nothing.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST)):
            libc.mallopt(option, value)


# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def processes(config: RuntimeConfig, wanted: int | Literal["auto"]) -> int:
    """Return how many processes train together on this machine: one a GPU, or as many as asked.

    Raises ValueError where there are fewer GPUs than asked for.
    """
    name = device_name(config.device)
    there = torch.cuda.device_count() if name == "cuda" else 1
    if wanted == "auto":
        return there
    if wanted > there and name != "cpu":
        kind = "GPU" if name == "cuda" else name
        raise ValueError(
            f"devices is {wanted}, but this machine shows {there} {kind}: lower it, or write auto"
        )
    return wanted


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def device_name(choice: DeviceChoice) -> str:
    """Return the kind of device that is used. Raises ValueError where one asked for is missing."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if choice == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if not there[choice]:
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(f"device is {choice!r}, but this machine and torch build have {found}")
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
    # the name alone is often just "Intel(R) Xeon(R) Processor": what torch may use tells more
    amx = "+AMX" if torch.cpu.get_capabilities().get("amx_bf16") else ""
    return f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()}{amx})"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory() -> float:
    """Return the most memory that was held so far, bytes: CUDA's own, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
