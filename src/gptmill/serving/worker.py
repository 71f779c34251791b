"""The one thread that decodes, and the bounded line of requests before it.

Up to `at_once` answers are decoded together, a step of the model for all of them at a time;
they join and leave as they come, so that a short answer need not wait for the end of a long one.
A prompt is read in parts, one a step, so that a long one does not hold up the others' answers.
What is drawn for each depends on its own seed and not on the others. Behind them at most
`max_waiting` requests wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gptmill.generation.completion import Completion, CompletionBatch, Delta
from gptmill.serving.errors import ApiError

JOIN_TIMEOUT_S = 10.0
"""Seconds that `join` waits for the step under way."""

Event = list[Delta] | Exception | None
"""What a job is told: the deltas of a step, what went wrong, or None at its end."""


@dataclass(eq=False)
class Job:
    """Speeches of one request, and whom to tell. `tell` is called in the worker's thread."""

    completions: Sequence[Completion]
    tell: Callable[[Event], None]
    waiting: deque[Completion] = field(init=False)
    going: list[Completion] = field(init=False, default_factory=list)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.waiting = deque(self.completions)

    @property
    def begun(self) -> bool:
        """Say whether any of its completions has begun."""
        return len(self.waiting) < len(self.completions)


class Worker:
    """Decodes jobs in a thread of its own, from its making until `close`.

    `open_batch` makes what they are decoded in: once, and anew after a step that failed.
    """

    def __init__(
        self, open_batch: Callable[[], CompletionBatch], *, at_once: int, max_waiting: int
    ) -> None:
        self.at_once = at_once
        self.max_waiting = max_waiting
        self._open_batch = open_batch
        self._jobs: list[Job] = []  # in the order in which they came
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Return how many jobs are under way and how many wait."""
        with self._changed:
            waiting, _ = self._line()
            return len(self._jobs) - waiting, waiting

    def submit(self, job: Job) -> None:
        """Put a job at the end of the line; raise ApiError where the line is full."""
        with self._changed:
            if self._closing:
                raise _closing()
            waiting, wanted = self._line()
            if wanted >= self.at_once and waiting >= self.max_waiting:
                raise ApiError(
                    503, f"{waiting} requests are waiting already; try later", code="overloaded"
                )
            self._jobs.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job out, at the latest after the step under way. It is told no more."""
        with self._changed:
            job.cancelled = True
            if job in self._jobs and not job.begun:
                self._jobs.remove(job)
            self._changed.notify()

    def close(self) -> None:
        """Have all jobs end with an error after the step under way, and take no more."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, though not for ever: a step may take long."""
        self._thread.join(JOIN_TIMEOUT_S)

    def _line(self) -> tuple[int, int]:
        """Return how many jobs wait, and how many completions are wanted by all together."""
        waiting = wanted = 0
        for job in self._jobs:
            waiting += wanted >= self.at_once and not job.begun
            wanted += len(job.waiting) + len(job.going)
        return waiting, wanted

    def _run(self) -> None:
        batch = self._open_batch()
        while self._admit(batch):
            try:
                found = batch.step()
            except Exception as error:  # of all that are decoded together; what comes next goes on
                self._end(error)
                batch = self._open_batch()
            else:
                self._pass_on(found)
        self._end(_closing())

    def _admit(self, batch: CompletionBatch) -> bool:
        """Let in whom there is room for, waiting for the first; return False at the end."""
        with self._changed:
            while not self._closing:
                for job in [job for job in self._jobs if job.cancelled]:
                    self._jobs.remove(job)
                    for completion in job.going:
                        batch.leave(completion)
                for job in self._jobs:
                    while job.waiting and batch.room:
                        job.going.append(job.waiting.popleft())
                        batch.join(job.going[-1])
                if self._jobs:
                    return True
                self._changed.wait()
            return False

    def _pass_on(self, found: Sequence[tuple[Completion, Delta]]) -> None:
        """Tell each job what a step gave to its completions, and those that are done their end."""
        by_completion = dict(found)
        with self._changed:
            for job in list(self._jobs):
                deltas = {s: by_completion[s] for s in job.going if s in by_completion}
                _tell(job, list(deltas.values()))
                job.going = [s for s in job.going if s not in deltas or not deltas[s].finish]
                if not (job.going or job.waiting):
                    self._jobs.remove(job)
                    _tell(job, None)

    def _end(self, error: Exception) -> None:
        """Tell all jobs that are under way, and at the end those that wait, what went wrong."""
        with self._changed:
            ended = [job for job in self._jobs if job.begun or self._closing]
            self._jobs = [job for job in self._jobs if job not in ended]
        for job in ended:
            _tell(job, error)


def _closing() -> ApiError:
    return ApiError(503, "the server is being stopped", code="stopping")


def _tell(job: Job, event: Event) -> None:
    if event != [] and not job.cancelled:
        job.tell(event)
