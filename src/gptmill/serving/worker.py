"""The one thread that decodes, and the bounded line of requests before it.

Up to `at_once` jobs are under way together and take turns step by step, so that a short
answer need not wait for the end of a long one. Each has a stream of its own: what it is
answered does not depend on the others. Behind them at most `max_waiting` jobs wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from gptmill.serving.errors import ApiError
from gptmill.speaker import Piece

PATIENCE = 10.0
"""Seconds that `join` waits for the step under way."""

Event = list[Piece] | BaseException | None
"""What a job is told: the pieces of a step, what went wrong, or None at its end."""


@dataclass(eq=False)
class Job:
    """Something to decode, and whom to tell. `tell` is called in the worker's thread."""

    begin: Callable[[], Generator[list[Piece], None, None]]
    tell: Callable[[Event], None]
    cancelled: bool = False
    steps: Generator[list[Piece], None, None] | None = field(default=None, repr=False)


class Worker:
    """Decodes jobs in a thread of its own, from its making until `close`."""

    def __init__(self, *, at_once: int, max_waiting: int) -> None:
        self.at_once = at_once
        self.max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Return how many jobs are under way and how many wait."""
        with self._changed:
            together = len(self._active) + len(self._waiting)
            return min(together, self.at_once), max(0, together - self.at_once)

    def submit(self, job: Job) -> None:
        """Put a job at the end of the line; raise ApiError where the line is full."""
        with self._changed:
            if self._closing:
                raise _closing()
            if len(self._active) + len(self._waiting) >= self.at_once + self.max_waiting:
                raise ApiError(
                    503,
                    f"{self.max_waiting} requests are waiting already; try again later",
                    code="overloaded",
                )
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job out of the line, or end it after the step under way. It is told no more."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Have all jobs end with an error after the step under way, and take no more."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, though not for ever: a step may take long."""
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while self._admit():
            for job in list(self._active):
                if not _step(job):
                    with self._changed:
                        self._active.remove(job)
        for job in [*self._active, *self._waiting]:
            _tell(job, _closing())

    def _admit(self) -> bool:
        """Wait until there is work and let it in; return False where it is time to end."""
        with self._changed:
            while not (self._closing or self._active or self._waiting):
                self._changed.wait()
            while self._waiting and len(self._active) < self.at_once:
                self._active.append(self._waiting.popleft())
            return not self._closing


def _closing() -> ApiError:
    return ApiError(503, "the server is being stopped", code="stopping")


def _step(job: Job) -> bool:
    """Do one step of a job; return whether there is more to do."""
    pieces: Event
    try:
        if job.steps is None:
            job.steps = job.begin()
        if job.cancelled:
            job.steps.close()
            return False
        pieces = next(job.steps, None)
    except Exception as error:  # one job's failure is told to it alone; the others go on
        pieces = error
    _tell(job, pieces)
    return isinstance(pieces, list)


def _tell(job: Job, event: Event) -> None:
    if not job.cancelled:
        job.tell(event)
