"""What orchestration costs: seconds of an all-cached run, by door and by stage.

`make pipeline` first; then `.venv/bin/python benchmarks/orchestration.py`. Each figure is
the median of several whole processes, Python's start included.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
DOORS = {
    "python -m flows pipeline": [sys.executable, "-m", "flows", "pipeline"],
    "dvc repro": [sys.executable, "-m", "dvc", "repro"],
    "dvc --version": [sys.executable, "-m", "dvc", "--version"],
}


def main() -> None:
    """Run each door in turn, several rounds, and print medians."""
    seconds: dict[str, list[float]] = {door: [] for door in DOORS}
    stages: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for door, command in DOORS.items():
            started = time.monotonic()
            environment = {**os.environ, "PATH": PATH, "COLUMNS": "160"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
            )
            seconds[door].append(time.monotonic() - started)
            for stage, took in re.findall(r"│ (\w+) +│ cached +│ +([\d.]+)", done.stdout):
                stages.setdefault(stage, []).append(float(took))
    tools = ", ".join(f"{tool} {version(tool)}" for tool in ("prefect", "dvc", "mlflow"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {tools}")
    print(f"median of {ROUNDS} rounds, everything up to date")
    for door, took in seconds.items():
        print(f"{statistics.median(took):7.2f} s  {door}")
    for stage, took in stages.items():
        print(f"{statistics.median(took):7.2f} s  of it, stage {stage}")


if __name__ == "__main__":
    main()
