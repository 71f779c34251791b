"""Folders of training states, and the workers that wrote the states.

States lie in the project's `.state`, or in the folder that GPTMILL_STATES names. Workers that share
such a folder continue each other's trainings after a kill.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from gptmill.training.state.store import progress
from tasks.processes.locks import take
from tasks.processes.progress import duration
from tasks.project.environment import ROOT

STATES = ROOT / ".state"
VARIABLE = "GPTMILL_STATES"
CLAIM_TIMEOUT_S = 10.0
"""Seconds to wait for another process to release a stage or a training."""

_CLAIMED: dict[Path, TextIO] = {}


def shared() -> Path | None:
    """Return the workers' common folder, if set; raise ValueError where the folder is missing."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not (folder.is_absolute() and folder.is_dir()):
        raise ValueError(
            f"{VARIABLE} is {named}, but must be the absolute path of an existing folder, on a "
            "disk that all workers of the project share"
        )
    return folder


def of_stage(stage: str) -> Path:
    """Return the folder with the states of a stage's trainings."""
    return (shared() or STATES) / stage


def folders(stage: str) -> list[Path]:
    """Return the states of all trainings of a stage."""
    return sorted(path for path in of_stage(stage).glob("*") if path.is_dir())


def worker() -> dict[str, str]:
    """Return the machine and the project's folder, which identify this worker."""
    return {"host": platform.node(), "folder": str(ROOT)}


def is_own(note: Mapping[str, Any] | None) -> bool:
    """Return whether this worker wrote the state with a note, and may drop the state."""
    return shared() is None or (note or {}).get("worker") == worker()


def claim(stage: str) -> None:
    """Lock a stage's outputs until this process ends.

    DVC locks its own runs, but a stage outlives a killed DVC for a moment, and a stage can run
    without DVC. Raises ValueError if another process keeps the lock.
    """
    hold(stage, STATES / f"{stage}.lock")


def hold(stage: str, path: Path) -> None:
    """Lock a file until this process ends; raise ValueError if another process keeps the lock."""
    if path in _CLAIMED:
        return
    file = take(path, patience=CLAIM_TIMEOUT_S)
    if file is None:
        holder = path.read_text(encoding="utf-8")
        raise ValueError(
            f"{stage}: {holder} is running this stage: wait for the end of the process, or stop "
            "the process"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    _CLAIMED[path] = file


def is_free(folder: Path) -> bool:
    """Return whether no process trains with the states of a folder."""
    path = folder / "lock"
    if not path.exists():
        return True
    file = take(path, patience=0)
    if file is not None:
        file.close()
    return file is not None


def origin(folder: Path, note: Mapping[str, Any] | None) -> str:
    """Return a line on the beginning of a training: the newest state and its worker, or none."""
    place = folder.parent if shared() else folder.parent.relative_to(ROOT)
    saved = progress(folder)
    if saved is None:
        return f"no state of this training in {place}: starts from the beginning"
    match (note or {}).get("worker"):
        case {"host": host, "folder": tree} if {"host": host, "folder": tree} != worker():
            who = f"{host}, {tree}"
        case _:
            who = "this worker"
    trained = f"step {saved.step:,}, after {duration(saved.seconds)} of training"
    return f"newest state in {place}: {trained}, by {who}"
