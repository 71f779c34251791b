"""The energy of a stage, from folders as in sysfs and from a stand-in for NVML."""

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from flows.sides.energy import energy
from tasks.frame import energy as metering
from tasks.frame.energy import CPU_WH, GPU_WH, EnergyMeter, Packages
from tasks.tracking import runs

WH = 3_600_000_000
"""Microjoules of a watt-hour."""
NOBODY = 65534


class NVMLError(Exception):
    pass


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of a machine with two packages, their parts, and the whole platform."""
    names = ("package-0", "core", "dram", "package-1", "psys")
    for domain, name in zip(("0", "0:0", "0:1", "1", "2"), names, strict=True):
        folder = tmp_path / f"intel-rapl:{domain}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{70 * WH}\n")
        (folder / "energy_uj").write_text(f"{69 * WH}\n")
    (tmp_path / "intel-rapl").mkdir()
    monkeypatch.setenv("GPTMILL_POWERCAP", str(tmp_path))
    return tmp_path


def count(powercap: Path, *watt_hours: float) -> None:
    """Set the packages' counters, and the others to 70; each at once, for a meter may read."""
    domains = ("0", "1", "0:0", "0:1", "2")
    for domain, value in zip(domains, (*watt_hours, 70, 70, 70), strict=True):
        new = powercap / "new"
        new.write_text(f"{round(value * WH)}\n")
        new.replace(powercap / f"intel-rapl:{domain}" / "energy_uj")


def remove(powercap: Path, name: str) -> None:
    (powercap / "intel-rapl:1" / name).unlink()


def zero_range(powercap: Path) -> None:
    (powercap / "intel-rapl:1" / "max_energy_range_uj").write_text("0\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: count(folder, 69.5, 69.25), 0.75),
        (lambda folder: count(folder, 2, 69), 3),  # one counter wrapped
        (lambda folder: count(folder, 69, 69), 0),
        (lambda folder: (count(folder, 69.5, 69.5), remove(folder, "energy_uj")), None),
        (lambda folder: remove(folder, "max_energy_range_uj"), None),
        (zero_range, None),
        (lambda folder: (folder / "intel-rapl:0" / "energy_uj").write_bytes(b"\xff"), None),
        (lambda folder: (folder / "intel-rapl:0" / "energy_uj").write_text("-1"), None),
    ],
)
def test_cpu_packages_count_once_and_wholly(
    powercap: Path, change: Callable[[Path], object], expected: float | None
) -> None:
    packages = Packages(powercap)
    change(powercap)
    packages.update()
    joules = None if expected is None else pytest.approx(expected * 3600)
    assert packages.joules == joules


def test_a_counter_that_wraps_many_times_is_read_in_between(
    powercap: Path,
) -> None:
    packages = Packages(powercap)
    for watt_hours in (30, 68, 1, 50, 10):
        count(powercap, watt_hours, 69)
        packages.update()
    assert packages.joules == pytest.approx((3 * 70 - 69 + 10) * 3600)
    started(gpus=False).end()


