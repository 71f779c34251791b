"""Deferral of signals while related values change together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Defer SIGINT and SIGTERM until the end of the block.

    The block gets the list of the signals received up to now. Python calls handlers in the main
    thread alone; in other threads the context manager does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    received: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    handlers = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for deferred in received:
        signal.raise_signal(deferred)
