"""Signals held back while values change that belong together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Hold back SIGINT and SIGTERM while the block runs, then deliver them.

    The block is given the list of those that came so far. Python calls handlers in the main
    thread alone; elsewhere there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    came: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    usual = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    for missed in came:
        signal.raise_signal(missed)
