"""`make doctor`: whether this machine can run the pipeline, and what to do where not.

Runs before `.venv` exists, on any Python 3, and therefore imports the standard library alone.
"""

from __future__ import annotations

import importlib.util
import locale
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30
STATES = {"good": "ok  ", "note": "note", "bad": "STOP"}
DISK_GIB = {"artifacts and data": 3, "the environment": 2}
MEMORY_GIB = 4
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
PORTS = {"GPTMILL_PREFECT_PORT": 4200, "GPTMILL_MLFLOW_PORT": 5000}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Check(NamedTuple):
    """The state of one part of the machine."""

    name: str
    state: Literal["good", "note", "bad"]
    found: str
    advice: str = ""


def main(arguments: list[str]) -> int:
    """Print every check; return 1 if a check stops the pipeline."""
    if arguments:
        raise ValueError(f"`make doctor` takes no arguments; given: {' '.join(arguments)}")
    checks = list(all_checks())
    for check in checks:
        advice = f"\n{'':17}-> {check.advice}" if check.advice else ""
        print(f"{STATES[check.state]} {check.name:<11} {check.found}{advice}")
    bad = [check.name for check in checks if check.state == "bad"]
    print(f"\nfirst mend: {', '.join(bad)}" if bad else "\nready: run `make pipeline`")
    return 1 if bad else 0


def all_checks() -> Iterator[Check]:
    """Yield the checks in the order in which the pipeline needs them."""
    yield python(sys.version_info[:2])
    yield git()
    yield disk(shutil.disk_usage(ROOT).free, has_environment=(ROOT / ".venv/installed").exists())
    yield memory(available_memory(), resource.getrlimit(resource.RLIMIT_AS)[0])
    yield cpu(read("/proc/cpuinfo"))
    yield gpu(listed_gpus(), torch_build())
    yield from ports(os.environ)
    yield encoding(locale.getpreferredencoding(False))
    yield proxies(os.environ)


def python(version: tuple[int, ...]) -> Check:
    """Check the version of Python."""
    found = f"{'.'.join(map(str, version))} in {sys.executable}"
    if version < (3, 11):
        advice = "install Python 3.11 or newer, then `make env PYTHON=/path/to/python3.11`"
        return Check("Python", "bad", found, advice)
    return Check("Python", "good", found)


def git() -> Check:
    """Check git and whether git accepts this folder."""
    if not shutil.which("git"):
        return Check("git", "note", "missing", "install git: runs have no commit, sweeps need git")
    done = subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no answer").splitlines()[0]
        return Check("git", "note", reason, "mend this: runs have no commit, sweeps need git")
    n_edits = len(done.stdout.splitlines())
    return Check("git", "good", f"{n_edits} uncommitted files" if n_edits else "all committed")


def disk(free: int, *, has_environment: bool) -> Check:
    """Check the free bytes of the project's disk."""
    needed = DISK_GIB["artifacts and data"]
    needed += 0 if has_environment else DISK_GIB["the environment"]
    found = f"{free / GIB:.0f} GiB free"
    if free < needed * GIB:
        return Check("disk", "bad", found, f"make room: a first run takes {needed} GiB")
    return Check("disk", "good", found)


def memory(available: int | None, limit: int) -> Check:
    """Check available memory in bytes (None: unknown), and the limit of this shell."""
    if limit not in (resource.RLIM_INFINITY, -1) and limit < MEMORY_GIB * GIB:
        found = f"limited to {limit / GIB:.1f} GiB"
        return Check("memory", "bad", found, "raise the limit: `ulimit -v unlimited`")
    if available is None:
        return Check("memory", "good", "unknown, without a limit")
    found = f"{available / GIB:.1f} GiB available"
    if available < MEMORY_GIB * GIB:
        advice = "end other programs, or use `make pipeline BASE=pretrain`, a smaller model"
        return Check("memory", "note", found, advice)
    return Check("memory", "good", found)


def available_memory() -> int | None:
    """Return the bytes available to this process, None if unknown."""
    free = re.search(r"MemAvailable:\s+(\d+) kB", read("/proc/meminfo"))
    group = read("/sys/fs/cgroup/memory.max").strip()
    amounts = [int(free[1]) << 10] if free else []
    amounts += [int(group)] if group.isdigit() else []
    return min(amounts, default=None)


def cpu(info: str) -> Check:
    """Check the CPU by the text of /proc/cpuinfo, empty on other systems."""
    words = set(info.split())
    features = [name for name in FEATURES if name in words]
    found = f"{os.cpu_count()} cores, {platform.machine()} {' '.join(features)}".rstrip()
    if info and not features:
        return Check("CPU", "note", found, "no AVX2: training takes several times as long")
    return Check("CPU", "good", found)


def gpu(listed: str, build: str | None) -> Check:
    """Check the GPUs that the driver lists, and the installed build of torch."""
    if not listed:
        has_mps = sys.platform == "darwin" and platform.machine() == "arm64"
        return Check("GPU", "good", "Apple's MPS" if has_mps else "none: training uses the CPU")
    found = f"{listed.splitlines()[0]} ({len(listed.splitlines())} in all)"
    if build is not None and build.endswith("+cpu"):
        advice = "torch has no CUDA: install a build with CUDA from your package index, "
        return Check("GPU", "note", found, f"{advice}`make env` after removing .venv")
    return Check("GPU", "good", found)


def listed_gpus() -> str:
    """Return the lines of nvidia-smi, empty without a driver."""
    if not shutil.which("nvidia-smi"):
        return ""
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return re.sub(r" \(UUID.*\)", "", done.stdout).strip() if done.returncode == 0 else ""


def torch_build() -> str | None:
    """Return the version of torch without importing torch, None where missing."""
    from importlib import metadata

    return metadata.version("torch") if importlib.util.find_spec("torch") else None


def ports(environment: Mapping[str, str]) -> Iterator[Check]:
    """Check that the ports of `make ui` are free."""
    for variable, default in PORTS.items():
        port = environment.get(variable, str(default))
        if not port.isdigit() or not 0 < int(port) < 1 << 16:
            advice = f"set {variable} to a number from 1 to 65535"
            yield Check("port", "note", f"{port!r} is no port", advice)
            continue
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", int(port))) == 0
        advice = f"if this is not `make ui`, choose another port: {variable}={int(port) + 1}"
        yield Check("port", "note" if taken else "good", f"{port} {'taken' if taken else 'free'}",
                    advice if taken else "")  # fmt: skip


def encoding(name: str) -> Check:
    """Check that texts are UTF-8."""
    if name.lower().replace("-", "") != "utf8":
        return Check("locale", "note", name, "`export LANG=C.UTF-8`, for texts on the terminal")
    return Check("locale", "good", name)


def proxies(environment: Mapping[str, str]) -> Check:
    """Check the proxies; passwords are not shown."""
    given = {
        name: re.sub(r"//[^/@]*@", "//...@", environment[name])
        for name in (*PROXIES, *(name.upper() for name in PROXIES))
        if environment.get(name)
    }
    if not given:
        return Check("proxies", "good", "none")
    found = ", ".join(f"{name}={value}" for name, value in given.items())
    return Check("proxies", "good", f"{found} (never for servers on this machine)")


def read(path: str) -> str:
    """Return the text of a system file, empty where missing."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