@pytest.mark.parametrize("place", ["nothing", "intel-rapl:0", "."])
def test_without_a_moving_counter_there_is_no_metric(
    powercap: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("GPTMILL_POWERCAP", str(powercap / place))
    assert EnergyMeter(1, gpus=False).end() == {}


@pytest.mark.parametrize("denied", ["intel-rapl:?/energy_uj", "intel-rapl:?", "."])
def test_a_counter_that_only_root_may_read_gives_no_metric(
    powercap: Path, denied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(shutil.copytree(powercap, Path(folder), dirs_exist_ok=True))
        root.chmod(0o755)
        monkeypatch.setenv("GPTMILL_POWERCAP", folder)
        for path in [root] if denied == "." else list(root.glob(denied)):
            path.chmod(0)
        with as_nobody():
            assert Packages(root).joules is None
            assert EnergyMeter(1, gpus=False).end() == {}
        for path in (root, *root.iterdir()):
            path.chmod(0o755)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


class Driver:
    """NVML with two GPUs, as many millijoules as set, and the errors that are set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counters: dict[str, int | None] = {"GPU-a": 10, "GPU-b": 20}
        self.module = ModuleType("pynvml")
        self.module.__dict__.update(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: len(self.counters),
            nvmlDeviceGetHandleByIndex=lambda index: list(self.counters)[index],
            nvmlDeviceGetUUID=lambda gpu: gpu,
            nvmlDeviceGetTotalEnergyConsumption=self._energy,
        )
        monkeypatch.setitem(sys.modules, "pynvml", self.module)
        monkeypatch.setenv("GPTMILL_POWERCAP", "/nowhere")
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", self._properties)

    def _energy(self, gpu: str) -> int:
        counter = self.counters[gpu]
        if counter is None:
            raise NVMLError("Not Supported")
        return counter

    @staticmethod
    def _properties(index: int) -> SimpleNamespace:
        # CUDA numbers GPUs differently from NVML
        return SimpleNamespace(uuid="ba"[index])


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def started(processes: int = 1, *, gpus: bool = True) -> EnergyMeter:
    """Start a meter, and wait for the first reading."""
    read = threading.Event()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metering, "PERIOD_S", 0.001)
        patched.setattr(Packages, "update", lambda packages: read.set())
        meter = EnergyMeter(processes, gpus=gpus)
        assert read.wait(60)
    return meter


MWH = 3_600_000
"""Millijoules of a watt-hour."""


@pytest.mark.parametrize(
    ("processes", "end", "expected"),
    [
        (1, {"GPU-a": 10 + 7 * MWH, "GPU-b": 20 + 3 * MWH}, {GPU_WH: 3.0}),
        (2, {"GPU-a": 10 + 7 * MWH, "GPU-b": 20 + 3 * MWH}, {GPU_WH: 10.0}),
        (2, {"GPU-a": 10, "GPU-b": 20 + 3 * MWH}, {GPU_WH: 3.0}),
        (2, {"GPU-a": None, "GPU-b": 20 + 3 * MWH}, {}),  # lost in between
        (2, {"GPU-b": 20 + 3 * MWH}, {}),
        (2, {"GPU-a": 3, "GPU-b": 20 + 3 * MWH}, {}),  # the driver was loaded anew
        (3, {"GPU-a": 10 + 7 * MWH, "GPU-b": 20 + 3 * MWH}, {}),  # more than this process sees
        (1, {"GPU-a": 10, "GPU-b": 20}, {}),
    ],
)
def test_the_gpus_of_the_stage_count_once(
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    end: dict[str, int | None],
    expected: dict[str, float],
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    meter = started(processes)
    driver.counters = end
    assert meter.end() == expected


def test_gpus_of_others_and_of_other_machines_do_not_count(
    driver: Driver, powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow() -> None:
        driver.counters = {gpu: (value or 0) + MWH for gpu, value in driver.counters.items()}
        count(powercap, 69.5, 69)

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    meter = started(2)
    grow()
    assert meter.end() == {}  # the second process is on another machine
    count(powercap, 69, 69)
    meter = started(gpus=False)
    grow()
    assert meter.end() == {CPU_WH: pytest.approx(0.5)}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    count(powercap, 69, 69)
    meter = started()
    grow()
    assert meter.end() == {CPU_WH: pytest.approx(0.5)}


def refuse(*words: object) -> None:
    raise NVMLError("Driver Not Loaded")


def fail(*words: object) -> None:
    raise RuntimeError("CUDA error: unspecified launch failure")


@pytest.mark.parametrize("fault", ["no library", "old library", "no driver", "failed", "hung"])
def test_a_fault_of_nvml_neither_fails_nor_holds_up_a_stage(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    awake = threading.Event()
    if fault == "no library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif fault == "old library":
        monkeypatch.delattr(driver.module, "nvmlDeviceGetTotalEnergyConsumption")
    elif fault == "no driver":
        monkeypatch.setattr(driver.module, "nvmlInit", refuse)
    elif fault == "failed":
        monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    else:
        monkeypatch.setattr(metering, "PATIENCE_S", 0.01)
        monkeypatch.setattr(driver.module, "nvmlInit", awake.wait)
    meter = EnergyMeter(1, gpus=True)
    driver.counters = {"GPU-a": 10 + MWH, "GPU-b": 20 + MWH}
    assert meter.end() == {}
    awake.set()
    meter._thread.join()


def test_lineage_sums_parts_and_names_their_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = {("1", CPU_WH): [0.5], ("2", CPU_WH): [1.0, 0.25], ("2", GPU_WH): [1000.0]}
    monkeypatch.setattr(runs, "history", lambda *key: histories[key])

    def run(number: str) -> SimpleNamespace:
        metrics = {metric: 1.0 for one, metric in histories if one == number}
        info, data = SimpleNamespace(run_id=number), SimpleNamespace(metrics=metrics)
        return SimpleNamespace(info=info, data=data)

    assert energy([("tokenize", run("1")), ("pretrain", run("2")), ("split", run("3"))]) == {
        "in all": "1,001.750 Wh",
        "GPU": "1,000.000 Wh in pretrain",
        "CPU": "1.750 Wh in tokenize, pretrain",
    }
    assert energy([("split", run("3"))]) == {}
