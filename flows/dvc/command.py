"""DVC's commands."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from gptmill.sources.address import hidden
from tasks.processes.process import leashed
from tasks.project.environment import ROOT


def dvc(root: Path, *arguments: str) -> str:
    """Run DVC and return its output.

    Raises ValueError with DVC's last error line where the command fails; addresses in the line have
    no password.
    """
    result = run_dvc(root, *arguments)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or result.stderr.splitlines() or ["no message"])[-1]
        raise ValueError(f"`dvc {' '.join(arguments)}` failed: {hidden(reason)}")
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


@cache
def default_remote(root: Path) -> str:
    """Ask DVC once, and return the name of the default remote, "" without one."""
    return run_dvc(root, "config", "core.remote").stdout.strip()


def push(root: Path) -> None:
    """Send data, outputs and run cache of the project at `root` to the default remote.

    Raises ValueError, a sentence, where the remote does not take them.
    """
    try:
        dvc(root, "push", "--run-cache")
    except ValueError as error:
        raise ValueError(
            f"{error}; the stages are done and their outputs are on this machine: mend the remote, "
            "and the next run with `push` sends them"
        ) from None
