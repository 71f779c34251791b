"""Overhead of orchestration: seconds of a fully cached run.

Run `make pipeline` first, then `.venv/bin/python benchmarks/orchestration.py`. Times are
printed by command and by stage. Each figure is the median over several whole processes, the start
of Python included.
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
COMMANDS = {
    "python -m flows pipeline": [sys.executable, "-m", "flows", "pipeline"],
    "dvc repro": [sys.executable, "-m", "dvc", "repro"],
    "dvc --version": [sys.executable, "-m", "dvc", "--version"],
}


def main() -> None:
    """Run each command in turn for several rounds; print medians."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    stages: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            started = time.monotonic()
            environment = {**os.environ, "PATH": PATH, "COLUMNS": "160"}
            result = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
            )
            seconds[name].append(time.monotonic() - started)
            for stage, took in re.findall(r"│ (\w+) +│ cached +│ +([\d.]+)", result.stdout):
                stages.setdefault(stage, []).append(float(took))
    tools = ", ".join(f"{tool} {version(tool)}" for tool in ("prefect", "dvc", "mlflow"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {tools}")
    print(f"median of {ROUNDS} rounds, everything up to date")
    for name, took in seconds.items():
        print(f"{statistics.median(took):7.2f} s  {name}")
    for stage, took in stages.items():
        print(f"{statistics.median(took):7.2f} s  of the pipeline, stage {stage}")


if __name__ == "__main__":
    main()
