"""DVC's commands."""

import subprocess
import sys
from pathlib import Path

from tasks.processes.process import leashed
from tasks.project.environment import ROOT


def dvc(root: Path, *arguments: str) -> str:
    """Run DVC and return its output.

    Raises ValueError with DVC's last error line where the command fails.
    """
    result = run_dvc(root, *arguments)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or result.stderr.splitlines() or ["no message"])[-1]
        raise ValueError(f"`dvc {' '.join(arguments)}` failed: {reason}")
    return result.stdout


def run_dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in the project at `root`; return the status and the output.

    DVC ends with this process, and waits while a second DVC holds the project's lock.
    """
    command = ["-m", "dvc", "--cd", str(root), "--wait-for-lock", *arguments]
    return subprocess.run(
        leashed([sys.executable, *command]),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
