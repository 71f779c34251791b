"""The energy of a stage, from counters of the machine's GPUs and CPU packages.

NVML counts a GPU's energy from the moment the driver was loaded (Volta and newer). Linux's powercap
counts a CPU package's energy (Intel's RAPL, AMD too); most systems let only root read the counters,
since finely sampled energy can reveal secrets (CVE-2020-8694). Both count whole devices: the work
of other processes on a device is part of the energy.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from tasks.frame import ranks

GPU_WH, CPU_WH = "cost/gpu_energy_wh", "cost/cpu_energy_wh"
"""Names of the metrics; a part without readable counters has no metric."""
POWERCAP_VARIABLE, POWERCAP = "GPTMILL_POWERCAP", "/sys/class/powercap"
PERIOD_S = 30.0
"""Seconds between two readings of the CPU counters; the smallest wraps after 65 kJ."""
PATIENCE_S = 5.0
"""Seconds to wait for the last reading: a driver that hangs must not hold up the stage."""


class EnergyMeter:
    """Energy of this machine's devices from now on, read in a thread of its own."""

    def __init__(self, processes: int, *, gpus: bool) -> None:
        """Start reading for a stage of `processes` processes; `gpus` reads GPU counters too."""
        self._processes = processes
        self._powercap = Path(os.environ.get(POWERCAP_VARIABLE) or POWERCAP)
        self._reads_gpus = gpus
        self._ended = threading.Event()
        self._gpus: Mapping[str, int] = {}
        self._cpu_joules: float | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, float]:
        """Stop reading; return watt-hours by the name of the metric.

        A part is absent unless all counters of the part were readable from start to end and moved:
        virtual machines have counters that stand still. Only this machine is metered, so that a
        stage on several machines has no energy.
        """
        self._ended.set()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive() or not ranks.share_machine(self._processes):
            return {}
        joules = {GPU_WH: self._gpu_joules(used_gpus(self._processes)), CPU_WH: self._cpu_joules}
        return {name: value / 3600 for name, value in joules.items() if value}

    def _read(self) -> None:
        """Read the counters from start to end."""
        packages = Packages(self._powercap)
        before = gpu_counters() if self._reads_gpus else {}
        while not self._ended.wait(PERIOD_S):
            packages.update()
        packages.update()
        after = gpu_counters() if before else {}
        self._gpus = {uuid: after[uuid] - start for uuid, start in before.items() if uuid in after}
        self._cpu_joules = packages.joules

    def _gpu_joules(self, used: Iterable[str]) -> float | None:
        """Return the energy of GPUs; None where a counter was unreadable or started anew."""
        millijoules = [self._gpus.get(uuid, -1) for uuid in used]
        return None if min(millijoules, default=-1) < 0 else sum(millijoules) / 1e3


class Packages:
    """The energy counters of all CPU packages."""

    def __init__(self, powercap: Path) -> None:
        """Read the counters for the first time."""
        self._last: Mapping[Path, int] = _readings(_domains(powercap))
        self._microjoules = 0
        self._is_whole = bool(self._last)

    def update(self) -> None:
        """Add the energy since the last reading."""
        if not self._is_whole:
            return
        readings = _readings(self._last)
        ranges = _numbers(self._last, "max_energy_range_uj")
        same = self._last.keys() == readings.keys() == ranges.keys()
        self._is_whole = same and all(ranges.values())
        if self._is_whole:
            # a counter at the end of its range starts again at 0
            steps = ((readings[one] - self._last[one]) % ranges[one] for one in readings)
            self._microjoules += sum(steps)
            self._last = readings

    @property
    def joules(self) -> float | None:
        """Return the energy since the first reading; None where a counter was unreadable."""
        return self._microjoules / 1e6 if self._is_whole else None


def _domains(powercap: Path) -> list[Path]:
    """Return the folders of the counters, none where the folder is unreadable."""
    with suppress(OSError):
        return list(powercap.glob("intel-rapl:*"))
    return []


def _readings(folders: Iterable[Path]) -> dict[Path, int]:
    """Return the counters of CPU packages, empty unless all are readable.

    A package includes its cores (`intel-rapl:0:0`); the domain `psys` includes the packages.
    """
    packages = [folder for folder in folders if _text(folder / "name").startswith("package")]
    readings = _numbers(packages, "energy_uj")
    return readings if len(readings) == len(packages) else {}


def _numbers(folders: Iterable[Path], name: str) -> dict[Path, int]:
    """Return the numbers that the files of a name hold, by folder; without unreadable ones."""
    texts = {folder: _text(folder / name) for folder in folders}
    return {folder: int(text) for folder, text in texts.items() if text.isdecimal()}


def _text(file: Path) -> str:
    """Return a file's text without white space around, empty where unreadable."""
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="ascii").strip()
    return ""


def gpu_counters() -> dict[str, int]:
    """Return the millijoules of each NVIDIA GPU by UUID, without GPUs that do not count."""
    try:
        from pynvml import (
            NVMLError,
            nvmlDeviceGetCount,
            nvmlDeviceGetHandleByIndex,
            nvmlDeviceGetTotalEnergyConsumption,
            nvmlDeviceGetUUID,
            nvmlInit,
        )
    except ImportError:
        return {}
    counters = {}
    with suppress(NVMLError):
        nvmlInit()  # never shut down: without a client the driver may unload, and count anew
        for index in range(nvmlDeviceGetCount()):
            with suppress(NVMLError):
                gpu = nvmlDeviceGetHandleByIndex(index)
                counters[nvmlDeviceGetUUID(gpu)] = nvmlDeviceGetTotalEnergyConsumption(gpu)
    return counters


def used_gpus(processes: int) -> list[str]:
    """Return the UUIDs of the GPUs of `processes` processes on this machine, a GPU a process.

    The list is empty where torch used no GPU, or where this process sees fewer GPUs.
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not in_use or torch.cuda.device_count() < processes:
        return []
    with suppress(RuntimeError):  # of a GPU that failed
        return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(processes)]
    return []
