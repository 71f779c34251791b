"""File locks between processes, released by the kernel when the holder ends.

One lock a project keeps commands that write outputs or records apart. The lock's file names the
process that works, for the sentence that a waiting command prints.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from tasks.project.environment import ROOT

HELD = "GPTMILL_LOCKED"  # names the project whose lock the starter of this process holds
POLL_S = 0.2
PATIENCE_S = 10.0  # seconds for the stage of a killed command to save its state
_KEPT: list[TextIO] = []


def take(path: Path, *, patience: float) -> TextIO | None:
    """Lock a file and return it open, or None on timeout.

    Closing the file releases the lock. While a different process holds the lock, `take` waits
    for at most `patience` seconds; infinity waits for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - started >= patience:
                file.close()
                return None
            time.sleep(0.05)
        else:
            return file


@dataclass(frozen=True)
class Worker:
    """A process that works in the project, and its command."""

    pid: int
    created: float
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} (`{self.command}`)"

    def is_alive(self) -> bool:
        """Return whether the process still runs; a later process with the id does not count."""
        try:
            process = psutil.Process(self.pid)
            dead = process.status() == psutil.STATUS_ZOMBIE
            return not dead and abs(process.create_time() - self.created) < 1
        except psutil.NoSuchProcess:
            return False


@contextmanager
def project(
    command: str, *, root: Path = ROOT, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the project's lock during the block.

    While other commands work in the project, or processes left by a killed command, `project`
    waits, and names the process and the command through `say`.
    """
    waits = _Waits(say or _to_stderr)
    path = root / ".state" / "project.lock"
    while True:
        file = take(path, patience=0)
        workers = _at_work(root, path) if file else _noted(path)
        if file is not None and not workers:
            break
        waits.on(workers)
        if file is not None:
            file.close()
        time.sleep(POLL_S)
    with file:
        _note(file, os.getpid(), command)
        try:
            yield
        finally:
            file.truncate(0)


def keep_project(stage: str) -> None:
    """Hold the project's lock until this process ends, unless the starter holds the lock.

    DVC, the parent, is noted until DVC ends, since DVC starts the next stage at once. Raises
    ValueError while a second command works in the project. Waiting for long would be a deadlock
    if the second command waits for the files that DVC has locked for this stage.
    """
    if os.environ.get(HELD) == str(ROOT):
        return
    path = ROOT / ".state" / "project.lock"
    started = time.monotonic()
    while True:
        file = take(path, patience=0)
        others = [worker for worker in _noted(path) if worker.pid != os.getppid()]
        if file is not None and not others:
            break
        if file is not None:
            file.close()
        if time.monotonic() - started > PATIENCE_S:
            worker = others[0] if others else "another process"
            raise ValueError(
                f"{stage}: {worker} works in this project: repeat the command after its end"
            )
        time.sleep(POLL_S)
    _KEPT.append(file)
    parent = psutil.Process().parent()
    if parent is not None and _is_dvc(parent.cmdline()):
        _note(file, parent.pid, "dvc repro")
    else:
        _note(file, os.getpid(), f"python -m tasks {stage}")


def _is_dvc(command: list[str]) -> bool:
    """Return whether a command runs DVC: a path among later words is no program."""
    return any("dvc" in Path(word).parts for word in command[:3])


def dvc_workers(root: Path = ROOT) -> list[Worker]:
    """Return the living processes for which DVC has locked files."""
    try:
        content = json.loads((root / ".dvc" / "tmp" / "rwlock").read_bytes())
        entries = [entry for lock in content.values() for entry in _entries(lock)]
        pids = {int(entry["pid"]): str(entry["cmd"]) for entry in entries}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []
    return [worker for pid, command in pids.items() if (worker := _worker(pid, command))]


def wait_for_dvc(say: Callable[[str], None]) -> None:
    """Wait until DVC has no files locked for living processes."""
    waits = _Waits(say)
    while workers := dvc_workers():
        waits.on(workers)
        time.sleep(POLL_S)


class _Waits:
    """The announcements of a waiting command: each worker is named once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.named: set[str] = set()

    def on(self, workers: list[Worker]) -> None:
        for worker in workers:
            if str(worker) not in self.named:
                self.named.add(str(worker))
                self.say(f"waiting for {worker}, which works in this project")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _at_work(root: Path, path: Path) -> list[Worker]:
    """Return the processes at work while nobody holds the project's lock.

    These are a DVC between two stages, DVC started by hand, and stages that save their state.
    """
    return [*_noted(path), *dvc_workers(root), *_stages_at_work(root)]


def _stages_at_work(root: Path) -> list[Worker]:
    """Return the processes that hold the lock of a stage."""
    workers = []
    for path in (root / ".state").glob("*.lock"):
        if path.name in ("project.lock", "mlflow.lock"):
            continue
        file = take(path, patience=0)
        if file is not None:
            file.close()
        elif worker := _worker(_pid(path), path.stem):
            workers.append(worker)
    return workers


def _pid(path: Path) -> int:
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else 0


def _worker(pid: int, command: str) -> Worker | None:
    try:
        worker = Worker(pid, psutil.Process(pid).create_time(), command)
    except (psutil.NoSuchProcess, ValueError):
        return None
    return worker if worker.is_alive() else None


def _entries(lock: dict[str, Any]) -> list[dict[str, Any]]:
    write = lock.get("write")
    return [*lock.get("read", []), *([write] if write else [])]


def _note(file: TextIO, pid: int, command: str) -> None:
    file.truncate(0)
    worker = _worker(pid, command)
    assert worker is not None
    json.dump(asdict(worker), file)
    file.flush()


def _noted(path: Path) -> list[Worker]:
    """Return the living process named in the lock's file; none where the note is unreadable."""
    try:
        worker = Worker(**json.loads(path.read_bytes()))
        return [worker] if worker.pid != os.getpid() and worker.is_alive() else []
    except (OSError, ValueError, TypeError):
        return []
