"""Locks between processes: files that the kernel lets go of when their holder ends."""

import fcntl
import time
from pathlib import Path
from typing import TextIO


def take(path: Path, *, patience: float) -> TextIO | None:
    """Return the locked file, held until it is closed; None where another process stays at it.

    Waits `patience` seconds at most; infinity waits for ever.
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
