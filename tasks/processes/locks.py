"""File locks between processes, released by the kernel when the holder ends."""

import fcntl
import time
from pathlib import Path
from typing import TextIO


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
