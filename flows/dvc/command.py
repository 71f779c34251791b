"""DVC's commands, and the place of its cached files."""

import subprocess
import sys
from functools import cache
from pathlib import Path


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
    """Run DVC in `root`; return the status and the output."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@cache
def cache_folder(root: Path) -> Path:
    """Return DVC's cache folder, which any of DVC's config files may set."""
    return Path(dvc(root, "cache", "dir").strip())


def cached_file(root: Path, digest: str) -> Path:
    """Return the path of the cached file with an MD5; the file may be missing."""
    return cache_folder(root) / "files" / "md5" / digest[:2] / digest[2:]
