"""The decoding thread and its bounded queue of requests.

Up to `at_once` completions are decoded together, and each step of the model advances all of them.
Completions join and leave between steps: a short completion need not wait for the end of a long
completion. A prompt is read in parts, with a part in each step: a long prompt does not hold up
the rest of the batch. The tokens drawn for a completion depend on the completion's own seed and
not on the rest of the batch. At most `max_waiting` requests wait in the queue.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gptmill.generation.completion import Completion, CompletionBatch, Delta
from gptmill.serving.errors import ApiError

JOIN_TIMEOUT_S = 10.0
"""Seconds for which `join` waits for the step in progress."""

Event = list[Delta] | Exception | None
"""An event for a job: the deltas of a step, an error, or None at the job's end."""


@dataclass(eq=False)
class Job:
    """The completions of a request and a callback for events.

    The worker's thread calls `tell` with each event.
    """

    completions: Sequence[Completion]
    tell: Callable[[Event], None]
    waiting: deque[Completion] = field(init=False)
    going: list[Completion] = field(init=False, default_factory=list)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.waiting = deque(self.completions)

    @property
    def begun(self) -> bool:
        """Return whether any of the completions has begun."""
        return len(self.waiting) < len(self.completions)


class Worker:
    """A worker that decodes jobs in a separate thread.

    The thread runs from construction until `close`. `open_batch` opens the batch in which jobs are
    decoded: once at the start, and again after a failed step.
    """

    def __init__(
        self, open_batch: Callable[[], CompletionBatch], *, at_once: int, max_waiting: int
    ) -> None:
        self.at_once = at_once
        self.max_waiting = max_waiting
        self._open_batch = open_batch
        self._jobs: list[Job] = []  # in order of arrival
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Return the numbers of active and waiting jobs."""
        with self._changed:
            waiting, _ = self._counts()
            return len(self._jobs) - waiting, waiting

    def submit(self, job: Job) -> None:
        """Append a job to the queue.

        Raises ApiError where the queue is full or the worker is closing.
        """
        with self._changed:
            if self._closing:
                raise _closing_error()
            waiting, n_completions = self._counts()
            if n_completions >= self.at_once and waiting >= self.max_waiting:
                raise ApiError(
                    503,
                    f"{waiting} requests are waiting already; try again later",
                    code="overloaded",
                )
            self._jobs.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Remove a job, at the latest after the current step.

        The job receives no further events.
        """
        with self._changed:
            job.cancelled = True
            if job in self._jobs and not job.begun:
                self._jobs.remove(job)
            self._changed.notify()

    def close(self) -> None:
        """End all jobs with an error and accept no more.

        The jobs end after the step in progress.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended.

        The wait is limited to JOIN_TIMEOUT_S: a step may take long.
        """
        self._thread.join(JOIN_TIMEOUT_S)

    def _counts(self) -> tuple[int, int]:
        """Return the numbers of waiting jobs and unfinished completions."""
        waiting = n_completions = 0
        for job in self._jobs:
            waiting += n_completions >= self.at_once and not job.begun
            n_completions += len(job.waiting) + len(job.going)
        return waiting, n_completions

    def _run(self) -> None:
        batch = self._open_batch()
        while self._admit(batch):
            try:
                step_deltas = batch.step()
            except (
                Exception
            ) as error:  # the error ends all active jobs; waiting jobs get a new batch
                self._end(error)
                batch = self._open_batch()
            else:
                self._pass_on(step_deltas)
        self._end(_closing_error())

    def _admit(self, batch: CompletionBatch) -> bool:
        """Start waiting completions while the batch has room.

        Blocks until there is a job to decode. Returns False once the worker is closing.
        """
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

    def _pass_on(self, step_deltas: Sequence[tuple[Completion, Delta]]) -> None:
        """Send each job the deltas of a step.

        A job whose completions have all finished is removed and also receives the end event.
        """
        by_completion = dict(step_deltas)
        with self._changed:
            for job in list(self._jobs):
                deltas = {
                    completion: by_completion[completion]
                    for completion in job.going
                    if completion in by_completion
                }
                _tell(job, list(deltas.values()))
                job.going = [
                    completion
                    for completion in job.going
                    if completion not in deltas or not deltas[completion].finish
                ]
                if not (job.going or job.waiting):
                    self._jobs.remove(job)
                    _tell(job, None)

    def _end(self, error: Exception) -> None:
        """Send an error to all active jobs and remove them.

        When the worker is closing, waiting jobs receive the error as well.
        """
        with self._changed:
            ended = [job for job in self._jobs if job.begun or self._closing]
            self._jobs = [job for job in self._jobs if job not in ended]
        for job in ended:
            _tell(job, error)


def _closing_error() -> ApiError:
    return ApiError(503, "the server is being stopped", code="stopping")


def _tell(job: Job, event: Event) -> None:
    if event != [] and not job.cancelled:
        job.tell(event)
